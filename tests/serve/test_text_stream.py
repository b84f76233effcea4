from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from posttrain.serve.text_stream import TextStream, completion_text
from tests.serve.tiny_server import chat_tokenizer


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte: most characters need several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def space_stripping_tokenizer() -> PreTrainedTokenizerFast:
    """As SentencePiece models decode: each word brings its space, and the first one of a text loses it."""
    words = ["\u2581the", "\u2581cat", "s", "\u2581"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="s"))
    core.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=core)


BYTES = byte_tokenizer()


@given(st.text(max_size=12), st.lists(st.text(min_size=1, max_size=3), max_size=2))
def test_pieces_join_to_the_whole_text_where_characters_span_tokens(text: str, stop: list[str]) -> None:
    ids = BYTES(text)["input_ids"]
    stream = TextStream(BYTES, stop)
    pieces = [stream.push(token_id) for token_id in ids]
    assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text
    assert "".join(pieces) + stream.end(None) == text


def test_first_word_alone_loses_its_space() -> None:
    tokenizer = space_stripping_tokenizer()
    stream = TextStream(tokenizer, ())
    assert [stream.push(token_id) for token_id in (0, 1, 2, 0)] == ["the", " cat", "s", " the"]


@pytest.mark.parametrize(
    ("text", "stop", "stop_string", "pieces", "rest"),
    [
        # "b+" may be the beginning of "b+c" until "d" comes
        ("ab+d", ["b+c"], None, ["a", "", "", "b+d"], ""),
        ("ab+c", ["b+c"], "b+c", ["a", "", "", ""], ""),
        # the later, shorter beginning is kept back when the longer one has failed
        ("a+a+b", ["a+b"], "a+b", ["", "", "a+", "", ""], ""),
        ("aa", ["aab"], None, ["", ""], "aa"),
    ],
)
def test_beginning_of_a_stop_string_is_held_back_until_it_is_none(
    text: str, stop: list[str], stop_string: str | None, pieces: list[str], rest: str
) -> None:
    tokenizer = chat_tokenizer()
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    stream = TextStream(tokenizer, stop)
    assert [stream.push(token_id) for token_id in ids] == pieces
    assert stream.end(stop_string) == rest
    assert "".join(pieces) + rest == completion_text(tokenizer, ids, stop_string)
