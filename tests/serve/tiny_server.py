"""A two-layer chat model with its value model, and the server on them: in a thread, or as the process users start."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NamedTuple

import torch
import uvicorn
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from posttrain.models.value import value_model_from_policy
from posttrain.serve.app import create_app
from posttrain.serve.backend import Backend
from posttrain.serve.run import load_backend
from posttrain.serve.serve_config import ServeConfig, limits_of
from posttrain.serve.service import Service
from posttrain.serve.value_units import units_of

PIECES = ("<pad>", "<bos>", "<eos>", "<unk>", "\n", "ab", "a\n", *"0123456789+-*/=.#$ abcdefghijklmnop:")
N_POSITIONS = 256
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ':' + m['content'] }}"
    "{% if m['role'] == 'assistant' and not loop.last %}<eos>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """A token per character, besides "ab" and "a\\n"; what it does not know is <unk>."""
    core = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(PIECES)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"<[a-z]+>|[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def write_models(folder: Path) -> tuple[Path, Path]:
    """A policy whose samples differ and reach line ends and EOS, and a value model that tells prefixes apart."""
    policy, value = folder / "tiny-policy", folder / "tiny-value"
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(PIECES),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=N_POSITIONS,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.15,
    )
    LlamaForCausalLM(config).save_pretrained(policy)
    chat_tokenizer().save_pretrained(policy)
    model = value_model_from_policy(policy, dtype=torch.float32)
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(model.score.weight.shape, generator=torch.Generator().manual_seed(1)))
    model.save_pretrained(value)
    chat_tokenizer().save_pretrained(value)
    return policy, value


@dataclass(frozen=True, slots=True)
class Served:
    url: str
    service: Service

    @property
    def backend(self) -> Backend:
        return self.service.backend


@contextmanager
def served(config: ServeConfig, *, keys: Sequence[str] = (), backend: Backend | None = None) -> Iterator[Served]:
    """The server in a thread of this process, on a free port."""
    backend = backend or load_backend(config)
    units = units_of(config.value_model)
    service = Service.over(backend, limits_of(config), logs_prompts=False, units=units)
    app = create_app(service, keys=keys)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended while it started"
        thread.join(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Served(f"http://127.0.0.1:{port}", service)
    finally:
        server.should_exit = True
        thread.join(20)
        asyncio.run(backend.close())


class ServedProcess(NamedTuple):
    process: subprocess.Popen[bytes]
    url: str
    log: Path  # what it has written to stderr


@contextmanager
def served_process(policy: Path, value: Path, *flags: str) -> Iterator[ServedProcess]:
    """`posttrain serve` on a free port, once it listens.

    Its log goes to a file: a pipe that nobody reads is full after 64 KiB, and then the server waits for ever.
    """
    command = [sys.executable, "-m", "posttrain", "serve", "--model", str(policy), "--value_model", str(value)]
    with NamedTemporaryFile("w", dir=policy.parent, suffix=".log", delete=False) as sink:
        process = subprocess.Popen(
            [*command, "--port", "0", *flags],
            stderr=sink,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
    log = Path(sink.name)
    try:
        while not (found := re.search(r"listening on (http://\S+)\s", log.read_text())):
            assert process.poll() is None, f"the server ended before it listened: {log.read_text()}"
            time.sleep(0.05)
        yield ServedProcess(process, found[1], log)
    finally:
        process.kill()
        process.wait()
