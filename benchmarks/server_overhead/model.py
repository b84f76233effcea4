"""A random chat model of a given size, as a folder that `posttrain serve` reads."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

N_VOCABULARY = 4096
N_POSITIONS = 1024
TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}assistant: "


def write_model(folder: Path, *, width: int, n_layers: int) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=N_VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=n_layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=N_POSITIONS,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=0,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    chat_tokenizer().save_pretrained(folder)
    return folder


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """A token per byte, and made-up words for the rest of the vocabulary."""
    pieces = ["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += [f"\u0120w{i}" for i in range(N_VOCABULARY - len(pieces))]
    core = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer
