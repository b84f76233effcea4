"""`posttrain vision policy`: an untrained language model over the words of a world and its visual tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from posttrain.vision.tokenizer import load_visual_tokenizer
from posttrain.vision.visual_text import build_text_tokenizer

MAX_PROMPT_TOKENS = 16


@dataclass(frozen=True, slots=True)
class PicturePolicyConfig:
    """Write a small Llama of random weights and its tokenizer; posttrain sft trains it."""

    visual_tokenizer: Path = field(metadata={"help": "Folder of the visual tokenizer whose tokens it will write."})
    output: Path = field(metadata={"help": "Folder for the model and its tokenizer."})
    hidden_size: int = field(default=96, metadata={"help": "Width of the network."})
    n_layers: int = field(default=3, metadata={"help": "Number of layers."})
    n_heads: int = field(default=3, metadata={"help": "Attention heads."})
    seed: int = field(default=0, metadata={"help": "Of the weights."})


def write_picture_policy(config: PicturePolicyConfig) -> None:
    """Write the folder, and print its size."""
    pictures = load_visual_tokenizer(config.visual_tokenizer)
    tokenizer = build_text_tokenizer(pictures.world, pictures.codebook_size)
    torch.manual_seed(config.seed)
    model = LlamaForCausalLM(_llama(config, tokenizer, n_positions=MAX_PROMPT_TOKENS + pictures.n_tokens))
    model.save_pretrained(config.output)
    tokenizer.save_pretrained(config.output)
    print(f"{config.output}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens")


def _llama(config: PicturePolicyConfig, tokenizer: PreTrainedTokenizerFast, *, n_positions: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.hidden_size * 8 // 3,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_heads,
        max_position_embeddings=n_positions,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.05,
    )
