"""A two-layer chat model with its value model, and the server on them: in a thread, or as the process users start."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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


@contextmanager
def served_process(policy: Path, value: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`posttrain serve` on a free port; the process, and its address once it listens."""
    command = [sys.executable, "-m", "posttrain", "serve", "--model", str(policy), "--value_model", str(value)]
    process = subprocess.Popen(
        [*command, "--port", "0", *flags],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"listening on (http://\S+)", line):
                yield process, found[1]
                return
        raise AssertionError(f"the server ended with {process.wait()} before it listened")
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
