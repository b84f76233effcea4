"""BEER's penalty on a language model's value head: OREO on the quickstart's samples, with and without it.

    posttrain quickstart --output runs/quickstart
    python recipes/beer/llm_value_head.py --quickstart runs/quickstart --output runs/beer_llm

A segment is a token of an answer: V(s_t) = r_t − β ρ_t + V(s_{t+1}), features are the value network's final hidden
states. The reward comes with the last token, which nothing follows, so that the only inflow of a segment is −β ρ_t:
with the policy held at its reference the penalty is 0 whatever the features are, and while the policy learns it can
fire. The value of held-out samples of the imitator is compared with their outcome.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.config import load_config, run_script
from posttrain.config_fields import plain
from posttrain.data.collate import EncodedDataset, StateLevel, collate
from posttrain.data.sources import write_jsonl
from posttrain.evaluation.calibration import auc, brier_score
from posttrain.evaluation.study_files import append_result, begin_study, is_done, run_dir
from posttrain.losses import Term, log_ratio, oreo_token
from posttrain.losses.representation import FeatureValues, beer_cosine
from posttrain.models.actor_critic import ActorCritic, token_values
from posttrain.models.value import values_at_every_position
from posttrain.pretrained import load_tokenizer
from posttrain.schema import EncodedTrajectory, TokenBatch, TokenValues
from posttrain.training.jobs import run_jobs
from posttrain.training.metrics import METRICS, read_metrics
from posttrain.training.metrics_callback import MetricsFile
from posttrain.training.optimizer import Network
from posttrain.training.oreo import pad_id, read_trajectories
from posttrain.training.oreo_config import OreoConfig
from posttrain.training.oreo_networks import load_networks
from posttrain.training.trainer import ObjectiveTrainer

OREO = Path("recipes/quickstart/oreo.yaml")
EVAL_BATCH = 256


@dataclass(frozen=True)
class ValueHeadConfig:
    """Train OREO with the penalty at several coefficients. Run again to go on."""

    quickstart: Path = field(metadata={"help": "Run folder of `posttrain quickstart`: its imitator and its samples."})
    output: Path = field(metadata={"help": "Folder of the runs."})
    coefs: tuple[float, ...] = field(default=(0.0, 1e-3, 1.0), metadata={"help": "Coefficients; 0 is OREO itself."})
    seeds: tuple[int, ...] = field(default=(0, 1, 2), metadata={"help": "Of the order of rows."})
    max_steps: int = field(default=300, metadata={"help": "Updates; the quickstart's own run has 600."})
    n_held_out: int = field(default=2000, metadata={"help": "Last samples, of problems that are not trained on."})
    n_processes: int = field(default=1, metadata={"help": "Runs at a time."})


@dataclass(frozen=True)
class Run:
    config: ValueHeadConfig
    coef: float
    seed: int

    @property
    def method(self) -> str:
        return f"oreo_beer_{self.coef:g}" if self.coef else "oreo"


class Seen(NamedTuple):
    """What the objective sees: the values, and the features that they were read from."""

    values: TokenValues
    hidden: Tensor  # [B, T + 1, D] input of the value head
    weight: Tensor  # [1, D] of the value head


def main(config: ValueHeadConfig) -> None:
    settings = {name: plain(value) for name, value in asdict(config).items()}
    kept = ("max_steps", "n_held_out")
    begin_study(config.output, "beer-value-head", {name: settings[name] for name in kept})
    rows = (config.quickstart / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    for name, part in (("train", rows[: -config.n_held_out]), ("held_out", rows[-config.n_held_out :])):
        write_jsonl(config.output / f"{name}.jsonl", map(json.loads, part))
    runs = [Run(config, coef, seed) for seed in config.seeds for coef in config.coefs]
    missing = [run for run in runs if not is_done(config.output, method=run.method, seed=run.seed)]
    run_jobs(train, missing, n_processes=config.n_processes)


def train(run: Run) -> None:
    folder = run_dir(run.config.output, run.method, run.seed)
    model = run.config.quickstart / "sft"
    data = run.config.output / "train.jsonl"
    flags = ("--config", OREO, "--model", model, "--train_data", data, "--output_dir", folder, "--seed", run.seed)
    oreo = load_config(OreoConfig, [str(flag) for flag in (*flags, "--max_steps", run.config.max_steps)], prog="oreo")
    torch.manual_seed(run.seed)
    tokenizer = load_tokenizer(model)
    encoded, _ = read_trajectories(oreo, tokenizer)
    networks = load_networks(oreo)
    trainer = ObjectiveTrainer(
        networks,
        oreo,
        forward=forward,
        objective=partial(objective, oreo=oreo, coef=run.coef),
        count_units=count_units,
        networks=(
            Network("policy", oreo.policy_learning_rate, oreo.policy_max_grad_norm, oreo.value_warmup_steps),
            Network("value", oreo.value_learning_rate, oreo.value_max_grad_norm),
        ),
        train_dataset=EncodedDataset(encoded),
        data_collator=partial(collate, pad_id=pad_id(tokenizer), states=StateLevel.TOKEN),
        processing_class=tokenizer,
    )
    trainer.add_callback(MetricsFile())
    trainer.train()
    held_out = load_config(
        OreoConfig,
        [str(flag) for flag in (*flags, "--train_data", run.config.output / "held_out.jsonl")],
        prog="oreo",
    )
    rows, _ = read_trajectories(held_out, tokenizer)
    result = {**judge_values(networks.value, rows, pad_id(tokenizer)), **firing(folder)}
    append_result(run.config.output, {"method": run.method, "seed": run.seed, "coef": run.coef, **result})


def forward(model: ActorCritic, batch: dict[str, Tensor]) -> Seen:
    """The values of a batch, with what went into the value head."""
    entered: list[Tensor] = []
    hook = model.value.score.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    try:
        values = token_values(model, TokenBatch(**batch))
    finally:
        hook.remove()
    return Seen(values, entered[0], model.value.score.weight)


def objective(seen: Seen, *, oreo: OreoConfig, coef: float) -> tuple[Term, ...]:
    """OREO's terms and the penalty, which with coefficient 0 is measured all the same."""
    terms = oreo_token(seen.values, beta=oreo.beta, alpha=oreo.alpha)
    return (*terms, *beer_cosine(token_segments(seen, beta=oreo.beta), coef=coef, unit="token"))


def token_segments(seen: Seen, *, beta: float) -> FeatureValues:
    """Each action of a batch as a segment from its state to the next; the last of an answer has no next state."""
    v = seen.values
    is_followed = torch.cat((v.is_state[:, 1:], torch.zeros_like(v.is_state[:, :1])), dim=-1)[v.is_state]
    inflow = v.reward - beta * log_ratio(v.logp, v.ref_logp, v.is_action)
    return FeatureValues(
        phi=seen.hidden[:, :-1][v.is_state],
        next_phi=seen.hidden[:, 1:][v.is_state],
        weight=seen.weight.squeeze(0),
        bias=seen.weight.new_zeros(()),
        inflow=inflow[v.is_state].detach(),
        carry=is_followed.to(seen.hidden.dtype),
    )


def count_units(batch: dict[str, Tensor]) -> dict[str, float]:
    is_state = batch["is_state"]
    return {"sequence": len(is_state), "token": int((is_state[:, :-1] & is_state[:, 1:]).sum())}


@torch.no_grad()
def judge_values(value: PreTrainedModel, rows: Sequence[EncodedTrajectory], pad: int) -> dict[str, float]:
    """V of held-out answers against their outcome: over all states, and in the state before the last token."""
    value.eval()
    pooled: list[tuple[float, bool]] = []
    last: list[tuple[float, bool]] = []
    for start in range(0, len(rows), EVAL_BATCH):
        batch = TokenBatch(**collate(rows[start : start + EVAL_BATCH], pad_id=pad, states=StateLevel.TOKEN))
        values = values_at_every_position(value, batch.input_ids, batch.is_token)[:, :-1]
        is_correct = batch.reward.sum(-1) > 0.5
        for v, is_state, outcome in zip(values, batch.is_state, is_correct.tolist(), strict=True):
            read = v[is_state].tolist()
            pooled += [(x, outcome) for x in read]
            last.append((read[-1], outcome))
    (v, outcome), (v_last, outcome_last) = (map(np.array, zip(*pairs, strict=True)) for pairs in (pooled, last))
    return {
        "auc": auc(v, outcome),
        "auc_last": auc(v_last, outcome_last),
        "brier": brier_score(v, outcome),
        "brier_last": brier_score(v_last, outcome_last),
    }


def firing(folder: Path) -> dict[str, float]:
    """How often the bound was violated over all logged steps, on average and at most; bound and cosine at the end."""
    rows = [row for row in read_metrics(folder / METRICS) if "beer/firing_rate" in row]
    rates = [row["beer/firing_rate"] for row in rows]
    return {
        "beer/firing_rate": sum(rates) / len(rates),
        "beer/firing_rate_max": max(rates),
        "beer/bound": rows[-1]["beer/bound"],
        "beer/cosine": rows[-1]["beer/cosine"],
    }


if __name__ == "__main__":
    raise SystemExit(run_script(main, ValueHeadConfig, path=__file__, summary="BEER on the quickstart's critic."))
