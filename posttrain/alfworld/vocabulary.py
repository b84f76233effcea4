"""A tokenizer and a network for policies from scratch: the engine's sentences are a few dozen templates with names.

A template's words between two names are one token, and so is a name ("drawer 3"), if the training games have it; else
it is its kind and its number. An episode then has about a third of the tokens that its words and marks would be, what
was seen is copied token for token, and every text of the engine comes back from its ids unchanged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from posttrain.alfworld.games import Game
from posttrain.alfworld.goals import GOAL_TEXTS
from posttrain.alfworld.room import read_room
from posttrain.alfworld.simulator import HELP

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
MAX_NUMBER = 99  # of a name, such as "drawer 12"
FIRST_TEXT = (
    "You are in the middle of a room. Looking quickly around you, you see",
    "\nYour task is to:",
    *(" a", ", a", ", and a", " nothing", ".", ","),
)
COMMANDS = (
    *("go to", "open", "close", "take", " from", "move", " to", "examine", "use", "heat", "clean", "cool", "slice"),
    *(" with", "look", "inventory", "help", "\n", "\n>"),
)
ANSWERS = (
    *("You arrive at", "On the", ". On the", ", you see", "The", ". The", " is closed.", " is open. In it, you see"),
    *("You open the", "You close the", "You pick up the", " from the", "You move the", " to the", "You turn on the"),
    *("You heat the", "You clean the", "You cool the", " using the", "You sliced the", " with the"),
    *("You are facing the", ". Next to it, you see", ", and", "You are not carrying anything.", "You are carrying: a"),
    *("This is a", " normal", ". In it, you see", " hot", " cold", " cool", " clean", " sliced", " and", "This"),
    *(" is on.", "There's nothing special about", "Nothing happens.", HELP),
)


def episode_tokenizer(games: Iterable[Game]) -> PreTrainedTokenizerFast:
    """The tokenizer of all templates and of the things in these games: give it training games only.

    What a template or a kind does not cover becomes <unk>, character by character.
    """
    names = {f" {name}" for game in games for name in _names(game)}
    names |= {name.rstrip("0123456789 ") for name in names}  # the kinds of things
    numbers = [f" {number}" for number in range(1, MAX_NUMBER + 1)]
    goals = {piece for texts in GOAL_TEXTS.values() for text in texts for piece in _between_names(text)}
    templates = dict.fromkeys((*FIRST_TEXT, *COMMANDS, *ANSWERS, *sorted(goals)))
    words = dict.fromkeys((PAD, EOS, UNKNOWN, *templates, *numbers, *sorted(names)))
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    longest_first = sorted((*templates, *numbers, *names), key=len, reverse=True)
    pattern = "|".join(re.escape(piece) + r"\b" * piece[-1].isalnum() for piece in longest_first)
    core.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{pattern}|[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )


def fresh_policy(tokenizer: PreTrainedTokenizerFast, *, max_tokens: int, seed: int) -> LlamaForCausalLM:
    """Random weights, but for one thing: a name starts as the sum of its kind and its number, scaled to their size.

    So "book 2" is near the goal's "book" before the first step; a name is one token and would tell nothing of it.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(small_llama(tokenizer, max_tokens=max_tokens))
    ids = tokenizer.get_vocab()
    weight = model.model.embed_tokens.weight
    with torch.no_grad():
        for name in ids:
            kind, _, number = name.rpartition(" ")
            if kind and number.isdigit():
                weight[ids[name]] = (weight[ids[kind]] + weight[ids[f" {number}"]]) / math.sqrt(2)
    return model


def small_llama(tokenizer: PreTrainedTokenizerFast, *, max_tokens: int) -> LlamaConfig:
    """A Llama of 0.35 M parameters, a fifth of them names: 3 layers of width 96."""
    ids = tokenizer.get_vocab()
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=max_tokens,
        tie_word_embeddings=True,
        pad_token_id=ids[PAD],
        bos_token_id=None,
        eos_token_id=ids[EOS],
        initializer_range=0.05,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
    )


def _names(game: Game) -> set[str]:
    """The things of a room by their names, and the words of its goal."""
    targets = (game.object_target, game.receptacle_target, game.lamp_target)
    return {*read_room(game).name.values(), *(target.lower() for target in targets if target)}


def _between_names(goal_text: str) -> list[str]:
    """ "put some {object} on {target}" -> " put some" and " on"."""
    return [f" {piece.strip()}" for piece in re.split(r"\{\w+\}", goal_text) if piece.strip()]
