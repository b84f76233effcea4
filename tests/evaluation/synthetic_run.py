"""A run folder drawn from a seeded generator, in the layout that training and evaluation leave behind."""

import json
import math
from pathlib import Path

import numpy as np

from posttrain.evaluation.records import append_records
from posttrain.schema import AnswerRecord, FinishReason, Grade

SKILL = {"sft": 0.55, "rejection_sampling": 1.05, "dpo": 0.85, "oreo": 1.25}  # log-odds of a greedy answer
N_PROBLEMS = 300
BUDGETS = (1, 2, 4, 8, 16)
N_SAMPLES = 16


def write_study(folder: Path, *, seeds: int) -> Path:
    """RUN/seed-0 ... with the same problems under each seed."""
    for seed in range(seeds):
        write_run(folder / f"seed-{seed}", seed=seed)
    return folder


def write_run(folder: Path, *, seed: int) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(100 + seed)
    difficulty = np.random.default_rng(7).normal(0, 1.4, N_PROBLEMS)  # shared by the seeds
    info = {
        "command": f"posttrain quickstart --seed {seed}",
        "commit": "0123abc",
        "device": "cpu, 2 threads",
        "seed": seed,
        "versions": {"torch": "2.13.0", "transformers": "5.19.0"},
    }
    (folder / "run.json").write_text(json.dumps(info))
    append_records(folder / "answers.jsonl", _answers(rng, difficulty, seed))
    for stage, n_steps in (("sft", 120), ("rejection_sampling", 60), ("dpo", 40), ("oreo", 240)):
        _write_metrics(folder / stage / "metrics.jsonl", stage, n_steps, rng)
    lines = [json.dumps(_solution(rng, difficulty[i % N_PROBLEMS], f"p-{i:04d}")) for i in range(400)]
    (folder / "values.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _answers(rng, difficulty, seed):
    records = []
    for i, hard in enumerate(difficulty):
        task_id = f"p-{i:04d}"
        for policy, skill in SKILL.items():
            is_correct = rng.random() < _sigmoid(skill + rng.normal(0, 0.3) - hard)
            records.append(_answer(rng, task_id, f"{policy}/greedy", seed, 1, is_correct, None))
        correct = rng.random(N_SAMPLES) < _sigmoid(0.1 - hard)
        value = np.clip(0.5 + 0.18 * (2 * correct - 1) + rng.normal(0, 0.2, N_SAMPLES), -0.05, 1.05)
        for is_right, v in zip(correct, value, strict=True):
            records.append(_answer(rng, task_id, "oreo/sample", seed, 1, is_right, v))
        for n in BUDGETS:
            best = int(value[:n].argmax())
            records.append(_answer(rng, task_id, "oreo/best_of_n", seed, n, correct[best], value[best]))
            records.append(_answer(rng, task_id, "oreo/majority", seed, n, _majority(rng, correct[:n]), None))
            if n >= 4:
                is_right = rng.random() < _sigmoid(1.3 + 0.45 * math.log2(n) - hard)
                records.append(_answer(rng, task_id, "oreo/beam", seed, n, is_right, 0.8))
    return records


def _answer(rng, task_id, method, seed, budget, is_correct, value):
    is_cut = bool(rng.random() < 0.02) and not is_correct
    return AnswerRecord(
        task_id=task_id,
        method=method,
        seed=seed,
        budget=budget,
        text="12 + 5 = 17\n#### 17",
        grade=Grade.CORRECT if is_correct else Grade.UNPARSED if is_cut else Grade.WRONG,
        finish_reason=FinishReason.LENGTH if is_cut else FinishReason.STOP,
        n_generated_tokens=int(budget * rng.integers(60, 90)),
        value=None if value is None else float(value),
    )


def _majority(rng, correct):
    share = correct.mean()
    return bool(share > 0.4 or (share == 0.4 and rng.random() < 0.5))


def _write_metrics(path, stage, n_steps, rng):
    path.parent.mkdir()
    lines = []
    for step in range(1, n_steps + 1):
        decay = math.exp(-3 * step / n_steps)
        noise = rng.normal(0, 1, 6)
        row = {"step": step, "epoch": step / n_steps, "loss": 0.3 + decay + 0.05 * noise[0]}
        row["grad_norm"] = math.exp(0.5 * decay + 0.3 * noise[1])
        if stage == "dpo":
            row |= {"rewards/margins": 2 - 2 * decay + 0.1 * noise[2], "rewards/accuracies": 0.9 - 0.4 * decay}
        if stage == "oreo":
            row |= {
                "loss/value": 0.16 + 0.2 * decay + 0.02 * noise[2],
                "loss/policy": 0.18 + 0.1 * decay + 0.02 * noise[3],
                "loss/kl_ref": 0.02 - 0.02 * decay + 0.002 * noise[4],
                "value/mean": 0.6 - 0.6 * decay + 0.02 * noise[2],
                "value/bellman_residual": 0.35 + 0.2 * decay + 0.02 * noise[3],
                "policy/log_ratio": 0.4 - 0.4 * decay + 0.05 * noise[4],
                "policy/entropy": 0.3 + 0.1 * decay + 0.01 * noise[5],
                "reward": 0.6 + 0.08 * noise[5],
                "policy/grad_norm": math.exp(0.3 * decay + 0.3 * noise[1]),
                "value/grad_norm": math.exp(2 * decay - 1 + 0.3 * noise[2]),
            }
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")


def _solution(rng, hard, task_id):
    """Six running sums; a slip at one of them spoils the rest, and the value sees it a little late."""
    is_correct = bool(rng.random() < _sigmoid(0.9 - hard))
    slip = 99 if is_correct else int(rng.integers(0, 6))
    tokens, values, is_action, ends = [], [], [], []
    running = int(rng.integers(1, 10))
    belief = _sigmoid(0.9 - 0.5 * hard)
    terms = [int(x) for x in rng.integers(1, 10, 6)]
    for token in [*f"{running}+" + "+".join(map(str, terms)) + "=?", "\n"]:
        tokens.append(token), values.append(belief + rng.normal(0, 0.02)), is_action.append(False)
    for i, term in enumerate(terms):
        after = running + term + (1 if i == slip else 0)
        for token in [str(running), " + ", str(term), " = ", str(after), "\n"]:
            if token == str(after):
                target = 0.05 if i >= slip else 1.0
                belief += (0.65 if i >= slip else 0.35) * (target - belief)
            tokens.append(token), values.append(belief + rng.normal(0, 0.025)), is_action.append(True)
        ends.append(len(tokens) - 1)
        running = after
    for token in ["####", " ", str(running), "</s>"]:
        tokens.append(token), values.append(belief), is_action.append(True)
    return {
        "task_id": task_id,
        "grade": "correct" if is_correct else "wrong",
        "tokens": tokens,
        "values": [round(float(v), 4) for v in values],
        "is_action": is_action,
        "step_ends": ends,
    }


def _sigmoid(x):
    return 1 / (1 + math.exp(-x))
