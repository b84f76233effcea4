"""A request after every check: what the networks are to do, whatever the route was."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from posttrain.boxed import last_boxed
from posttrain.rewards.final_number import final_answer
from posttrain.sampling import SamplingParams
from posttrain.search.budget import Budget
from posttrain.search.ranking import Aggregate
from posttrain.search.spec import VOTES, Algorithm, SearchSpec, SearchSpecError, StepSpec, start
from posttrain.search.vote import AnswerOf
from posttrain.serve.backend import Backend
from posttrain.serve.errors import ApiError
from posttrain.serve.limits import Limits
from posttrain.serve.prompts import Prompts
from posttrain.serve.requests import ChatRequest, CompletionRequest, SamplingRequest, SearchRequest
from posttrain.serve.text_stream import decode

DEFAULT_COMPLETION_TOKENS = 16  # of /v1/completions, as OpenAI has it; a chat answer may fill the positions
ANSWERS: Mapping[str, Callable[[str], str | None]] = {"final_number": final_answer, "boxed": last_boxed}


@dataclass(frozen=True, slots=True)
class SearchAsk:
    spec: SearchSpec
    answer_of: AnswerOf | None
    returns_tree: bool


@dataclass(frozen=True, slots=True)
class Ask:
    prompts: tuple[tuple[int, ...], ...]
    sampling: SamplingParams
    n: int  # choices of each prompt
    search: SearchAsk | None  # None: the choices are plain samples
    is_streamed: bool
    has_usage_chunk: bool
    has_logprobs: bool
    n_top: int  # likeliest tokens to tell of at each place

    @property
    def rows(self) -> int:
        """Sequences that are sampled side by side."""
        return self.n * len(self.prompts) if self.search is None else self.search.spec.n_branches


class Desk:
    """Turns bodies into asks, or refuses them."""

    def __init__(self, backend: Backend, limits: Limits) -> None:
        self.backend = backend
        self.limits = limits
        self.prompts = Prompts(backend.tokenizer, n_positions=backend.n_positions)

    async def of_chat(self, body: ChatRequest) -> Ask:
        self.require_model(body.model, self.backend.policy_name)
        if body.max_tokens is not None and body.max_completion_tokens is not None:
            raise _refused("max_tokens", "is the old name of max_completion_tokens: give one of them")
        prompt = await self.prompts.of_chat(body.messages)
        max_tokens = body.max_completion_tokens or body.max_tokens
        room = self.prompts.require_room(prompt, max_tokens, param="messages")
        if body.top_logprobs and not body.logprobs:
            raise _refused("top_logprobs", "goes with logprobs: true")
        return self._ask(body, (prompt,), room, has_logprobs=bool(body.logprobs), n_top=body.top_logprobs or 0)

    async def of_completion(self, body: CompletionRequest) -> Ask:
        self.require_model(body.model, self.backend.policy_name)
        prompts = await self.prompts.of_completion(body)
        max_tokens = body.max_tokens or DEFAULT_COMPLETION_TOKENS
        room = max(self.prompts.require_room(prompt, max_tokens, param="prompt") for prompt in prompts)
        has_logprobs = body.logprobs is not None
        return self._ask(body, tuple(prompts), room, has_logprobs=has_logprobs, n_top=body.logprobs or 0)

    def require_model(self, name: str, served: str | None) -> None:
        if name != served:
            known = [known for known in (self.backend.policy_name, self.backend.value_name) if known is not None]
            raise ApiError(
                404,
                f"model: {name!r} cannot be asked for this; the server has {', '.join(known)} (see /v1/models)",
                code="model_not_found",
                param="model",
            )

    def _ask(
        self,
        body: SamplingRequest,
        prompts: tuple[tuple[int, ...], ...],
        max_tokens: int,
        *,
        has_logprobs: bool,
        n_top: int,
    ) -> Ask:
        n = body.n or 1
        if n * len(prompts) > self.limits.n:
            asked = f"{n}" if len(prompts) == 1 else f"{n} for each of {len(prompts)} prompts"
            raise _refused("n", f"is {asked}; at most {self.limits.n} choices are drawn in one request")
        if body.stream_options is not None and not body.stream:
            raise _refused("stream_options", "goes with stream: true")
        wanted = None if body.search is None or body.search.algorithm == "none" else body.search
        seed = body.seed if wanted is None or wanted.seed is None else wanted.seed
        sampling = SamplingParams(
            max_new_tokens=max_tokens,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=secrets.randbits(63) if seed is None else seed,
            stop=tuple([body.stop] if isinstance(body.stop, str) else body.stop or ()),
        )
        if wanted is not None and n * len(prompts) > 1:
            raise _refused("n", "with a search there is one prompt and one answer; best_of_n has search.n")
        if wanted is not None and has_logprobs:
            raise _refused("logprobs", "is of plain samples; the nodes of search.return_tree have logp")
        return Ask(
            prompts=prompts,
            sampling=sampling,
            n=n,
            search=wanted and self._search(wanted, prompts[0], sampling),
            is_streamed=bool(body.stream),
            has_usage_chunk=body.stream_options is not None and body.stream_options.include_usage,
            has_logprobs=has_logprobs,
            n_top=n_top,
        )

    def _search(self, body: SearchRequest, prompt: tuple[int, ...], sampling: SamplingParams) -> SearchAsk:
        try:
            spec = _spec(body)
            if spec.algorithm in VOTES and body.answer is None:
                raise SearchSpecError("answer", None, f"final_number or boxed: what {spec.algorithm} compares")
            spec.require_within(max_branches=self.limits.branches, max_n=self.limits.n)
            answer_of = None if body.answer is None else _answer_reader(self.backend.tokenizer, body.answer)
            start(spec, prompt, sampling, 0, answer_of).close()
        except SearchSpecError as error:
            where = "" if error.field in ("temperature", "stop") else "search."  # those stand beside the search
            raise ApiError(422, f"{where}{error}", code="invalid_value", param=where + error.field) from error
        if spec.needs_values and self.backend.value_name is None:
            raise _refused(
                "search",
                f"{spec.algorithm} asks a value model and the server has none: start it with --value_model, or set "
                "search.value_weight to 0 to rank by log π",
            )
        return SearchAsk(spec, answer_of, body.return_tree)


def _spec(body: SearchRequest) -> SearchSpec:
    return SearchSpec(
        algorithm=Algorithm(body.algorithm),
        n=body.n,
        beam_width=body.beam_width,
        expansions=body.expansions,
        step=StepSpec(tuple(body.step.stop), body.step.max_tokens),
        max_steps=body.max_steps,
        value_weight=body.value_weight,
        length_penalty=body.length_penalty,
        aggregate=Aggregate(body.aggregate),
        budget=Budget(body.budget.tokens, body.budget.value_calls, body.budget.ms),
        answers_take_width=body.answers_take_width,
        scores_end=body.scores_end,
    )


def _answer_reader(tokenizer: PreTrainedTokenizerBase, name: str) -> AnswerOf:
    return lambda token_ids: ANSWERS[name](decode(tokenizer, token_ids))


def _refused(param: str, why: str) -> ApiError:
    return ApiError(422, f"{param}: {why}", code="invalid_value", param=param)
