"""A Llama that writes visual tokens: a text model's vocabulary, extended by one word per visual code.

The Selftok VLM is Llama-3-8B with 32,768 visual words in one softmax, and [BOV] and [EOV] around an image; images are
written in reversed index order, coarse first. Its weights are not published, so its token names and their order are
UNCONFIRMED; the names here are those of this library's small policies, and the order is <bov>, <eov>, <v0>, <v1>, ...
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

BOV, EOV = "<bov>", "<eov>"


@dataclass(frozen=True, slots=True)
class VisualWords:
    """Where the words of an image are in a policy's vocabulary: code c has the token id `offset` + c."""

    bov: int
    eov: int
    offset: int
    n_codes: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> VisualWords:
        """Of a policy's tokenizer. Raises ValueError where words are absent, or not in one run of ids."""
        vocabulary = tokenizer.get_vocab()
        if not {BOV, EOV, "<v0>"} <= vocabulary.keys():
            raise ValueError(
                f"the tokenizer of {tokenizer.name_or_path or 'this policy'} lacks {BOV}, {EOV} or <v0>: "
                "extend_llama writes a model folder that has them"
            )
        offset, n_codes = vocabulary["<v0>"], 0
        while vocabulary.get(f"<v{n_codes}>") == offset + n_codes:
            n_codes += 1
        if f"<v{n_codes}>" in vocabulary:
            raise ValueError(
                f"<v{n_codes}> has the id {vocabulary[f'<v{n_codes}>']}, needed {offset + n_codes}: visual words have "
                "ids in a row, so that a code is an id less the offset"
            )
        return cls(bov=vocabulary[BOV], eov=vocabulary[EOV], offset=offset, n_codes=n_codes)

    def to_tokens(self, codes: Tensor) -> Tensor:
        """Token ids of visual codes, both [..., K] in AR order."""
        _require_range(codes, 0, self.n_codes, "visual codes")
        return codes + self.offset

    def to_codes(self, tokens: Tensor) -> Tensor:
        """Visual codes of token ids, both [..., K] in AR order, without <bov> and <eov>."""
        _require_range(tokens, self.offset, self.offset + self.n_codes, "token ids of visual words")
        return tokens - self.offset

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
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
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


def _require_range(ids: Tensor, low: int, high: int, name: str) -> None:
    outside = ids[(ids < low) | (ids >= high)]
    if len(outside):
        raise ValueError(
            f"{len(outside)} of {ids.numel()} {name} are outside {low} to {high - 1}, the first is {int(outside[0])}: "
            "were tokens sampled among visual words only, and do tokenizer and policy have the same codebook?"
        )
