"""What a value model's numbers are measured in, as far as the run that trained it says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from posttrain.provenance import RUN_CARD


@dataclass(frozen=True, slots=True)
class ValueUnits:
    """None where it is not known."""

    beta: float | None  # temperature of the soft Bellman equation that V was trained on, reward units
    reward_map: tuple[float, float] | None  # (scale, shift): V is of scale · reward + shift of the data's rows


UNKNOWN = ValueUnits(beta=None, reward_map=None)


def units_of(value_model: str | Path | None) -> ValueUnits:
    """By the run card beside the model's folder, which `posttrain oreo` writes; of another model nothing is known.

    Raises ValueError for a card that is not JSON.
    """
    if value_model is None or not Path(value_model).is_dir():
        return UNKNOWN
    path = Path(value_model).resolve().parent / RUN_CARD
    if not path.is_file():
        return UNKNOWN
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON, and a run card is: {error}. Write it anew or take it away") from error
    match card:
        case {"config": {"beta": beta, "reward_map": [scale, shift]}}:
            return ValueUnits(float(beta), (float(scale), float(shift)))
    return UNKNOWN
