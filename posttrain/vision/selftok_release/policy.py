"""A Llama that writes visual tokens: a text model's vocabulary, extended by one word per visual code.

The Selftok VLM is Llama-3-8B with 32,768 visual words in one softmax, and [BOV] and [EOV] around an image; images are
written in reversed index order, coarse first. Its weights are not published, so its token names and their order are
UNCONFIRMED; the names here are those of this library's small policies, and the order is <bov>, <eov>, <v0>, <v1>, ...
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AddedToken, LlamaForCausalLM, PreTrainedTokenizerBase

from posttrain.pretrained import load_tokenizer
from posttrain.vision.visual_text import BOV, VisualIds, visual_ids

EOV = "<eov>"


@dataclass(frozen=True, slots=True)
class VisualWords(VisualIds):
    """Where the words of an image are in the vocabulary of an extended Llama."""

    eov: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> VisualWords:
        """Of a policy's tokenizer. Raises ValueError where words are absent, or not in one run of ids."""
        ids, vocabulary = visual_ids(tokenizer), tokenizer.get_vocab()
        if EOV not in vocabulary:
            raise ValueError(
                f"the tokenizer of {tokenizer.name_or_path or 'this policy'} has no {EOV}, the end of an image: "
                "extend_llama writes a model folder that has it"
            )
        for code in range(ids.n_codes):
            if vocabulary.get(f"<v{code}>") != ids.offset + code:
                raise ValueError(
                    f"<v{code}> has the id {vocabulary.get(f'<v{code}>')}, needed {ids.offset + code}: visual words "
                    "have ids in a row, so that a code is an id less the offset"
                )
        return cls(bov=ids.bov, offset=ids.offset, n_codes=ids.n_codes, eov=vocabulary[EOV])

    def image_tokens(self, codes: Tensor) -> Tensor:
        """[..., K + 2]: <bov>, the words of codes [..., K] in AR order, <eov>."""
        edges = codes.new_ones(*codes.shape[:-1], 1)
        return torch.cat([edges * self.bov, self.to_tokens(codes), edges * self.eov], dim=-1)


def extend_llama(base: Path, folder: Path, *, n_codes: int, generator: torch.Generator) -> VisualWords:
    """Write to `folder` the Llama of `base` with `n_codes` visual words, as an ordinary Hugging Face folder.

    Old rows of both embeddings stay as they are. A new row is the mean of the old ones plus N(0, σ²) noise, σ the
    model's initializer_range, so at first an image word is about as likely as the average word and no two are alike.
    Words swallow the spaces before them: "a red ring <bov><v5> <v7>" has no token for a space between words.
    """
    tokenizer = load_tokenizer(base)
    model = LlamaForCausalLM.from_pretrained(base, local_files_only=True, dtype="auto")
    n_old = model.config.vocab_size
    if len(tokenizer) != n_old:
        raise ValueError(
            f"{base} has {len(tokenizer)} tokens and {n_old} rows of embeddings: new words would not have the ids of "
            "the new rows; give the model as many rows as its tokenizer has tokens first"
        )
    names = [BOV, EOV, *(f"<v{code}>" for code in range(n_codes))]
    if tokenizer.add_tokens([AddedToken(name, lstrip=True, normalized=False) for name in names]) != len(names):
        raise ValueError(f"the tokenizer of {base} has visual words already: is it a policy that was extended before?")
    model.resize_token_embeddings(n_old + len(names), mean_resizing=False)
    _fill_new_rows(model.model.embed_tokens.weight, n_old, std=model.config.initializer_range, generator=generator)
    if not model.config.tie_word_embeddings:
        _fill_new_rows(model.lm_head.weight, n_old, std=model.config.initializer_range, generator=generator)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return VisualWords.of(tokenizer)


@torch.no_grad()
def _fill_new_rows(embedding: Tensor, n_old: int, *, std: float, generator: torch.Generator) -> None:
    new = embedding[n_old:]
    noise = torch.randn(new.shape, generator=generator, device=generator.device, dtype=torch.float32)
    mean = embedding[:n_old].float().mean(dim=0)
    new.copy_((mean + std * noise.to(mean.device)).to(new.dtype))
