"""Step ends under decoders that drop spaces or hold parts of characters."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from posttrain.data.steps import StepEnds


def tokenizer_of(tokens: list[str], decoder: object) -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=tokens[0]))
    backend.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_space_that_opens_a_word_completes_a_delimiter_under_sentencepiece_decoding():
    # ids a . _b c: ". " is complete only with the space inside "_b", a token that decodes alone to "b".
    tokenizer = tokenizer_of(["\u2581a", ".", "\u2581b", "c"], decoders.Metaspace())
    assert tokenizer.decode([2]) == "b"
    assert StepEnds(tokenizer, (". ",)).starts([0, 1, 2, 3]) == [True, False, False, True]


def test_character_spread_over_byte_tokens_is_a_delimiter():
    # The ideographic full stop is the bytes E3 80 82, which byte-level vocabularies write as these three characters.
    tokenizer = tokenizer_of(["a", "\u00e3", "\u0122", "\u0124"], decoders.ByteLevel())
    assert tokenizer.decode([1, 2, 3]) == "\u3002"
    assert StepEnds(tokenizer, ("\u3002",)).starts([0, 1, 2, 3, 0]) == [True, False, False, False, True]


def test_without_delimiters_a_turn_is_one_step(char_tokenizer):
    assert StepEnds(char_tokenizer, ()).starts([104, 104, 18]) == [True, False, False]


def test_empty_delimiter_is_refused(char_tokenizer):
    with pytest.raises(ValueError, match="at least one character"):
        StepEnds(char_tokenizer, ("\n", ""))
