"""What a frozen reference says about the rows of a run, in files: safetensors shards that are checked before use.

    manifest.json                the CacheKey: everything that the numbers depend on
    shard-00000.safetensors      one number, or one vector, per action of `rows_per_shard` rows, end to end
    shard-00000.json             size and sha256 of the shard, written after it has reached the disk
    head.safetensors, head.json  the reference's output head, beside hidden states only

A file counts only with its record. So a computation that is killed keeps every part that was finished, and a part that
was cut, changed, or put there from another cache is found.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain.provenance import file_sha256, write_json
from posttrain.schema import EncodedTrajectory
from posttrain.training.checkpoint import flush

MANIFEST = "manifest.json"
HEAD = "head"
NUMBERS = "reference"  # the tensor of a shard
MODEL_FILES = ("config.json", "*.safetensors")


class CacheMismatchError(ValueError):
    """A cache holds the numbers of another reference, other rows, or another way to compute them."""


class DamagedCacheError(RuntimeError):
    """A part of a cache is absent, cut short, or not the one that was written."""


@dataclass(frozen=True, slots=True)
class CacheKey:
    """Everything that cached numbers depend on."""

    holds: str  # a value of ReferenceFrom
    model_sha256: str  # of the reference's weights and config
    data_sha256: str  # of the token ids and action masks of all rows, in order
    vocabulary_sha256: str
    chat_template_sha256: str | None
    max_length: int
    precision: str  # "float32", or "float32 under bfloat16 autocast"
    rows_per_shard: int


PARTS = {
    "holds": "kind of numbers",
    "model_sha256": "reference model",
    "data_sha256": "rows",
    "vocabulary_sha256": "tokenizer vocabulary",
    "chat_template_sha256": "chat template",
    "max_length": "max_length",
    "precision": "precision",
    "rows_per_shard": "shard size",
}


class ReferenceCache:
    """The numbers of `rows` in `folder`, one per action; opened for one key, which a manifest there must equal."""

    def __init__(self, folder: Path, key: CacheKey, rows: Sequence[EncodedTrajectory]) -> None:
        """Begin a cache, or take up the one that is there. Raises CacheMismatchError naming each part that differs."""
        self.folder = folder
        self.rows_by_shard = [
            rows[start : start + key.rows_per_shard] for start in range(0, len(rows), key.rows_per_shard)
        ]
        self._places: dict[int, tuple[int, int, int]] = {}  # row_id -> shard, first and one past the last action
        for shard, own in enumerate(self.rows_by_shard):
            start = 0
            for row in own:
                stop = start + n_actions(row)
                self._places[row.row_id] = (shard, start, stop)
                start = stop
        if len(self._places) != len(rows):
            raise ValueError(f"{len(rows)} rows have {len(self._places)} different row ids, needed one id per row")
        manifest = folder / MANIFEST
        if manifest.is_file():
            _require_same_key(manifest, key)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(manifest, asdict(key))
        self._manifest_sha256 = file_sha256(manifest)

    def write_shard(self, shard: int, numbers: Tensor) -> None:
        """Store the numbers of all actions of a shard's rows, [N] or [N, D]; a shard is there whole or not at all."""
        n_expected = sum(map(n_actions, self.rows_by_shard[shard]))
        if len(numbers) != n_expected:
            raise ValueError(f"shard {shard} has {n_expected} actions, got numbers for {len(numbers)}")
        self._write(shard_name(shard), {NUMBERS: numbers})

    def write_head(self, head: torch.nn.Linear) -> None:
        """Store the reference's output head."""
        self._write(HEAD, {name: weight.detach() for name, weight in head.named_parameters()})

    def was_finished(self, part: str) -> bool:
        """Whether a part has a record; whether it is still whole is for `require_whole` to say."""
        return self._paths(part)[1].is_file()

    def require_whole(self, part: str) -> None:
        """Read a part, `shard_name(i)` or HEAD, and compare it with its record.

        Raises DamagedCacheError when it is absent, cut short, changed, or of another cache.
        """
        path, record = self._paths(part)
        if not self.was_finished(part):
            raise DamagedCacheError(f"{record} is absent: the part was never finished")
        try:
            noted = json.loads(record.read_text(encoding="utf-8"))
        except ValueError as error:  # JSON, or its bytes, that cannot be read
            raise DamagedCacheError(f"{record} is not the JSON that was written: {error}") from error
        if not path.is_file():
            raise DamagedCacheError(f"{path} is absent, though {record.name} was written for it")
        if noted != self._record(path):
            raise DamagedCacheError(
                f"{path} ({path.stat().st_size} bytes) is not the file that {record.name} was written for: cut short, "
                "changed, or taken from another cache"
            )

    def read(self, row_ids: Iterable[int]) -> Tensor:
        """The numbers of these rows end to end, [N] or [N, D]; only they are read from disk.

        Raises KeyError for a row that is not among the rows of the cache.
        """
        parts = []
        for row_id in row_ids:
            shard, start, stop = self._places[row_id]
            with safe_open(self._paths(shard_name(shard))[0], framework="pt") as file:
                parts.append(file.get_slice(NUMBERS)[start:stop])
        return torch.cat(parts)

    def read_head(self) -> torch.nn.Linear:
        """The reference's output head, in memory of its own."""
        weights = load_file(self._paths(HEAD)[0])
        n_tokens, width = weights["weight"].shape
        head = torch.nn.Linear(width, n_tokens, bias="bias" in weights, device="meta")
        for name, weight in weights.items():
            head.register_parameter(name, torch.nn.Parameter(weight.clone(), requires_grad=False))
        return head

    def _write(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        path, record = self._paths(part)
        record.unlink(missing_ok=True)  # from here on the part counts as unfinished
        unfinished = path.with_name(f".{path.name}.partial")
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, unfinished)
        flush(unfinished)
        unfinished.replace(path)
        flush(self.folder)
        write_json(record, self._record(path))

    def _record(self, path: Path) -> dict[str, Any]:
        return {
            "file": path.name,
            "manifest_sha256": self._manifest_sha256,
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }

    def _paths(self, part: str) -> tuple[Path, Path]:
        return self.folder / f"{part}.safetensors", self.folder / f"{part}.json"


def shard_name(shard: int) -> str:
    """The name of a shard's files without their endings."""
    return f"shard-{shard:05d}"


def n_actions(row: EncodedTrajectory) -> int:
    """Actions that follow a state: the first token of a row follows none."""
    return sum(row.is_action[1:])


def hash_rows(rows: Sequence[EncodedTrajectory]) -> str:
    """sha256 of the token ids and action masks of all rows, in order; rewards and row ids do not enter."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(len(row.input_ids).to_bytes(8, "little"))
        digest.update(array("q", row.input_ids).tobytes())
        digest.update(bytes(row.is_action))
    return digest.hexdigest()


def hash_model(path: str | Path) -> str:
    """sha256 of a model's config and weight files, by name, from a folder or a Hub id.

    Raises ValueError when there is no safetensors file to hash.
    """
    is_folder = Path(path).is_dir()
    folder = Path(path) if is_folder else Path(snapshot_download(str(path), allow_patterns=list(MODEL_FILES)))
    files = sorted(file for pattern in MODEL_FILES for file in folder.glob(pattern))
    if not any(file.suffix == ".safetensors" for file in files):
        raise ValueError(f"{path} has no .safetensors file, whose hash a reference cache is kept by: save it anew")
    return hashlib.sha256("".join(f"{file.name} {file_sha256(file)}\n" for file in files).encode()).hexdigest()


def _require_same_key(manifest: Path, key: CacheKey) -> None:
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedCacheError(f"{manifest} is not the JSON that was written: {error}; delete its folder") from error
    now = asdict(key)
    differing = [field.name for field in fields(key) if found.get(field.name) != now[field.name]]
    if differing:
        lines = [f"  {PARTS[name]}: {_short(found.get(name))} there, {_short(now[name])} now" for name in differing]
        raise CacheMismatchError(
            f"{manifest.parent} does not fit this run, it differs in {', '.join(PARTS[name] for name in differing)}:\n"
            + "\n".join(lines)
            + "\n  Name another folder as reference_cache, or delete this one and it is computed anew"
        )


def _short(value: Any) -> str:
    is_hash = isinstance(value, str) and len(value) == 64
    return f"sha256 {value[:12]}…" if is_hash else str(value)
