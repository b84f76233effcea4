"""The turns of ContinuousEngine, taken by hand: who shares a forward pass, who goes first, who leaves, who fails."""

from __future__ import annotations

import random
from concurrent.futures import wait
from dataclasses import replace

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from posttrain.models.cached_rows import CachedRows
from posttrain.models.prefix_cache import PrefixCache
from posttrain.rollout.continuous_engine import ContinuousEngine
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.sampling import SamplingParams, TopTokens
from tests.rollout.tiny_engines import CountedForwards, TurnsByHand


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


def test_error_of_joining_fails_the_rows_of_both_sides_and_those_that_join_later_go_on(by_hand, monkeypatch):
    def no_room(self, other) -> None:
        raise MemoryError("no memory for this cache")

    running = by_hand.submit([3], budget(5), n=1, stream=0)
    by_hand.take_turn()
    # Too unlike in length to be read together, so the short one joins first.
    short, long = by_hand.submit([4], budget(5), n=1, stream=1), by_hand.submit([5] * 100, budget(5), n=2, stream=2)
    with monkeypatch.context() as patched:
        patched.setattr(CachedRows, "join", no_room)
        by_hand.take_turn()
    run_out(by_hand)
    assert [type(future.exception()) for future in (running, short)] == [MemoryError] * 2
    assert [len(sample.token_ids) for sample in long.result()] == [5, 5]


def test_error_of_a_listener_fails_its_own_request_only(by_hand):
    def broken(place: int, token_id: int, logp: float, top: TopTokens) -> None:
        raise OSError("the client is gone")

    deaf = by_hand.submit([3], budget(5), n=2, stream=0, on_token=broken)
    other = by_hand.submit([3], budget(5), n=2, stream=0)
    run_out(by_hand)
    assert isinstance(deaf.exception(), OSError)
    assert len(other.result()[1].token_ids) == 5


def test_listener_hears_every_token_with_its_logp_in_order(by_hand):
    heard: dict[int, list[tuple[int, float]]] = {0: [], 1: [], 2: []}
    future = by_hand.submit(
        [3], budget(7), n=3, stream=0, on_token=lambda place, token_id, logp, _: heard[place].append((token_id, logp))
    )
    run_out(by_hand)
    for place, sample in enumerate(future.result()):
        assert heard[place] == list(zip(sample.token_ids, sample.logp, strict=True))


def test_each_row_is_told_as_many_of_the_likeliest_tokens_as_it_asked_for(by_hand, model):
    """Of the whole vocabulary at temperature 1, whatever the rule that the tokens are sampled by."""
    cold = replace(budget(6), temperature=0.5, top_p=0.3)
    heard: list[TopTokens] = []
    asks = {0: budget(6), 2: cold, 5: budget(6), 10**6: budget(6)}
    futures = {
        n_top: by_hand.submit(
            [3, 4], params, n=1, stream=n_top, n_top=n_top, on_token=lambda *token: heard.append(token)
        )
        for n_top, params in asks.items()
    }
    run_out(by_hand)
    n_vocab = model.config.vocab_size
    for n_top, future in futures.items():
        (sample,) = future.result()
        assert len(sample.top) == (len(sample.token_ids) if n_top else 0)
        for i, top in enumerate(sample.top):
            with torch.no_grad():
                logits = model(torch.tensor([[3, 4, *sample.token_ids[:i]]])).logits[0, -1]
            expected = logits.log_softmax(-1).sort(descending=True)
            assert [token_id for token_id, _ in top] == expected.indices[:n_top].tolist()
            # float32 logits of size about 10 through another cache
            torch.testing.assert_close(
                torch.tensor([logp for _, logp in top]), expected.values[:n_top], rtol=0, atol=2e-5
            )
            assert dict(top).get(sample.token_ids[i], sample.logp[i]) == sample.logp[i]
    assert len(futures[10**6].result()[0].top[0]) == n_vocab
    told = [top for *_, top in heard]
    assert sorted(map(len, told)) == sorted(
        min(n_top, n_vocab) for n_top, f in futures.items() for _ in f.result()[0].logp
    )


def test_cache_keeps_the_columns_of_its_longest_row_under_endless_load(by_hand):
    rng = random.Random(0)
    most = 0
    for i in range(500):  # one comes with every turn, so the batch is never empty and never starts afresh
        by_hand.submit([3] * rng.randint(1, 10), budget(rng.randint(1, 6)), n=1, stream=i)
        by_hand.take_turn()
        most = max(most, by_hand.stats().n_columns)
    assert by_hand.stats().n_generated_tokens > 1400
    assert most <= 10 + 5  # a prompt and all its new tokens but the last, which is never read


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


def test_prompt_that_goes_on_from_a_sample_is_read_from_where_it_was_sampled(model, tokenizer):
    prefix_cache = PrefixCache(model.base_model, max_tokens=200)
    engine = ContinuousEngine(
        model, tokenizer, max_rows=4, device="cpu", thread=TurnsByHand(), prefix_cache=prefix_cache
    )
    engine.eos_ids = frozenset()
    first = engine.submit([3, 4, 5], budget(6), n=3, stream=0)
    run_out(engine)
    assert prefix_cache.n_tokens_read == 3
    steps = [[3, 4, 5, *sample.token_ids] for sample in first.result()]
    again = [engine.submit(step, budget(2), n=2, stream=i) for i, step in enumerate(steps)]
    run_out(engine)
    # The last token of each step was sampled and never read; everything before it is found.
    assert prefix_cache.n_tokens_read == 3 + 3
    (expected,) = TransformersEngine(model, tokenizer, batch_size=2, device="cpu").sample(
        [steps[1]], budget(2), 2, streams=[1]
    )
    assert [sample.token_ids for sample in again[1].result()] == [sample.token_ids for sample in expected]


def test_prefix_cache_that_cannot_hold_one_sequence_is_refused(model, tokenizer):
    prefix_cache = PrefixCache(model.base_model, max_tokens=100)
    with pytest.raises(ValueError, match="room for 100 tokens and a sequence may have 128"):
        ContinuousEngine(model, tokenizer, max_rows=4, device="cpu", thread=TurnsByHand(), prefix_cache=prefix_cache)
