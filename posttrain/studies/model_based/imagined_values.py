"""`posttrain control imagined-values`: does a language model's value model learn from continuations it imagines?

A language model's dynamics are known: the next state is the text with one more token. What has to be learned is the
reward. So continuations that the policy samples from replayed prefixes are Dyna with true dynamics. They are graded by
the verifier, which is the perfect model, or by a reward model learned from the replayed answers alone.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from posttrain.config_fields import plain
from posttrain.data.collate import StateLevel, collate
from posttrain.data.problems import read_problems
from posttrain.data.rows import parse_trajectory
from posttrain.data.sources import OnBadRow, read_rows
from posttrain.evaluation.calibration import auc, brier_score
from posttrain.evaluation.study_figures.model_based import imagined_table
from posttrain.evaluation.study_files import append_result, begin_study, is_done, read_study
from posttrain.losses.oreo import critic_only
from posttrain.losses.term import total
from posttrain.models.value import value_model_from_policy, values_at_every_position
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.schema import EncodedTrajectory, TokenValues
from posttrain.studies.model_based.config import ImaginedValuesConfig
from posttrain.studies.model_based.imagined_rows import (
    Answer,
    encoded,
    encoded_ends,
    imagined_answers,
    predicted_rewards,
    replayed_answer,
    verified_rewards,
)

STUDY = "imagined-values"


class Teacher(StrEnum):
    """What the value model learns from."""

    REPLAY = "replay"  # the sampled answers
    LEARNED_REWARD = "learned_reward"  # and imagined continuations, graded by a learned reward model
    PERFECT = "perfect"  # and imagined continuations, graded by the verifier


def run_imagined_values(config: ImaginedValuesConfig) -> None:
    """Every seed and teacher; prints the table."""
    settings = {
        name: value for name, value in plain(asdict(config)).items() if name not in ("output_dir", "quickstart")
    }
    begin_study(config.output_dir, STUDY, settings)
    torch.set_num_threads(1)
    study = ImaginedValues(config)
    for seed in range(config.n_seeds):
        study.run(seed)
    print(imagined_table(read_study(config.output_dir)).to_markdown())


class ImaginedValues:
    """The policy, its answers to train on, and its answers to test on."""

    def __init__(self, config: ImaginedValuesConfig) -> None:
        self.config, self.policy = config, config.quickstart / "sft"
        self.tokenizer = AutoTokenizer.from_pretrained(self.policy)
        policy = AutoModelForCausalLM.from_pretrained(self.policy, dtype=torch.float32)
        self.engine = TransformersEngine(policy, self.tokenizer, batch_size=256, device="cpu")
        self.replayed, self.tested = self._answers()
        self.rewards = verified_rewards(self.replayed, self.tokenizer)
        self.outcomes = [reward == 1.0 for reward in verified_rewards(self.tested, self.tokenizer)]

    def run(self, seed: int) -> None:
        """Train and test the value models of one seed that are not on file."""
        missing = [t for t in Teacher if not is_done(self.config.output_dir, method=t.value, seed=seed)]
        for teacher in missing:
            start = time.process_time()
            rows = [*encoded(self.replayed, self.rewards), *self._imagined(teacher, seed)]
            value = self._fit(rows, seed)
            cpu_s = time.process_time() - start
            measured = self._measure(value)
            row = {"method": teacher.value, "seed": seed, "n_rows": len(rows), **measured, "cpu_s": cpu_s}
            append_result(self.config.output_dir, row)

    def _imagined(self, teacher: Teacher, seed: int) -> list[EncodedTrajectory]:
        """The same continuations for both graders."""
        if teacher is Teacher.REPLAY:
            return []
        answers = imagined_answers(
            self.engine,
            self.replayed,
            n_each=self.config.n_imagined,
            max_new_tokens=self.config.max_new_tokens,
            seed=seed,
        )
        if teacher is Teacher.PERFECT:
            return encoded(answers, verified_rewards(answers, self.tokenizer))
        reward_model = self._fit(encoded_ends(self.replayed, self.rewards), seed)
        return encoded(answers, predicted_rewards(answers, reward_model, pad_id=self.tokenizer.pad_token_id))

    def _fit(self, rows: Sequence[EncodedTrajectory], seed: int) -> PreTrainedModel:
        """A value model from the policy's trunk, by OREO's critic: the policy is its reference, so β has no part."""
        model = value_model_from_policy(self.policy, dtype=torch.float32).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.config.learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, self.config.n_updates, eta_min=self.config.learning_rate / 10
        )
        rng = random.Random(seed)
        for _ in range(self.config.n_updates):
            values = self._values(model, rng.choices(rows, k=self.config.batch_size))
            loss = total(critic_only(values, beta=1.0), {"sequence": self.config.batch_size})
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        return model.eval()

    def _values(self, model: PreTrainedModel, rows: Sequence[EncodedTrajectory]) -> TokenValues:
        batch = collate(rows, pad_id=self.tokenizer.pad_token_id, states=StateLevel.TOKEN)
        value = values_at_every_position(model, batch["input_ids"], batch["is_token"])[:, :-1]
        nothing = torch.zeros_like(value)  # no policy moves: log π = log π_ref
        return TokenValues(
            logp=nothing,
            ref_logp=nothing,
            kl=None,
            entropy=nothing,
            value=value,
            reward=batch["reward"],
            is_action=batch["is_action"],
            is_state=batch["is_state"],
        )

    @torch.no_grad()
    def _measure(self, model: PreTrainedModel) -> dict[str, float]:
        """AUC and Brier score of V for the outcome, over all states of the tested answers, and half-way through."""
        every: list[tuple[Tensor, bool]] = []
        rows = encoded(self.tested, [float(outcome) for outcome in self.outcomes])
        for part in torch.arange(len(rows)).split(256):
            values = self._values(model, [rows[i] for i in part.tolist()])
            of_rows = zip(part.tolist(), values.value, values.is_state, strict=True)
            every += [(value[is_state], self.outcomes[i]) for i, value, is_state in of_rows]
        all_states = [(v, outcome) for values, outcome in every for v in values.tolist()]
        half_way = [(float(values[len(values) // 2]), outcome) for values, outcome in every]
        return {
            "auc": auc(*zip(*all_states, strict=True)),
            "brier": brier_score(*zip(*all_states, strict=True)),
            "auc_half_way": auc(*zip(*half_way, strict=True)),
            "brier_half_way": brier_score(*zip(*half_way, strict=True)),
        }

    def _answers(self) -> tuple[list[Answer], list[Answer]]:
        """Those of the first n_tasks problems, and those of the last n_test_tasks."""
        folder, config = self.config.quickstart, self.config
        problems = read_problems(folder / "train_problems.jsonl", limit=None)
        if len(problems) < config.n_tasks + config.n_test_tasks:
            raise ValueError(
                f"{folder} has {len(problems)} problems, {config.n_tasks} to train on and {config.n_test_tasks} to "
                "test on were asked for: lower n_tasks or n_test_tasks"
            )
        by_id = {problem.task_id: problem for problem in problems}
        rows = read_rows(folder / "samples.jsonl", parse_trajectory, on_bad_row=OnBadRow.ERROR).rows
        answers = [replayed_answer(row, by_id[row.task_id]) for row in rows]
        first = {problem.task_id for problem in problems[: config.n_tasks]}
        last = {problem.task_id for problem in problems[-config.n_test_tasks :]}
        return (
            [answer for answer in answers if answer.problem.task_id in first],
            [answer for answer in answers if answer.problem.task_id in last],
        )
