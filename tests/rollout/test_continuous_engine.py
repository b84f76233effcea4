"""ContinuousEngine against TransformersEngine, whatever joins, leaves, fails or is cancelled meanwhile."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from posttrain.rollout.continuous_engine import ContinuousEngine
from posttrain.rollout.model_thread import ModelThread
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.sampling import Sample, SamplingParams


@dataclass(frozen=True)
class Ask:
    prompt: tuple[int, ...]
    params: SamplingParams
    n: int
    stream: int


@pytest.fixture
def thread() -> Iterator[ModelThread]:
    thread = ModelThread()
    yield thread
    thread.close()


def model_of(family: str, dtype: torch.dtype, n_vocab: int):
    """Random weights, scaled up so that some tokens are much likelier than others."""
    torch.manual_seed(3)
    ends = {"vocab_size": n_vocab, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.3}
    if family == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, **ends)).to(dtype)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    if family == "sliding":
        return MistralForCausalLM(MistralConfig(sliding_window=8, **shape, **heads, **ends)).to(dtype)
    return LlamaForCausalLM(LlamaConfig(**shape, **heads, **ends)).to(dtype)


def asks_of_many_kinds(rng: random.Random, n_vocab: int) -> list[Ask]:
    """Prompts of 1 to 60 tokens, of which some are equal; every rule of sampling; some run out of positions."""
    prompts = [tuple(rng.randrange(3, n_vocab) for _ in range(rng.choice((1, 2, 5, 9, 30, 60)))) for _ in range(12)]
    prompts.append(tuple(rng.randrange(3, n_vocab) for _ in range(120)))
    asks = []
    for i in range(16):
        params = SamplingParams(
            max_new_tokens=rng.choice((1, 3, 12, 30)),
            temperature=rng.choice((0.0, 0.7, 1.0)),
            seed=rng.choice((0, 11)),
            top_p=rng.choice((0.9, 1.0)),
            top_k=rng.choice((0, 5)),
            stop=rng.choice(((), ("1", "+a"), ("\n",))),
        )
        asks.append(Ask(rng.choice(prompts), params, n=rng.choice((1, 1, 2, 5, 9)), stream=2**63 + i))
    return asks


def assert_same_samples(found: list[Sample], expected: list[Sample]) -> None:
    assert [s.token_ids for s in found] == [s.token_ids for s in expected]
    assert [(s.finish_reason, s.stop_string) for s in found] == [(s.finish_reason, s.stop_string) for s in expected]
    for a, b in zip(found, expected, strict=True):
        # float32 logits of size about 10 through other paddings and batch shapes: a few units of 1e-6.
        torch.testing.assert_close(torch.tensor(a.logp), torch.tensor(b.logp), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", ["llama", "gpt2", "sliding"])
def test_samples_are_those_of_the_batch_engine_whatever_joins_and_leaves(thread, tokenizer, family, dtype, seed):
    model = model_of(family, dtype, len(tokenizer))
    rng = random.Random(seed)
    asks = asks_of_many_kinds(rng, len(tokenizer))
    one_by_one = TransformersEngine(model, tokenizer, batch_size=4, device="cpu")
    expected = [one_by_one.sample([ask.prompt], ask.params, ask.n, streams=[ask.stream])[0] for ask in asks]
    engine = ContinuousEngine(model, tokenizer, max_rows=7, device="cpu", thread=thread)
    found: dict[Ask, Future[list[Sample]]] = {}

    def caller(mine: list[Ask], seconds: list[float]) -> None:
        for ask, pause in zip(mine, seconds, strict=True):
            time.sleep(pause)
            found[ask] = engine.submit(ask.prompt, ask.params, n=ask.n, stream=ask.stream)

    rng.shuffle(arrivals := list(asks))
    callers = [
        threading.Thread(target=caller, args=(arrivals[i::3], [rng.random() * 0.01 for _ in arrivals[i::3]]))
        for i in range(3)
    ]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    for ask, samples in zip(asks, expected, strict=True):
        assert_same_samples(found[ask].result(timeout=60), samples)
    assert engine.stats().n_generated_tokens == sum(len(s.token_ids) for samples in expected for s in samples)


class TurnsByHand:
    """In place of the model thread: a test takes the turns, so that what happens between two is no accident."""

    def add(self, worker) -> None:
        pass

    def wake(self) -> None:
        pass


class CountedForwards:
    """The rows and new columns of every forward pass of a model."""

    def __init__(self, model) -> None:
        self.shapes: list[tuple[int, int]] = []
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model, args, kwargs) -> None:
        self.shapes.append(tuple(kwargs["input_ids"].shape))


class FailsAt:
    """Makes the k-th forward pass from now fail, once."""

    def __init__(self, model, k: int) -> None:
        self.n_left = k
        model.register_forward_pre_hook(self._count)

    def _count(self, model, args) -> None:
        self.n_left -= 1
        if self.n_left == 0:
            raise MemoryError("no memory for this pass")


@pytest.fixture
def by_hand(model, tokenizer) -> ContinuousEngine:
    """Four rows, no sample ends before its budget."""
    engine = ContinuousEngine(model, tokenizer, max_rows=4, device="cpu", thread=TurnsByHand())
    engine.eos_ids = frozenset()
    return engine


def budget(n: int) -> SamplingParams:
    return SamplingParams(max_new_tokens=n, temperature=1.0, seed=0)


def turn_of(engine: ContinuousEngine) -> bool:
    """A turn as the model thread gives it: an error goes back to the worker."""
    try:
        return engine.take_turn()
    except MemoryError as error:
        engine.fail(error)
        return True


def run_out(engine: ContinuousEngine) -> None:
    while turn_of(engine):
        pass


def test_rows_of_one_step_share_one_forward_pass(model, by_hand):
    forwards = CountedForwards(model)
    first = by_hand.submit([3, 4], budget(6), n=2, stream=0)
    by_hand.take_turn()
    second = by_hand.submit([5], budget(3), n=1, stream=1)
    run_out(by_hand)
    assert first.done() and second.done()
    # The prompt, read once for its two rows; a step, then the newcomer's prompt; two steps of all; two without it.
    assert forwards.shapes == [(1, 2), (2, 1), (1, 1), (3, 1), (3, 1), (2, 1), (2, 1)]


def test_cancelled_rows_are_gone_before_the_next_token(model, by_hand):
    told: list[int] = []
    kept = by_hand.submit([3], budget(9), n=1, stream=0)
    cancelled = by_hand.submit([4], budget(9), n=2, stream=1, on_token=lambda place, *_: told.append(place))
    by_hand.take_turn()
    assert (by_hand.stats().n_running, told) == (3, [0, 1])
    forwards = CountedForwards(model)
    assert cancelled.cancel()
    by_hand.take_turn()
    assert forwards.shapes == [(1, 1)]  # the row of the other request alone
    assert (by_hand.stats().n_running, told) == (1, [0, 1])
    run_out(by_hand)
    assert len(kept.result()[0].token_ids) == 9
    assert wait([cancelled], timeout=0).done == {cancelled}


def test_cancelled_request_that_waits_is_never_read(model, by_hand):
    running = by_hand.submit([3], budget(3), n=4, stream=0)
    waiting = by_hand.submit([4], budget(3), n=2, stream=1)
    by_hand.take_turn()
    assert by_hand.stats().n_waiting == 2
    waiting.cancel()
    forwards = CountedForwards(model)
    by_hand.take_turn()
    assert by_hand.stats().n_waiting == 0
    run_out(by_hand)
    assert forwards.shapes == [(4, 1), (4, 1)]  # the second and third token of the other request
    assert running.done()


def test_a_request_of_many_samples_neither_blocks_those_behind_it_nor_waits_for_all_of_them(by_hand):
    order: list[str] = []

    def submit(name: str, n: int) -> None:
        future = by_hand.submit([3], budget(2), n=n, stream=len(name), on_token=lambda *_: order.append(name))
        future.add_done_callback(lambda _: order.append(name.upper()))

    submit("large", 12)  # three times the rows there are
    for name in ("b", "c", "d", "e", "f"):
        submit(name, 1)
    run_out(by_hand)
    tokens = [name for name in order if name.islower()]
    # It came first: two tokens in each of four rows. Then four that came behind it, then the fifth beside three more.
    assert tokens[:16] == [*["large"] * 8, *"bcdebcde"]
    assert tokens[16:24] == ["f", "large", "large", "large"] * 2
    assert [name for name in order if name.isupper()] == ["B", "C", "D", "E", "F", "LARGE"]
    assert tokens.count("large") == 24


def test_a_request_that_found_half_its_rows_gets_the_rest_before_those_that_came_later(by_hand):
    order: list[str] = []
    for name, n in (("a", 3), ("b", 3), ("c", 1)):
        by_hand.submit([3], budget(1), n=n, stream=0, on_token=lambda *_, name=name: order.append(name))
    run_out(by_hand)
    assert order == [*"aaab", *"bbc"]


def test_error_of_a_step_fails_the_rows_in_it_and_those_that_wait_go_on(model, by_hand):
    running = [by_hand.submit([3 + i], budget(5), n=2, stream=i) for i in range(2)]
    waiting = by_hand.submit([7], budget(5), n=1, stream=9)
    by_hand.take_turn()
    FailsAt(model, 1)
    turn_of(by_hand)
    assert [type(future.exception()) for future in running] == [MemoryError] * 2
    run_out(by_hand)
    assert len(waiting.result()[0].token_ids) == 5


def test_error_of_a_prefill_fails_its_own_requests_only(model, by_hand):
    running = by_hand.submit([3], budget(5), n=1, stream=0)
    by_hand.take_turn()
    newcomer = by_hand.submit([4], budget(5), n=2, stream=1)
    FailsAt(model, 2)  # the first pass is the step of the running row
    run_out(by_hand)
    assert isinstance(newcomer.exception(), MemoryError)
    assert len(running.result()[0].token_ids) == 5


def test_error_of_a_listener_fails_its_own_request_only(by_hand):
    def broken(place: int, token_id: int, logp: float) -> None:
        raise OSError("the client is gone")

    deaf = by_hand.submit([3], budget(5), n=2, stream=0, on_token=broken)
    other = by_hand.submit([3], budget(5), n=2, stream=0)
    run_out(by_hand)
    assert isinstance(deaf.exception(), OSError)
    assert len(other.result()[1].token_ids) == 5


def test_listener_hears_every_token_with_its_logp_in_order(by_hand):
    heard: dict[int, list[tuple[int, float]]] = {0: [], 1: [], 2: []}
    future = by_hand.submit(
        [3], budget(7), n=3, stream=0, on_token=lambda place, token_id, logp: heard[place].append((token_id, logp))
    )
    run_out(by_hand)
    for place, sample in enumerate(future.result()):
        assert heard[place] == list(zip(sample.token_ids, sample.logp, strict=True))


def test_cache_keeps_the_columns_of_its_longest_row_under_endless_load(by_hand):
    rng = random.Random(0)
    most = 0
    for i in range(1500):  # one comes with every turn, so the batch is never empty and never starts afresh
        by_hand.submit([3] * rng.randint(1, 10), budget(rng.randint(1, 6)), n=1, stream=i)
        by_hand.take_turn()
        most = max(most, by_hand.stats().n_columns)
    assert by_hand.stats().n_generated_tokens > 4000
    assert most <= 10 + 5  # a prompt and all its new tokens but the last, which is never read


def test_close_cancels_what_runs_and_what_waits_and_refuses_more(model, tokenizer):
    thread = ModelThread()
    engine = ContinuousEngine(model, tokenizer, max_rows=2, device="cpu", thread=thread)
    engine.eos_ids = frozenset()
    is_under_way = threading.Event()
    futures = [
        engine.submit([3], budget(120), n=2, stream=i, on_token=lambda *_: is_under_way.set()) for i in range(40)
    ]
    assert is_under_way.wait(timeout=30)
    thread.close()
    thread.close()
    assert all(future.done() for future in futures)
    with pytest.raises(CancelledError):
        futures[-1].result()
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit([3], budget(1), n=1, stream=0)
    assert engine.stats().n_running == engine.stats().n_waiting == 0


@pytest.mark.parametrize(
    ("prompt", "n", "stream", "message"),
    [
        ([], 1, 0, "the prompt has no tokens"),
        ([3] * 128, 1, 0, "the prompt has 128 tokens, the model 128 positions"),
        ([3, 10**6], 1, 0, "ids from 3 to 1000000"),
        ([-1], 1, 0, "ids from -1 to -1"),
        ([3], 0, 0, "n is 0"),
        ([3], 1, 2**64, "unsigned 64-bit"),
    ],
)
def test_request_that_cannot_be_served_is_refused_before_it_reaches_the_batch(by_hand, prompt, n, stream, message):
    with pytest.raises(ValueError, match=message):
        by_hand.submit(prompt, budget(1), n=n, stream=stream)
    assert by_hand.take_turn() is False


def test_recurrent_model_is_refused_with_the_reason(tokenizer):
    model = MambaForCausalLM(MambaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, state_size=4))
    with pytest.raises(ValueError, match=r"Mamba.*: its rows cannot be joined"):
        ContinuousEngine(model, tokenizer, max_rows=1, device="cpu", thread=TurnsByHand())
