"""Visual tokens are only ids: vLLM writes them as our own engine does."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.models.picture_policy import PicturePolicyConfig, write_picture_policy
from tests.vision.tiny_tokenizer import tiny_tokenizer
from tests.vllm_process import results_of, skip_without_vllm


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_greedy_visual_tokens_are_the_same_from_both_engines(tmp_path: Path) -> None:
    # Three heads of 32: the smallest head that vLLM's CPU attention has.
    skip_without_vllm()
    pictures = tiny_tokenizer()
    pictures.save(tmp_path / "pictures")
    write_picture_policy(PicturePolicyConfig(visual_tokenizer=tmp_path / "pictures", output=tmp_path / "policy"))
    found = results_of(
        "tests.rollout.visual_tokens_on_vllm",
        tmp_path / "result.json",
        str(tmp_path / "policy"),
        str(pictures.n_tokens),
        timeout=560,
    )
    assert found["vllm"] == found["transformers"]
    assert all(len(tokens) == pictures.n_tokens for tokens in found["vllm"])
    assert len({tuple(tokens) for tokens in found["vllm"]}) > 1
