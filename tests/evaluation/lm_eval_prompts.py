"""lm-eval's own prompts of its gsm8k task, five shots and all, and their recorded hash.

    POSTTRAIN_DATA=... python -m tests.evaluation.lm_eval_prompts

prints the hash, in an environment with lm-eval 0.4.13 (it installs beside constraints.txt) and GSM8K's two files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from posttrain.data.problems import find_data

SEED = 1234  # `lm_eval run --seed` has 0,1234,1234,1234; the last is that of the shots
RECORDED = "84119a05b6c77e92415182c7963444e153dd2df04e05e238744f26b105c0a8b6"  # lm-eval 0.4.13, 1,319 prompts


def prompts_sha256(prompts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(prompts).encode()).hexdigest()


def lm_eval_prompts() -> list[str]:
    """What lm-eval 0.4.13 puts to a model, in order; its task file is taken as it is, over the local files."""
    import yaml
    from lm_eval.api.task import ConfigurableTask

    spec = find_spec("lm_eval")
    assert spec is not None and spec.origin is not None
    config = yaml.safe_load((Path(spec.origin).parent / "tasks/gsm8k/gsm8k.yaml").read_text(encoding="utf-8"))
    assert config["num_fewshot"] == 5
    files = {split: str(find_data(f"gsm8k/{split}.jsonl")) for split in ("train", "test")}
    task = ConfigurableTask(
        config={**config, "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    )
    task.set_fewshot_seed(seed=SEED)
    task.build_all_requests()
    return [instance.args[0] for instance in task.instances]


if __name__ == "__main__":
    print(prompts_sha256(lm_eval_prompts()))
