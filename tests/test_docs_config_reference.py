"""The config reference of an objective's page is what the config class declares: every key, with its default."""

from __future__ import annotations

import json
import re
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from posttrain.config_fields import default_of, own_fields, plain
from posttrain.training.oreo_config import OreoConfig

PAGE = Path(__file__).resolve().parent.parent / "docs/objectives/oreo.md"
ROW = re.compile(r"^\| `(\w+)` \| (.+?) \|", re.MULTILINE)


def printed(default: Any) -> str:
    if default is MISSING or default is None:
        return "required" if default is MISSING else "none"
    value = plain(default)
    return f"`{json.dumps(value) if isinstance(value, list) else value}`"


def test_page_of_oreo_lists_every_key_of_its_objective_with_its_default():
    _, section = PAGE.read_text(encoding="utf-8").split("## Config reference\n")
    declared = {
        field.name: printed(default_of(field))
        for field in own_fields(OreoConfig)
        if field.metadata.get("group") == "objective"
    }
    assert dict(ROW.findall(section)) == declared
