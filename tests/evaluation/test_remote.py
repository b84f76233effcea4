"""Evaluation through a URL, against a real HTTP server around the same policy that answers in process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from posttrain.evaluation import remote
from posttrain.evaluation.eval_config import EvalConfig
from posttrain.evaluation.records import read_records
from posttrain.evaluation.remote import RemoteError, RemoteModel
from posttrain.evaluation.run import evaluate
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.sampling import SamplingParams
from posttrain.schema import Message
from tests.evaluation.tiny_policy import STARTS, write_policy, write_problems

PARAMS = SamplingParams(max_new_tokens=8, temperature=0.0, seed=0)


@dataclass
class Server:
    """Answers as an OpenAI-compatible server would; `refusals` are given first."""

    engine: TransformersEngine
    tokenizer: PreTrainedTokenizerFast
    refusals: list[tuple[int, str]] = field(default_factory=list)  # status, Retry-After
    requests: list[tuple[str, dict, str | None]] = field(default_factory=list)  # path, body, Authorization
    n_tokens: int = 0  # generated in all
    n_dropped: int = 0  # choices left out of each answer
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, path: str, body: dict) -> dict:
        is_chat = path.endswith("/chat/completions")
        text = "".join(m["content"] for m in body["messages"]) if is_chat else body["prompt"]
        params = SamplingParams(
            max_new_tokens=body["max_tokens"], temperature=body["temperature"], seed=body["seed"], top_p=body["top_p"]
        )
        with self.lock:  # one model, many requests
            [samples] = self.engine.sample([self.tokenizer(text)["input_ids"]], params, body["n"])
        choices = []
        for index, sample in enumerate(samples[: len(samples) - self.n_dropped]):
            said = self.tokenizer.decode(sample.token_ids, skip_special_tokens=True)
            told = {"message": {"role": "assistant", "content": said}} if is_chat else {"text": said}
            choices.append({"index": index, "finish_reason": sample.finish_reason.value, **told})
        usage = {"completion_tokens": sum(len(sample.token_ids) for sample in samples)}
        self.n_tokens += usage["completion_tokens"]
        return {"choices": choices[::-1], "usage": usage}  # in any order, as a server may


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    return write_policy(tmp_path_factory.mktemp("remote") / "policy")


@pytest.fixture
def server(policy) -> Iterator[Server]:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(policy)
    engine = TransformersEngine(AutoModelForCausalLM.from_pretrained(policy), tokenizer, batch_size=8, device="cpu")
    state = Server(engine, tokenizer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.requests.append((self.path, body, self.headers.get("Authorization")))
            status, retry_after = state.refusals.pop(0) if state.refusals else (200, "")
            told = json.dumps(state.answer(self.path, body) if status == 200 else {"error": "not now"}).encode()
            self.send_response(status)
            if retry_after:
                self.send_header("Retry-After", retry_after)
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, *_: object) -> None:
            """Requests are kept in `state.requests`, not printed."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        state.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
        yield state
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_greedy_answers_through_a_url_are_those_of_the_policy_in_process(server, policy, tmp_path):
    problems = write_problems(tmp_path / "problems.jsonl")
    common = {"problems": str(problems), "name": "tiny", "max_new_tokens": 12, "problems_per_chunk": 2}
    evaluate(EvalConfig(**common, model=str(policy), output=str(tmp_path / "here.jsonl")))
    there = {"engine": "url", "url": server.url, "model": "tiny", "n_parallel": 3}
    evaluate(EvalConfig(**common, **there, output=str(tmp_path / "there.jsonl")))
    here, through = (
        [(r.task_id, r.text, r.grade, r.finish_reason, r.n_generated_tokens) for r in read_records(tmp_path / name)]
        for name in ("here.jsonl", "there.jsonl")
    )
    assert through == here
    assert len(here) == len(STARTS)
    assert {body["model"] for _, body, _ in server.requests} == {"tiny"}


def test_samples_of_a_problem_come_from_one_request_with_a_seed_of_its_own(server, tmp_path):
    problems = write_problems(tmp_path / "problems.jsonl")
    config = EvalConfig(
        problems=str(problems), model="tiny", name="tiny", engine="url", url=server.url,
        decoding=("sample:4",), max_new_tokens=12, output=str(tmp_path / "answers.jsonl"),
    )  # fmt: skip
    evaluate(config)
    assert {body["n"] for _, body, _ in server.requests} == {4}
    assert len({body["seed"] for _, body, _ in server.requests}) == len(STARTS)
    records = read_records(tmp_path / "answers.jsonl")
    samples = [record for record in records if record.method == "tiny/sample"]
    assert sum(record.n_generated_tokens for record in samples) == server.n_tokens  # shared out, nothing lost
    n_before = len(server.requests)
    evaluate(config)
    assert len(server.requests) == n_before  # all keys are on file


def test_a_chat_is_sent_as_messages_and_the_key_as_a_bearer_token(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    [[answer]] = RemoteModel(server.url, "tiny").chat([[Message("user", "1 2 \n")]], PARAMS, 1, seeds=[0])
    [(path, body, key)] = server.requests
    assert (path, body["messages"], key) == (
        "/v1/chat/completions", [{"role": "user", "content": "1 2 \n"}], "Bearer secret",
    )  # fmt: skip
    [[same]] = RemoteModel(server.url, "tiny").complete(["1 2 \n"], PARAMS, 1, seeds=[0])
    assert answer == same


def test_a_busy_server_is_asked_again_and_a_refusal_is_told_at_once(server):
    server.refusals = [(503, ""), (429, "0")]
    [[answer]] = RemoteModel(server.url, "tiny").complete(["1 \n"], PARAMS, 1, seeds=[0])
    assert answer.n_tokens > 0
    assert len(server.requests) == 3
    server.refusals = [(401, "")]
    with pytest.raises(RemoteError, match=r"/v1/completions answered 401: .*not now"):
        RemoteModel(server.url, "tiny").complete(["1 \n"], PARAMS, 1, seeds=[0])
    assert len(server.requests) == 4
    server.refusals = [(503, "")] * remote.N_TRIES
    with pytest.raises(RemoteError, match="answered 503"):
        RemoteModel(server.url, "tiny").complete(["1 \n"], PARAMS, 1, seeds=[0])


def test_a_server_that_is_not_there_or_does_not_know_n_is_named(server):
    with pytest.raises(RemoteError, match=r"does not answer .*is the server up, and the URL right"):
        RemoteModel("http://127.0.0.1:9/v1", "tiny").complete(["1 \n"], PARAMS, 1, seeds=[0])
    server.n_dropped = 1
    with pytest.raises(RemoteError, match="gave 1 choices, 2 were asked for: does it support n"):
        RemoteModel(server.url, "tiny").complete(["1 \n"], PARAMS, 2, seeds=[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "url"}, "set --engine url --url URL, or neither"),
        ({"url": "http://127.0.0.1:9/v1"}, "set --engine url --url URL, or neither"),
        ({"engine": "url", "url": "u", "decoding": ("likelihood:2",)}, "engine url decodes greedy and sample:N"),
        ({"engine": "url", "url": "u", "value_model": "v"}, "a value model reads tokens"),
    ],
)
def test_what_a_url_cannot_do_is_refused_before_anything_is_asked(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        evaluate(EvalConfig(problems="gsm8k", model="tiny", output=str(tmp_path / "a.jsonl"), **changes))
