"""What may be asked: the bodies of requests, with every bound that needs no tokenizer.

A parameter that is not named here is refused, and one of OpenAI's that this server cannot honour is named with the one
value that changes nothing: nothing is ignored in silence but what only labels a request.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from posttrain.sampling import MIN_TEMPERATURE
from posttrain.search.spec import SearchSpec
from posttrain.serve.limits import MAX_MESSAGES, MAX_STEPS, MAX_STOP_CHARACTERS, MAX_STOP_STRINGS

MAX_SEED = 2**63 - 1  # the largest integer that every JSON reader keeps whole
MAX_COUNT = 2**31 - 1
_SPEC = SearchSpec()  # whose defaults are the request's


def _encodable(text: str) -> str:
    """JSON can name half a surrogate pair, which no tokenizer reads."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half of a surrogate pair, which is no text") from None
    return text


def _not_tiny(temperature: float) -> float:
    if 0 < temperature < MIN_TEMPERATURE:
        raise ValueError(f"needs 0 (greedy) or {MIN_TEMPERATURE} to 2")
    return temperature


Text = Annotated[str, AfterValidator(_encodable)]
Temperature = Annotated[float, Field(ge=0, le=2), AfterValidator(_not_tiny)]
Texts = Annotated[list[Text], Field(min_length=1)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS), AfterValidator(_encodable)]
StopStrings = Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)]
TokenId = Annotated[int, Field(ge=0, le=MAX_COUNT)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(Body):
    type: Literal["text"]
    text: Text


class ChatMessage(Body):
    role: Literal["system", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart], Field(min_length=1)]


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]


class StreamOptions(Body):
    include_usage: bool = False


class TextFormat(Body):
    type: Literal["text"]


class StepRequest(Body):
    """Where a step ends."""

    stop: Annotated[StopStrings, Field(min_length=1)] = list(_SPEC.step.stop)
    max_tokens: Count | None = Field(default=None, description="of one step; null: as many as the answer may have")


class BudgetRequest(Body):
    """What a search may spend; it then answers with the best that it has."""

    tokens: Count | None = Field(default=None, description="sampled tokens, pruned branches included")
    value_calls: Count | None = Field(default=None, description="prefixes scored")
    ms: Count | None = Field(default=None, description="milliseconds, exceeded by one round at most")


class SearchRequest(Body):
    """How to search for the answer."""

    algorithm: Literal["beam", "dvts", "best_of_n", "majority", "weighted_majority", "none"] = "beam"
    n: Count = Field(default=_SPEC.n, description="whole answers of best_of_n and of the votes")
    beam_width: Count = Field(default=_SPEC.beam_width, description="open branches of beam, sub-trees of dvts")
    expansions: Count = Field(default=_SPEC.expansions, description="steps sampled below each of them")
    step: StepRequest = StepRequest()
    max_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = _SPEC.max_steps
    value_weight: Annotated[float, Field(ge=0, le=1)] = Field(
        default=_SPEC.value_weight, description="score = w · V + (1 − w) · log π / tokens^length_penalty"
    )
    length_penalty: Annotated[float, Field(ge=0, le=10)] = _SPEC.length_penalty
    aggregate: Literal["last", "min", "prod", "mean"] = Field(
        default="last", description="which number the values along a branch make"
    )
    answers_take_width: bool = Field(default=False, description="an answer leaves its place in the beam empty")
    scores_end: bool = Field(
        default=False, description="read V after the end of the turn, in the afterstate that an environment answers"
    )
    answer: Literal["final_number", "boxed"] | None = Field(
        default=None, description="what the votes compare: the text after ####, or the last \\boxed{}"
    )
    budget: BudgetRequest = BudgetRequest()
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = Field(default=None, description="in place of the seed")
    return_tree: bool = Field(default=False, description="put the whole tree in an answer that is not streamed")


class SamplingRequest(Body):
    """What both completion routes take."""

    model: Text
    n: Count | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stop: StopString | StopStrings | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    search: SearchRequest | None = None
    user: Text | None = Field(default=None, description="a label; read by nobody")
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None


class ChatRequest(SamplingRequest):
    messages: Messages
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = Field(default=None, description="log π of each token at temperature 1")
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(
        default=None, description="likeliest tokens at each place, with logprobs"
    )
    response_format: TextFormat | None = None
    store: Literal[False] | None = None


class CompletionRequest(SamplingRequest):
    prompt: Text | Texts | TokenIds | Annotated[list[TokenIds], Field(min_length=1)]
    max_tokens: Count | None = Field(default=None, description="16 when absent")
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = Field(
        default=None, description="log π of each token at temperature 1, and of so many likeliest ones at its place"
    )
    echo: Literal[False] | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None


Completion = Annotated[
    Text | TokenIds,
    Field(description="what was answered, whole or begun; `token_ids` of a search, as text may become others"),
]


class ConversationInput(Body):
    messages: Messages
    completion: Completion = ""


class TextInput(Body):
    prompt: Text
    completion: Completion = ""


class TokensInput(Body):
    token_ids: TokenIds


ValueInput = ConversationInput | TextInput | TokensInput


class ValuesRequest(Body):
    """V of prefixes; an input is a conversation, a text with what was answered, or token ids."""

    model: Text | None = None
    input: ValueInput | Annotated[list[ValueInput], Field(min_length=1)]
    position: Literal["last", "step", "all"] = "last"
    step: StepRequest = StepRequest()
