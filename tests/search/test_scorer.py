"""The batched scorer against one forward pass per sequence."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from posttrain.search.scorer import ReencodingScorer


@pytest.fixture(scope="module")
def value_model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=1,
        pad_token_id=0,
    )
    return LlamaForSequenceClassification(config).eval()


def test_batched_scores_equal_the_classifier_run_alone_on_each_sequence(value_model):
    generator = torch.Generator().manual_seed(1)
    lengths = [1, 9, 4, 4, 17, 2]
    sequences = [torch.randint(1, 16, (n,), generator=generator).tolist() for n in lengths]
    alone = [value_model(input_ids=torch.tensor([s])).logits.item() for s in sequences]
    for batch_size in (1, 2, 6):
        scored = ReencodingScorer(value_model, batch_size=batch_size).score(sequences)
        # float32 matmuls of another batch shape sum in another order: 1e-6 on values of order 0.1 to 1.
        torch.testing.assert_close(torch.tensor(scored), torch.tensor(alone), atol=2e-6, rtol=1e-5)


def test_scorer_counts_the_tokens_it_reads_and_refuses_an_empty_sequence(value_model):
    scorer = ReencodingScorer(value_model, batch_size=2)
    scorer.score([[1, 2, 3], [4]])
    assert scorer.n_tokens_read == 4
    with pytest.raises(ValueError, match="empty sequence"):
        scorer.score([[1], []])
