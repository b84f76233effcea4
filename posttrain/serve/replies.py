"""What is answered, for the OpenAPI document: the JSON itself is written by shapes.py and tree_view.py."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from posttrain.serve.errors import ErrorReply

FinishReasonName = Literal["stop", "length", "budget"]


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    generated_tokens: int = Field(description="all that were sampled, discarded branches included")
    value_calls: int | None = Field(default=None, description="prefixes scored by a search")
    value_tokens: int | None = Field(default=None, description="tokens of those prefixes")
    value_tokens_cached: int | None = Field(
        default=None, description="of these, the tokens that the value model did not have to read for this request"
    )
    search_steps: int | None = None
    pruned: int | None = None


class TreeNode(BaseModel):
    index: int
    parent: int | None
    depth: int
    text: str = Field(description="what this step adds")
    value: float | None
    score: float
    logp: float | None
    n_merged: int
    state: Literal["open", "pruned", "answer", "cut"]


class WholeTreeNode(TreeNode):
    token_ids: list[int] = Field(description="as sampled; the text tokenised again may be other tokens")


class Tree(BaseModel):
    prompt_token_ids: list[int]
    nodes: list[WholeTreeNode]


class SearchResult(BaseModel):
    object: Literal["search.result"]
    id: str
    algorithm: str
    winner: int
    text: str
    token_ids: list[int]
    value: float | None
    score: float
    finish_reason: FinishReasonName
    is_over_budget: bool
    usage: Usage
    elapsed_ms: int
    tree: Tree | None = None


class Reply(BaseModel):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage
    search: SearchResult | None = None


class ChatMessageReply(BaseModel):
    role: Literal["assistant"]
    content: str


class ChatChoice(BaseModel):
    index: int
    message: ChatMessageReply
    logprobs: dict[str, Any] | None
    finish_reason: FinishReasonName


class ChatReply(Reply):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: FinishReasonName


class CompletionReply(Reply):
    object: Literal["text_completion"]
    choices: list[TextChoice]


class ValueRow(BaseModel):
    object: Literal["value"]
    index: int
    token_ids: list[int]
    n_prompt_tokens: int = Field(description="how many of them are the prompt's; all of them for token_ids")
    positions: list[int] = Field(description="indexes into token_ids: V is of the prefix up to and including it")
    texts: list[str] = Field(description="the text from one position to the next, special tokens left out")
    values: list[float]


class ValueUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int
    value_tokens: int
    value_tokens_cached: int = Field(description="of these, those that did not have to be read for this request")


class ValueReply(BaseModel):
    object: Literal["list"]
    model: str
    unit: Literal["reward"]
    reward_map: tuple[float, float] | None = Field(
        description="(scale, shift): V is of scale · reward + shift of the training data's rows; null: not known"
    )
    beta: float | None = Field(
        description="temperature of the soft Bellman equation that V was trained on; null: not known"
    )
    data: list[ValueRow]
    usage: ValueUsage


class ModelCard(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    role: Literal["policy", "value"]
    max_model_len: int
    has_chat_template: bool  # without one only /v1/completions can be asked


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


class Status(BaseModel):
    status: str


class Versions(BaseModel):
    posttrain: str
    api: Literal["v1"]


_SAID = {
    400: "the body is not UTF-8, or nested too deeply",
    401: "no key, or a wrong one",
    404: "no such model",
    408: "the body came too slowly",
    413: "the body is too large",
    415: "the body is not application/json",
    422: "something in the body cannot be",
    429: "too many requests, or the server is busy; see Retry-After",
    503: "the server is shutting down",
    504: "the deadline came before anything could be answered",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of these statuses."""
    return {status: {"model": ErrorReply, "description": _SAID[status]} for status in statuses}
