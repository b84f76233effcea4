"""What one server allows; every bound is checked before a network sees anything of the request."""

from __future__ import annotations

from dataclasses import dataclass

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 64
MAX_MESSAGES = 1024
MAX_STEPS = 256  # rounds of one search


@dataclass(frozen=True, slots=True)
class Limits:
    body_bytes: int  # of one request
    n: int  # choices of one request, over all its prompts
    branches: int  # width × expansions of a search: sequences that it samples side by side
    value_inputs: int  # sequences of one /v1/values request
    rows: int  # sequences that all admitted requests together may sample side by side
    queue: int  # requests that wait for their rows; one more is refused with 429
    deadline_s: float  # from the request's arrival to its answer
    drain_s: float  # from SIGTERM to the end
    requests_per_minute: float  # of one key, spent from a bucket that holds a minute's worth; 0: any number

    def __post_init__(self) -> None:
        for name in ("body_bytes", "n", "branches", "value_inputs", "rows", "queue", "deadline_s", "drain_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, needs more than 0")
        if self.requests_per_minute < 0:
            raise ValueError(f"requests_per_minute is {self.requests_per_minute}, needs 0 (any number) or more")
