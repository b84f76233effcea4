"""What a config class declares, and the help page made from it."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from dataclasses import MISSING, Field
from enum import Enum
from pathlib import Path
from typing import Any, get_type_hints

from posttrain.coercion import may_stand_alone, takes_many, type_name

WIDTH = 100


def config_hints(config_class: type) -> dict[str, Any]:
    """Name and resolved type of every field that a user may set."""
    hints = get_type_hints(config_class)
    return {field.name: hints[field.name] for field in _fields(config_class)}


def own_fields(config_class: type) -> list[Field[Any]]:
    """The fields declared by us; those inherited from transformers or trl are left out."""
    return [field for field in _fields(config_class) if not _is_inherited(config_class, field.name)]


def inherited_fields(config_class: type) -> list[Field[Any]]:
    """The fields that come with transformers' TrainingArguments or a trl config."""
    return [field for field in _fields(config_class) if _is_inherited(config_class, field.name)]


def positional_fields(config_class: type) -> list[str]:
    """Names of the fields that may be given without their flag, in order."""
    return [field.name for field in _fields(config_class) if field.metadata.get("positional")]


def required_fields(config_class: type) -> list[str]:
    return [field.name for field in _fields(config_class) if default_of(field) is MISSING]


def default_of(field: Field[Any]) -> Any:
    """The field's default value, or MISSING where it must be given."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def plain(value: Any) -> Any:
    """A value as YAML and JSON hold it: paths and enums as text, tuples as lists."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def config_help(config_class: type, *, prog: str, summary: str, is_full: bool) -> str:
    """The help page of a verb: its own fields by group; library fields in one line, or all of them if `is_full`.

    The first line of the class's docstring speaks to readers of the code and is left out; later paragraphs are shown.
    """
    hints = config_hints(config_class)
    required = required_fields(config_class)
    bare = "".join(
        f" {name.upper()}" if name in required else f" [{name.upper()}]" for name in positional_fields(config_class)
    )
    parts = [f"usage: {prog}{bare} [--config FILE.yaml] [--KEY VALUE ...]"]
    if summary:
        parts.append(textwrap.fill(summary, WIDTH))
    _, _, more = (inspect.getdoc(config_class) or "").partition("\n\n")
    if more:
        parts.append(more)
    parts += [_section(title, fields, hints) for title, fields in _groups(config_class).items()]
    inherited = inherited_fields(config_class)
    if inherited and is_full:
        parts.append(_section("inherited from transformers and trl", inherited, hints))
    elif inherited:
        parts.append(
            f"and {len(inherited)} options of transformers' TrainingArguments and trl, such as --num_train_epochs,\n"
            "--report_to; see --help-all"
        )
    parts.append(_GENERAL)
    return "\n\n".join(parts)


_GENERAL = """general:
  --config FILE.yaml
        Read keys from YAML; flags override them, and an unknown key is an error.
  --dry-run
        Check and print the resolved config as YAML, then stop before anything is loaded.
  --traceback
        Show the full traceback of an error instead of its message."""


def _fields(config_class: type) -> list[Field[Any]]:
    return [field for field in dataclasses.fields(config_class) if field.init]


def _is_inherited(config_class: type, name: str) -> bool:
    declaring = next(base for base in config_class.__mro__ if name in inspect.get_annotations(base))
    return declaring.__module__.startswith(("transformers.", "trl."))


def _groups(config_class: type) -> dict[str, list[Field[Any]]]:
    """Own fields by title: required ones, then the groups as they are declared, then those without a group."""
    groups: dict[str, list[Field[Any]]] = {"required": []}
    for field in own_fields(config_class):
        title = "required" if default_of(field) is MISSING else field.metadata.get("group", "options")
        groups.setdefault(title, []).append(field)
    groups["options"] = groups.pop("options", [])
    return {title: fields for title, fields in groups.items() if fields}


def _section(title: str, fields: list[Field[Any]], hints: dict[str, Any]) -> str:
    return "\n".join([f"{title}:", *(_entry(field, hints[field.name]) for field in fields)])


def _entry(field: Field[Any], hint: Any) -> str:
    form = type_name(hint) + (" ..." if takes_many(hint) else "")
    default = default_of(field)
    head = f"  --{field.name} {f'[{form}]' if may_stand_alone(hint) else form}"
    if default is not MISSING:
        head += f"  (default: {'null' if default is None else plain(default)})"
    text = " ".join(str(field.metadata.get("help", "")).split())
    body = textwrap.fill(text, WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return f"{head}\n{body}" if text else head
