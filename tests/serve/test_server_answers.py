"""The live server through OpenAI's own client, curl and plain HTTP."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from typing import Any

import httpx
import pytest

from posttrain.serve.serve_config import ServeConfig
from tests.serve.tiny_server import Served, served

openai = pytest.importorskip("openai", reason="needs the openai client")

QUESTION = [{"role": "user", "content": "1+2="}]
BEAM = {"algorithm": "beam", "beam_width": 2, "expansions": 3, "max_steps": 4, "step": {"max_tokens": 20}}


@pytest.fixture(scope="module")
def client(server: Served):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none is asked for", max_retries=0)


def ask(client: Any, **fields: Any) -> Any:
    given = {"model": "tiny-policy", "messages": QUESTION, "max_tokens": 40, "seed": 5}
    return client.chat.completions.create(**given | fields)


def test_models_are_the_policy_and_the_value_model(client: Any) -> None:
    assert {model.id: model.role for model in client.models.list()} == {"tiny-policy": "policy", "tiny-value": "value"}


def test_a_seed_gives_the_same_choices_and_other_seeds_others(client: Any) -> None:
    def texts(seed: int) -> list[str]:
        return [choice.message.content for choice in ask(client, seed=seed, n=3).choices]

    assert texts(5) == texts(5)
    assert len(set(texts(5))) == 3
    assert texts(5) != texts(6)


def test_stream_joins_to_the_text_that_is_answered_at_once_for_every_choice(client: Any) -> None:
    whole = ask(client, n=3, stop=["a\n", "1"])
    pieces = {0: "", 1: "", 2: ""}
    reasons = {}
    usage = None
    for chunk in ask(client, n=3, stop=["a\n", "1"], stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            pieces[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    assert pieces == {choice.index: choice.message.content for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert usage == whole.usage


def test_stop_strings_end_an_answer_and_are_left_out(client: Any) -> None:
    free = ask(client, temperature=0)
    stop = free.choices[0].message.content[6:8]
    stopped = ask(client, temperature=0, stop=stop)
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].message.content == free.choices[0].message.content.split(stop)[0]


def test_max_tokens_cuts_an_answer(client: Any) -> None:
    reply = ask(client, max_tokens=3, temperature=0)
    assert reply.choices[0].finish_reason == "length"
    # a question of 19 tokens: "user:1+2=\nassistant:", a character each
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (19, 3, 22)


def test_logprobs_are_those_of_the_tokens_of_the_answer(client: Any) -> None:
    choice = ask(client, logprobs=True, max_tokens=12).choices[0]
    tokens = [entry for entry in choice.logprobs.content if not entry.token.startswith("<")]
    assert "".join(entry.token for entry in tokens) == choice.message.content
    assert all(entry.logprob < 0 for entry in tokens)


def test_top_logprobs_are_of_the_likeliest_tokens_at_each_place_and_are_streamed_too(client: Any) -> None:
    asked = {"logprobs": True, "top_logprobs": 3, "max_tokens": 12, "top_p": 0.9}
    content = ask(client, **asked).choices[0].logprobs.content
    for entry in content:
        top = [one.logprob for one in entry.top_logprobs]
        assert len(top) == 3 and top == sorted(top, reverse=True)
        assert entry.logprob in top or entry.logprob < top[-1]
    chunks = [chunk.choices[0].logprobs for chunk in ask(client, stream=True, **asked)]
    assert [entry for logprobs in chunks if logprobs for entry in logprobs.content] == content
    greedy = ask(client, **asked, temperature=0).choices[0].logprobs.content
    assert all(
        entry.top_logprobs[0].logprob == entry.logprob and entry.top_logprobs[0].bytes == entry.bytes
        for entry in greedy
    )
    assert all(entry.top_logprobs == [] for entry in ask(client, logprobs=True).choices[0].logprobs.content)


def test_text_completions_tell_the_likeliest_tokens_and_the_chosen_one_by_their_texts(client: Any) -> None:
    asked = {"model": "tiny-policy", "prompt": "1+", "max_tokens": 9, "seed": 5}
    logprobs = client.completions.create(**asked, logprobs=2).choices[0].logprobs
    for token, logp, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert top[token] == logp
        assert len(top) == (2 if logp >= sorted(top.values())[-2] else 3)
    assert client.completions.create(**asked, logprobs=0).choices[0].logprobs.top_logprobs is None


def test_text_completions_take_several_prompts_and_token_ids(client: Any) -> None:
    def complete(prompt: Any) -> list[str]:
        reply = client.completions.create(model="tiny-policy", prompt=prompt, temperature=0, max_tokens=9)
        return [choice.text for choice in reply.choices]

    # Ids by PIECES: "1" is 8, "+" 17, "a" 26
    both = complete(["1+", "a+"])
    assert both == complete("1+") + complete("a+") == complete([[8, 17], [26, 17]])
    assert complete([8, 17]) == complete("1+")


def test_search_through_the_official_client_streams_the_winner_alone(client: Any) -> None:
    whole = ask(client, extra_body={"search": {**BEAM, "return_tree": True}})
    streamed = list(ask(client, stream=True, extra_body={"search": BEAM}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == whole.choices[0].message.content
    # The same loop that reads an ordinary stream: each event has one choice, and only the winner's have text.
    events = [chunk for chunk in streamed if chunk.object.startswith("search.")]
    assert all(event.choices[0].delta.content is None for event in events)
    assert [event.object for event in events] == ["search.step"] * whole.usage.search_steps + ["search.result"]
    assert events[-1].winner == whole.search["winner"]


def test_helper_of_the_official_client_accumulates_a_search_to_its_answer(client: Any) -> None:
    whole = ask(client, extra_body={"search": BEAM})
    with client.chat.completions.stream(
        model="tiny-policy", messages=QUESTION, max_tokens=40, seed=5, extra_body={"search": BEAM}
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == whole.choices[0].message.content


def test_step_events_hold_each_node_once_or_as_it_changes_and_make_the_returned_tree(server: Served) -> None:
    body = {"model": "tiny-policy", "messages": QUESTION, "max_tokens": 40, "seed": 5, "search": BEAM}
    nodes: dict[int, Any] = {}
    text, result = "", {}
    for event, data in events(server.url, body):
        for node in data.get("nodes", ()):
            assert nodes.get(node["index"]) != node
            nodes[node["index"]] = node
        if event == "step":
            best = data["best"]
            assert best["text"] == text_to(nodes, best["index"])
            assert all(nodes[index]["state"] == "open" for index in data["kept"])
        if event == "result":
            result = data
        text += data["choices"][0]["delta"].get("content", "")
    whole = httpx.post(f"{server.url}/v1/chat/completions", json=with_tree(body)).json()
    # The second search finds what the first has read and so reads in other batches: float32, sums of 20 log π.
    tree = [
        {key: pytest.approx(x, abs=1e-4) if isinstance(x, float) else x for key, x in node.items()}
        for node in whole["search"]["tree"]["nodes"]
    ]
    assert [{**nodes[i], "token_ids": tree[i]["token_ids"]} for i in sorted(nodes)] == tree
    assert text == text_to(nodes, result["winner"]) == whole["choices"][0]["message"]["content"]
    assert result["usage"] == {**whole["usage"], "value_tokens_cached": result["usage"]["value_tokens_cached"]}


@pytest.mark.parametrize("algorithm", ["dvts", "best_of_n", "majority", "weighted_majority"])
def test_each_algorithm_answers_with_its_best_node(server: Served, algorithm: str) -> None:
    search = {"algorithm": algorithm, "n": 6, "beam_width": 2, "expansions": 3, "max_steps": 3, "answer": "boxed"}
    body = {"model": "tiny-policy", "messages": QUESTION, "max_tokens": 40, "seed": 5, "search": search}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=with_tree(body)).json()
    nodes = reply["search"]["tree"]["nodes"]
    winner = nodes[reply["search"]["winner"]]
    pool = [node for node in nodes if node["state"] == "answer"] or [n for n in nodes if n["state"] == "cut"]
    assert winner["score"] == max(node["score"] for node in pool)
    assert reply["choices"][0]["message"]["content"] == text_to(dict(enumerate(nodes)), winner["index"])


def test_an_agents_turn_is_valued_after_its_end(server: Served) -> None:
    """scores_end reads V in the afterstate: after the EOS (2) of the turn, not before it."""
    search = {"algorithm": "best_of_n", "n": 8, "scores_end": True, "return_tree": True}
    body = {"model": "tiny-policy", "messages": QUESTION, "max_tokens": 60, "seed": 5, "search": search}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body).json()
    tree = reply["search"]["tree"]
    winner = tree["nodes"][reply["search"]["winner"]]
    assert winner["state"] == "answer"
    turn = tree["prompt_token_ids"] + winner["token_ids"]
    before, after = values(server, {"token_ids": turn}, "all")["values"][-2:]
    assert turn[-1] == 2
    assert winner["value"] == pytest.approx(after, rel=1e-4)
    assert abs(before - after) > 1e-2


def test_budget_of_tokens_ends_a_search_with_the_best_so_far(server: Served) -> None:
    search = {**BEAM, "budget": {"tokens": 60}}
    body = {"model": "tiny-policy", "messages": QUESTION, "max_tokens": 100, "seed": 5, "search": search}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body).json()
    assert reply["usage"]["generated_tokens"] <= 60
    assert reply["search"]["is_over_budget"]


def test_values_at_last_step_and_every_token_agree(server: Served) -> None:
    given = {"prompt": "1+2=\n", "completion": "3\n4a\n5"}
    everywhere = values(server, given, "all")
    steps = values(server, given, "step")
    last = values(server, given, "last")
    # A token per character: "1+2=\n" 0 to 4, "3\n" to 6, "4a\n" to 9, and a step that is not ended, "5", at 10.
    assert everywhere["positions"] == list(range(11))
    assert (steps["positions"], steps["n_prompt_tokens"]) == ([6, 9, 10], 5)
    assert steps["values"] == [everywhere["values"][i] for i in (6, 9, 10)]
    assert last["values"] == pytest.approx(everywhere["values"][10:], rel=1e-4)
    assert steps["texts"] == ["1+2=\n3\n", "4a\n", "5"]
    assert everywhere["texts"][5:] == ["3", "\n", "4", "a", "\n", "5"]


def test_plain_curl_streams_a_search(server: Served) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    body = {"model": "tiny-policy", "messages": QUESTION, "max_tokens": 40, "seed": 5, "stream": True, "search": BEAM}
    command = ["curl", "-sN", f"{server.url}/v1/chat/completions", "-H", "Content-Type: application/json"]
    said = subprocess.run([*command, "-d", json.dumps(body)], capture_output=True, text=True, check=True).stdout
    assert said.count("event: step\n") >= 2
    assert said.endswith("data: [DONE]\n\n")


def test_health_and_readiness_fail_once_the_networks_have_ended(config: ServeConfig) -> None:
    with served(config) as own:
        asyncio.run(own.backend.close())
        for route in ("health", "ready"):
            reply = httpx.get(f"{own.url}/{route}")
            assert (reply.status_code, reply.json()) == (503, {"status": "dead"})


def test_status_routes_and_the_page_answer(server: Served) -> None:
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{server.url}/ready").json() == {"status": "ready"}
    assert httpx.get(f"{server.url}/version").json()["api"] == "v1"
    page = httpx.get(f"{server.url}/")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert httpx.get(f"{server.url}/page/page.js").status_code == 200
    assert httpx.get(f"{server.url}/page/../app.py").status_code == 404


def with_tree(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "search": {**body["search"], "return_tree": True}}


def values(server: Served, given: dict[str, Any], position: str) -> dict[str, Any]:
    reply = httpx.post(f"{server.url}/v1/values", json={"input": given, "position": position})
    assert reply.status_code == 200, reply.text
    return reply.json()["data"][0]


def events(url: str, body: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(event, data) of a stream, its last one left out."""
    text = httpx.post(f"{url}/v1/chat/completions", json={**body, "stream": True}).text
    blocks = [block.split("\n") for block in text.strip().split("\n\n") if not block.startswith(":")]
    assert blocks.pop() == ["data: [DONE]"]
    named = [["event: message", *lines] if len(lines) == 1 else lines for lines in blocks]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in named]


def text_to(nodes: dict[int, Any], index: int | None) -> str:
    """The texts of the nodes from the root to this one."""
    text = ""
    while index is not None:
        text = nodes[index]["text"] + text
        index = nodes[index]["parent"]
    return text
