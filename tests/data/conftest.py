"""A character tokenizer built in code: one token per character, so that expected ids can be counted by hand."""

from __future__ import annotations

import string

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>", "<system>", "<tool>")

PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MARKED_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

WIDE_IDS = {text: 108 + index for index, text in enumerate(("b\nc", "x. y", ". "))}  # 8 specials and 100 printables


def build_char_tokenizer(extra_tokens: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """One token per printable ASCII character, ids in the order SPECIALS, string.printable, extra_tokens."""
    vocabulary = {token: index for index, token in enumerate((*SPECIALS, *string.printable, *extra_tokens))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", SPECIALS.index("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=list(SPECIALS[4:]),
        chat_template=PLAIN_TEMPLATE,
    )


@pytest.fixture
def char_tokenizer() -> PreTrainedTokenizerFast:
    return build_char_tokenizer()


@pytest.fixture
def marked_tokenizer() -> PreTrainedTokenizerFast:
    """The same tokens under a chat template with generation marks."""
    tokenizer = build_char_tokenizer()
    tokenizer.chat_template = MARKED_TEMPLATE
    return tokenizer


@pytest.fixture
def wide_tokenizer() -> PreTrainedTokenizerFast:
    """The same tokens and, from WIDE_IDS on, some of several characters, which only recorded rows hold."""
    return build_char_tokenizer(tuple(WIDE_IDS))
