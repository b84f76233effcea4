"""A one-layer Llama over single characters, as a folder that AutoModelForCausalLM and AutoTokenizer read."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHARACTERS = string.digits + "+=\n "  # ids 3, 4, ..., 16
PAIR_ID = 3 + len(CHARACTERS)  # one token for "12", which the tokenizer itself never produces


def ids_of(text: str) -> list[int]:
    """Ids counted by hand: the specials 0, 1, 2, then CHARACTERS in order."""
    return [3 + CHARACTERS.index(character) for character in text]


def write_char_model(folder: Path) -> Path:
    vocabulary = {token: index for index, token in enumerate(("<pad>", "<eos>", "<unk>", *CHARACTERS, "12"))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
