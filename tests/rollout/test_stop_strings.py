"""Stop strings on tokenizers whose tokens are not text by themselves: byte-level and with a decoder that strips."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from posttrain.rollout.stop_strings import StopStrings, StopVocabulary


@pytest.fixture(scope="module")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and one special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=core)
    wrapped.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    return wrapped


def stop_strings(tokenizer, *stop: str) -> StopStrings:
    return StopVocabulary(tokenizer, n_vocab=len(tokenizer), device="cpu").of(stop)


def ends_at(tokenizer, text: str, *stop: str) -> tuple[int, str] | None:
    """Number of tokens after which a row that says `text` would end, asked token by token as the engine asks."""
    stops = stop_strings(tokenizer, *stop)
    token_ids = tokenizer(text, add_special_tokens=False).input_ids
    for n_tokens in range(1, len(token_ids) + 1):
        if stops.may_end[token_ids[n_tokens - 1]]:
            found = stops.ending(token_ids[:n_tokens])
            if found is not None:
                return n_tokens, found
    return None


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one\n\ntwo", ("\n\n",), (5, "\n\n")),
        ("one\ntwo", ("\n\n",), None),
        ("aab", ("aab", "ab"), (3, "aab")),  # both end there: the one named first
        ("x" * 300 + "END", ("END",), (303, "END")),  # far behind the tail that is decoded
        ("é€😀!", ("€",), (5, "€")),  # 2 + 3 bytes: not before its last byte
        ("é€😀!", ("😀",), (9, "😀")),  # 2 + 3 + 4 bytes
        ("is <|end|> x", ("<|end|>",), (4, "<|end|>")),  # a special token is one token
        ("a b", ("a ",), (2, "a ")),
        ("\\n", ("\n",), None),
    ],
)
def test_row_ends_at_the_token_that_completes_the_stop_string(byte_tokenizer, text, stop, expected):
    assert ends_at(byte_tokenizer, text, *stop) == expected


def test_stop_string_that_ends_first_wins_inside_one_token(tokenizer):
    # "bc\nd" is one token: "\n" ends before "d" does, whichever is named first.
    assert ends_at(tokenizer, "1", "d", "\n") is None
    stops = stop_strings(tokenizer, "d", "\n")
    assert stops.ending([tokenizer.convert_tokens_to_ids("bc\nd")]) == "\n"


def test_space_at_the_end_of_a_stop_string_is_found_where_the_decoder_makes_it():
    core = Tokenizer(models.WordLevel({"Step": 0, "one": 1, "▁Step": 2, "▁": 3}, unk_token="one"))
    core.decoder = decoders.Metaspace()
    stops = stop_strings(PreTrainedTokenizerFast(tokenizer_object=core), "Step ")
    assert bool(stops.may_end[3])  # alone it decodes to "": Metaspace strips the first space
    assert stops.ending([1, 2]) is None
    assert stops.ending([1, 2, 3]) == "Step "


def test_only_tokens_that_print_the_last_character_are_worth_decoding(byte_tokenizer):
    stops = stop_strings(byte_tokenizer, "END")
    printable = [byte_tokenizer.decode([token]) for token in stops.may_end.nonzero().squeeze(-1).tolist()]
    assert {piece for piece in printable if "\ufffd" not in piece} == {"D"}
