"""Networks that the benchmarks share."""

from __future__ import annotations

from transformers import LlamaConfig


def smollm2_proportions(*, n_vocabulary: int, width: int, n_layers: int) -> LlamaConfig:
    """A Llama with SmolLM2's proportions: heads of 64, three of them to a key/value head, tied embeddings."""
    return LlamaConfig(
        vocab_size=n_vocabulary,
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=n_layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 192,
        tie_word_embeddings=True,
        num_labels=1,
    )
