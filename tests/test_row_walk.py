"""One row of a file, followed by hand through reading, encoding, loss, training, checkpoint, answers and report."""

import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from posttrain.data.collate import StateLevel, collate
from posttrain.data.encode import encode_trajectory
from posttrain.data.rows import parse_trajectory
from posttrain.data.sources import OnBadRow, read_rows
from posttrain.evaluation.eval_config import EvalConfig
from posttrain.evaluation.records import read_records
from posttrain.evaluation.report import ReportConfig, write_report
from posttrain.evaluation.run import evaluate
from posttrain.evaluation.run_folder import read_solutions
from posttrain.losses import oreo_token
from posttrain.models.actor_critic import token_values
from posttrain.models.policy import load_policy
from posttrain.models.value import load_value_model
from posttrain.schema import Grade, TokenBatch
from posttrain.training.oreo import train_oreo
from posttrain.training.oreo_config import OreoConfig
from posttrain.training.oreo_networks import load_networks
from tests.evaluation.tiny_policy import word_tokenizer, write_policy, write_problems, write_value_model

TASK = "sum/2"  # 2 +1 +1 of tiny_policy.STARTS; the remainder of 4 is 0
LINE = 3  # of the marked row in the file, counted from 1
BETA, ALPHA, VALUE_LR = 0.25, 0.5, 1e-3
# The words of the prompt and of the answer, by their places in tiny_policy.WORDS.
PROMPT_IDS = [6, 9, 9, 2]  # 2 +1 +1 \n
ANSWER_IDS = [8, 4, 2, 3, 4, 1]  # a 0 \n #### 0 <eos>
IDS = PROMPT_IDS + ANSWER_IDS
FIRST, LAST = 3, 8  # states of the answer: the prompt's last token to the one before EOS


def write_rows(path: Path) -> Path:
    rows = [
        {"task_id": "sum/0", "prompt": "0 +1 \n", "completion": "#### 1", "reward": 1.0, "finish_reason": "stop"},
        {"task_id": "sum/1", "prompt": "1 +2 \n", "completion": "a 2", "reward": 0.0, "finish_reason": "length"},
        {
            "task_id": TASK,
            "prompt": "2 +1 +1 \n",
            "completion": "a 0 \n #### 0",
            "reward": 1.0,
            "finish_reason": "stop",
        },
        {"task_id": TASK, "prompt": "2 +1 +1 \n", "completion": "#### 3", "reward": 0.0, "finish_reason": "stop"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def config_of(folder: Path) -> OreoConfig:
    """One step over the whole file; the reference is another network, so that log-ratios are not 0."""
    policy = write_policy(folder / "start", seed=0)
    return OreoConfig(
        model=str(policy),
        reference=str(write_policy(folder / "reference", seed=1)),
        value_model=str(write_value_model(folder / "start_value", policy)),
        train_data=[str(write_rows(folder / "rows.jsonl"))],
        output_dir=str(folder / "run" / "oreo"),
        beta=BETA,
        alpha=ALPHA,
        policy_learning_rate=1e-3,
        value_learning_rate=VALUE_LR,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_steps=1,
        per_device_train_batch_size=4,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


@torch.no_grad()
def logp_of_answer(policy, ids: list[int]) -> torch.Tensor:
    """log π of each answer token given all before it, one unpadded row."""
    logits = policy(input_ids=torch.tensor([ids])).logits[0]
    return logits.log_softmax(-1)[torch.arange(FIRST, LAST + 1), torch.tensor(ids[FIRST + 1 :])]


@torch.no_grad()
def hidden_of(value_model, ids: list[int]) -> torch.Tensor:
    return value_model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]


def answer(config: OreoConfig, folder: Path, name: str, policy: Path, **changes: str) -> list:
    """Evaluate one policy on the problems of the rows, into the run's answers.jsonl."""
    run = Path(config.output_dir).parent
    output = run / "answers.jsonl"
    settings = {"decoding": ("greedy", "sample:4"), "max_new_tokens": 10}
    problems = write_problems(folder / "problems.jsonl")
    paths = {"problems": str(problems), "model": str(policy), "output": str(output)}
    evaluate(EvalConfig(**paths, name=name, **settings, **changes))
    return [record for record in read_records(output) if record.method.startswith(f"{name}/")]


@pytest.mark.filterwarnings("error:.*pin_memory")  # training asks for no pinned memory where nothing could use it
def test_one_row_is_followed_by_hand_from_its_line_to_the_reports_table(tmp_path):
    config = config_of(tmp_path)
    tokenizer = word_tokenizer()

    # 1. The file: the marked row is line 3 and says so.
    rows = read_rows(config.train_data[0], parse_trajectory, on_bad_row=OnBadRow.ERROR)
    marked = rows.rows[LINE - 1]
    assert marked.where == "rows.jsonl:3"
    assert (marked.task_id, marked.reward) == (TASK, 1.0)

    # 2. Tokens: prompt and answer apart, EOS since the answer ended by itself, reward on the last action.
    encoded = [encode_trajectory(row, tokenizer, i, step_delimiters=("\n",)) for i, row in enumerate(rows.rows)]
    row = encoded[LINE - 1]
    assert list(row.input_ids) == IDS
    assert row.is_action == (False,) * 4 + (True,) * 6
    assert [i for i, is_start in enumerate(row.is_step_start) if is_start] == [4, 7]  # "a" and, after "\n", "####"
    assert row.reward == (0.0,) * 9 + (1.0,)

    # 3. The batch: from tokens to states, T = 10 - 1; state t is the prefix ids[: t + 1].
    batch = TokenBatch(**collate(encoded, pad_id=0, states=StateLevel.TOKEN))
    b = batch.row_id.tolist().index(LINE - 1)
    assert batch.is_state[b].nonzero().squeeze(-1).tolist() == list(range(FIRST, LAST + 1))
    assert batch.reward[b].tolist() == [0.0] * 8 + [1.0]

    # 4. The networks, read for this row alone: log-ratios ρ_t and values V_t of its six states.
    model = load_networks(config)
    values = token_values(model, batch)
    policy, reference = (load_policy(path, dtype=torch.float32) for path in (config.model, config.reference))
    value_model = load_value_model(config.value_model, dtype=torch.float32)
    states = slice(FIRST, LAST + 1)
    rho = logp_of_answer(policy, IDS) - logp_of_answer(reference, IDS)
    value = hidden_of(value_model, IDS)[states] @ value_model.score.weight[0].detach()
    torch.testing.assert_close((values.logp - values.ref_logp)[b, states], rho, atol=1e-5, rtol=0)
    torch.testing.assert_close(values.value[b, states], value, atol=1e-4, rtol=0)  # values reach 10

    # 5. The residual, Eq. 7: δ_t = V_t - (R - β Σ_{i >= t} ρ_i), and the critic's term, the mean of δ² over 6 states.
    delta = torch.stack([value[t] - (1.0 - BETA * rho[t:].sum()) for t in range(6)])
    assert rho.abs().max() > 0.01  # another reference: the log-ratios take part
    terms = {term.name: term for term in oreo_token(values, beta=BETA, alpha=ALPHA)}
    torch.testing.assert_close(terms["value"].value[b].sum(), (delta**2).sum() / 6, rtol=1e-4, atol=0)
    torch.testing.assert_close(terms["value/bellman_residual"].value[b].sum(), delta.abs().mean(), rtol=1e-4, atol=0)

    # 6. One optimiser step over the four rows. AdamW's first step moves each weight by lr against its gradient's sign;
    # of the value head that gradient is  Σ_b Σ_t 2 δ_t h_t / (n_b · 4).
    loss = sum(float(term.coef * term.value.detach().sum()) / 4 for term in terms.values())
    gradient = torch.autograd.grad(terms["value"].value.sum() / 4, model.value.score.weight)[0][0]
    by_row = partial(row_head_gradient, value_model, values)
    torch.testing.assert_close(sum(by_row(item) for item in encoded), gradient, rtol=1e-3, atol=1e-4)
    run = train_oreo(config)
    logged = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert logged["step"] == 1
    assert logged["loss"] == pytest.approx(loss, rel=1e-4)

    # 7. The checkpoint: two Hugging Face folders, and a smaller critic's loss on these very rows.
    trained_value = load_value_model(run / "value", dtype=torch.float32)
    moved = (trained_value.score.weight - value_model.score.weight)[0].detach()
    has_gradient = gradient.abs() > 1e-3
    assert has_gradient.sum() > 16
    torch.testing.assert_close(
        moved[has_gradient], -VALUE_LR * gradient.sign()[has_gradient], rtol=0, atol=VALUE_LR / 50
    )
    after = hidden_of(trained_value, IDS)[states] @ trained_value.score.weight[0].detach()
    trained_rho = logp_of_answer(load_policy(run / "policy", dtype=torch.float32), IDS) - logp_of_answer(
        reference, IDS
    )
    later = torch.stack([after[t] - (1.0 - BETA * trained_rho[t:].sum()) for t in range(6)])
    assert later.square().mean() < delta.square().mean()

    # 8. Its problem, answered from the checkpoint: the text of the record is what the saved policy says.
    answer(config, tmp_path, "sft", Path(config.model))
    solutions = run.parent / "values.jsonl"
    records = answer(
        config, tmp_path, "oreo", run / "policy", value_model=str(run / "value"), values_output=str(solutions)
    )
    greedy = [record for record in records if record.method == "oreo/greedy"]
    (mine,) = [record for record in greedy if record.task_id == TASK]
    saved_tokenizer = PreTrainedTokenizerFast.from_pretrained(run / "policy")
    said = saved_tokenizer(mine.text)["input_ids"]
    assert (mine.grade is Grade.CORRECT) == (mine.text.rstrip().endswith("#### 0"))  # (2 + 1 + 1) mod 4
    trained_policy = load_policy(run / "policy", dtype=torch.float32)
    with torch.no_grad():
        likeliest = trained_policy(input_ids=torch.tensor([PROMPT_IDS + said])).logits[0].argmax(-1)
    assert likeliest[FIRST : FIRST + len(said)].tolist() == said

    # 9. The report: V along a solution of the same task, and the accuracy that the records give.
    (solution,) = [solution for solution in read_solutions(solutions) if solution.task_id == TASK]
    assert list(solution.tokens[:4]) == ["2", "+1", "+1", "\n"]
    start_value = hidden_of(trained_value, PROMPT_IDS)[-1] @ trained_value.score.weight[0].detach()
    assert solution.values[FIRST] == pytest.approx(float(start_value), abs=1e-4)
    page = write_report(ReportConfig(run.parent))
    accuracy = 100 * sum(record.grade is Grade.CORRECT for record in greedy) / len(greedy)
    table = (page.parent / "results.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| oreo/greedy \| 1 \| {len(greedy)} \| 1 \| {accuracy:.1f} \[", table, re.MULTILINE)


def row_head_gradient(value_model, values, item) -> torch.Tensor:
    """Σ_t 2 δ_t h_t / (n · 4) of one encoded row, with its numbers taken one state at a time."""
    start = item.is_action.index(True) - 1
    states = range(start, len(item.input_ids) - 1)
    hidden = hidden_of(value_model, list(item.input_ids))
    rho = (values.logp - values.ref_logp).detach()[item.row_id]
    gradient = torch.zeros(hidden.shape[-1])
    for t in states:
        value = float(hidden[t] @ value_model.score.weight[0].detach())
        delta = value - (sum(item.reward) - BETA * sum(float(rho[i]) for i in states if i >= t))
        gradient += 2 * delta * hidden[t] / (len(states) * 4)
    return gradient
