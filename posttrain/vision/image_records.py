"""Generated pictures on file: JSON lines of ImageRecord, the PNG inside, read strictly. Needs Pillow.

One line is one sampled picture:
    {"prompt": "a red ring", "family": "colours", "is_held_out": false, "method": "pg", "seed": 0, "tokens": [17, 3],
     "checks": [{"name": "a red ring", "is_passed": true}], "strict": 1.0, "mean": 1.0, "png": "<base64>",
     "values": [0.4, 0.7], "advantages": [0.3, 0.3]}
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posttrain.vision.image_reward import Check, ImageGrade
from posttrain.vision.prompts import Family

_OPTIONAL = ("values", "advantages")
_KINDS: dict[str, tuple[type, ...]] = {
    "prompt": (str,),
    "family": (str,),
    "is_held_out": (bool,),
    "method": (str,),
    "seed": (int,),
    "tokens": (list,),
    "checks": (list,),
    "strict": (float, int),
    "mean": (float, int),
    "png": (str,),
    "values": (list,),
    "advantages": (list,),
}


class ImageRecordError(ValueError):
    """A line that is no ImageRecord; the message opens with file:line."""


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One generated picture with its grade and, where a value model read it, the credit of its tokens."""

    prompt: str
    family: Family
    is_held_out: bool  # was the prompt kept from training?
    method: str  # what sampled it, such as "sft" or "oreo/value_search"
    seed: int
    tokens: tuple[int, ...]  # [K] visual codes in AR order
    grade: ImageGrade
    png: bytes  # of the decoded picture, one pixel per pixel
    values: tuple[float, ...] | None = None  # [K] V of the state in which token k is chosen, reward units
    advantages: tuple[float, ...] | None = None  # [K] of the choice of token k, reward units

    def __post_init__(self) -> None:
        for name in _OPTIONAL:
            numbers = getattr(self, name)
            if numbers is not None and (len(numbers) != len(self.tokens) or not all(map(math.isfinite, numbers))):
                raise ValueError(
                    f"{name} {numbers} for {len(self.tokens)} tokens: needed one finite number for each token"
                )

    def to_json(self) -> dict[str, Any]:
        told = {name: list(getattr(self, name)) for name in _OPTIONAL if getattr(self, name) is not None}
        return {
            "prompt": self.prompt,
            "family": self.family.value,
            "is_held_out": self.is_held_out,
            "method": self.method,
            "seed": self.seed,
            "tokens": list(self.tokens),
            "checks": [asdict(check) for check in self.grade.checks],
            "strict": self.grade.strict,
            "mean": self.grade.mean,
            "png": base64.b64encode(self.png).decode("ascii"),
            **told,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> ImageRecord:
        """Raises ValueError on missing, unknown and mistyped fields, and on a grade that its checks do not give."""
        _check_fields(row)
        grade = ImageGrade(tuple(Check(**check) for check in row["checks"]))
        if (grade.strict, grade.mean) != (row["strict"], row["mean"]):
            raise ValueError(
                f"strict {row['strict']} and mean {row['mean']}: the checks give {grade.strict} and {grade.mean}"
            )
        credit = {name: tuple(map(float, row[name])) for name in _OPTIONAL if name in row}
        return cls(
            prompt=row["prompt"],
            family=Family(row["family"]),
            is_held_out=row["is_held_out"],
            method=row["method"],
            seed=row["seed"],
            tokens=tuple(row["tokens"]),
            grade=grade,
            png=base64.b64decode(row["png"], validate=True),
            **credit,
        )


def write_image_records(path: Path, records: Iterable[ImageRecord]) -> None:
    """Write the file anew, one line per record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(record.to_json(), allow_nan=False) + "\n" for record in records)
    path.write_text("".join(lines), encoding="utf-8")


def read_image_records(path: Path) -> tuple[ImageRecord, ...]:
    """All records of a file, in order. Raises ImageRecordError at the first line that is none."""
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            records.append(ImageRecord.from_json(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ImageRecordError(f"{path.name}:{number}: {error}") from error
    return tuple(records)


def png_of(image: Tensor) -> bytes:
    """The PNG of an image [3, H, W] in [-1, 1]; values beyond are cut off."""
    from PIL import Image  # an extra package, which the verbs must load without

    pixels = ((image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()


def image_of(png: bytes) -> Tensor:
    """[3, H, W] float32 in [-1, 1] of a PNG."""
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    return torch.tensor(pixels).permute(2, 0, 1).float() / 127.5 - 1


def _check_fields(row: Mapping[str, Any]) -> None:
    missing = [name for name in _KINDS if name not in row and name not in _OPTIONAL]
    unknown = [name for name in row if name not in _KINDS]
    if missing or unknown:
        raise ValueError(f"missing fields {missing}, unknown fields {unknown}")
    for name, value in row.items():
        if type(value) not in _KINDS[name]:
            raise ValueError(f"{name} is {value!r}, expected {_KINDS[name][0].__name__}")
    if not all(type(token) is int for token in row["tokens"]):
        raise ValueError(f"tokens are {row['tokens']!r}, expected whole numbers")
