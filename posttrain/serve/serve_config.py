"""What `posttrain serve` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

from posttrain.serve.limits import Limits


def _option(default: Any, text: str, group: str) -> Any:
    return field(default=default, metadata={"help": text, "group": group})


@dataclass(frozen=True)
class ServeConfig:
    """What to serve, where, and what a caller may ask.

    The server listens on this machine alone unless it is told otherwise, and then it asks for a key: from
    --api_key_file, one a line, or from the environment variable POSTTRAIN_API_KEY.
    """

    model: str = field(
        metadata={"help": "policy: a folder or Hub id that AutoModelForCausalLM reads", "group": "networks"}
    )
    value_model: str | None = _option(None, "value model; searches by value and /v1/values need it", "networks")
    backend: Literal["transformers", "vllm"] = _option("transformers", "what runs the networks", "networks")
    dtype: Literal["float32", "bfloat16"] = _option("float32", "arithmetic of the networks", "networks")
    device: str = _option("auto", "cpu, cuda, ...; auto takes CUDA where there is one", "networks")
    batch_rows: int = _option(64, "sequences that backend transformers samples in one forward pass", "networks")
    cached_tokens: int = _option(65536, "tokens that each network remembers to have read; 0: none", "networks")
    host: str = _option("127.0.0.1", "address to listen on; another than loopback needs a key", "network")
    port: int = _option(8000, "port to listen on; 0 takes a free one and says which", "network")
    api_key_file: Path | None = field(default=None, metadata={"help": "file with one key a line", "group": "network"})
    max_body_bytes: int = _option(2**20, "of one request", "limits")
    max_n: int = _option(16, "choices of one request, or whole answers of one search", "limits")
    max_branches: int = _option(64, "beam_width x expansions of one search", "limits")
    max_value_inputs: int = _option(64, "inputs of one /v1/values request", "limits")
    max_rows: int = _option(256, "sequences of all admitted requests together; others wait", "limits")
    max_queue: int = _option(256, "requests that wait; one more gets 429", "limits")
    deadline_s: float = _option(120.0, "seconds from a request's arrival to its answer", "limits")
    drain_s: float = _option(30.0, "seconds to finish what was accepted, after SIGTERM", "limits")
    requests_per_minute: float = _option(600.0, "of one key; 0 is any number", "limits")
    log_prompts: bool = _option(False, "write prompts and answers to the log", "logs")

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port is {self.port}, needs 0 (any free one) to 65535")
        if self.batch_rows < 1:
            raise ValueError(f"batch_rows is {self.batch_rows}, needs at least 1")
        limits_of(self)


def limits_of(config: ServeConfig) -> Limits:
    return Limits(
        body_bytes=config.max_body_bytes,
        n=config.max_n,
        branches=config.max_branches,
        value_inputs=config.max_value_inputs,
        rows=config.max_rows,
        queue=config.max_queue,
        deadline_s=config.deadline_s,
        drain_s=config.drain_s,
        requests_per_minute=config.requests_per_minute,
    )


def is_loopback(host: str) -> bool:
    """Only this machine reaches the address. A name other than localhost may mean anything."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def require_key_beyond_loopback(host: str, *, n_keys: int) -> None:
    """Raises ValueError for an address that others reach on a server that anyone may ask."""
    if n_keys == 0 and not is_loopback(host):
        raise ValueError(
            f"host is {host}, which other machines reach, and there is no key: whoever finds the port could use the "
            "models. Give --api_key_file FILE or set POSTTRAIN_API_KEY, or listen on 127.0.0.1"
        )
