"""One vocabulary for prompts and pictures: the grammar's words, <bov>, and a token <v0>, <v1>, ... per visual code.

A prompt is "a red ring <bov>", a completion "<v17> <v3> ..." of exactly K tokens in AR order, without <eos>. <bov>
("begin of vision") alone is the unconditional prompt of guidance.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from posttrain.vision.prompts import words
from posttrain.vision.world import World

PAD, EOS, BOV = "<pad>", "<eos>", "<bov>"


@dataclass(frozen=True, slots=True)
class VisualIds:
    """Where the visual codes are in a vocabulary: code c has the token id `offset` + c."""

    bov: int
    offset: int
    n_codes: int

    def to_tokens(self, codes: Tensor) -> Tensor:
        """Token ids of visual codes, any shape."""
        _require_range(codes, 0, self.n_codes, "visual codes")
        return codes + self.offset

    def to_codes(self, token_ids: Tensor) -> Tensor:
        """Visual codes of token ids, any shape."""
        _require_range(token_ids, self.offset, self.offset + self.n_codes, "token ids of visual codes")
        return token_ids - self.offset


def build_text_tokenizer(world: World, codebook_size: int) -> PreTrainedTokenizerFast:
    """The tokenizer of a policy that draws this world with this many visual codes.

    It has no unknown token: a word outside the grammar is an error, never a silent id.
    """
    if codebook_size < 1:
        raise ValueError(f"codebook_size {codebook_size}: a picture needs at least one visual code")
    vocabulary = (PAD, EOS, *words(world), BOV, *(f"<v{code}>" for code in range(codebook_size)))
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}))
    # Where a prompt and a completion are joined, no space stands between <bov> and the first code.
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("<[^<>]+>"), "isolated")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False
    )


def visual_ids(tokenizer: PreTrainedTokenizerBase) -> VisualIds:
    """Where the visual codes are in the vocabulary of a tokenizer that `build_text_tokenizer` made."""
    ids = tokenizer.get_vocab()
    if BOV not in ids or "<v0>" not in ids:
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path or 'this policy'} has no {BOV} and <v0>: it is no policy over "
            "visual tokens; build its tokenizer with build_text_tokenizer"
        )
    n_codes = sum(token.startswith("<v") and token[2:-1].isdigit() for token in ids)
    return VisualIds(bov=ids[BOV], offset=ids["<v0>"], n_codes=n_codes)


def prompt_text(text: str) -> str:
    """What the policy continues: "a red ring" becomes "a red ring <bov>", and "" the unconditional "<bov>"."""
    return f"{text} {BOV}".lstrip()


def completion_text(codes: Tensor) -> str:
    """The visual codes [K] of one picture, in AR order, as the text of a completion."""
    return " ".join(f"<v{code}>" for code in codes.tolist())


def _require_range(ids: Tensor, low: int, high: int, name: str) -> None:
    outside = ids[(ids < low) | (ids >= high)]
    if len(outside):
        raise ValueError(
            f"{len(outside)} of {ids.numel()} {name} are outside {low} to {high - 1}, the first is {outside[0]}: "
            "were the tokens sampled among visual ids only, and from a policy of this codebook?"
        )
