"""Turn what YAML and a command line give into what a config field declares.

YAML 1.1 reads `1e-6` as text and a shell gives nothing but text, so conversion follows the declared type, never the
look of the value.
"""

from __future__ import annotations

import types
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml

_WORDS_TRUE = ("true", "yes", "on")
_WORDS_FALSE = ("false", "no", "off")


def convert(value: object, hint: Any) -> Any:
    """`value` as the type `hint`; raises ValueError saying which text or type was expected.

    Knows bool, int, float, str, Path, enums, Literal, Optional and other unions, list, tuple, dict and Any.
    In a union the value's own type wins, then the first member that can read it, and str last.
    """
    origin = get_origin(hint)
    if hint is Any:
        return value
    if is_union(hint):
        return _to_union(value, get_args(hint))
    if origin is Literal:
        return _to_literal(value, get_args(hint))
    if hint in (list, tuple) or origin in (list, tuple):
        return _to_sequence(value, hint)
    if hint is dict or origin is dict:
        return _to_dict(value)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _to_enum(value, hint)
    if hint in _SCALARS:
        return _SCALARS[hint](value)
    if isinstance(hint, type) and isinstance(value, hint):
        return value
    raise ValueError("this type cannot be given in YAML or as a flag")


def convert_tokens(tokens: list[str], hint: Any) -> Any:
    """The words after a flag as the type `hint`: one word, or several where the type holds a sequence."""
    if not takes_many(hint):
        return convert(tokens[0], hint)
    if len(tokens) != 1:
        return convert(tokens, hint)
    try:
        return convert(tokens[0], hint)
    except ValueError:
        return convert(tokens, hint)


def is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def may_stand_alone(hint: Any) -> bool:
    """Whether a flag of this type means true when no value follows (`--bf16`)."""
    return hint is bool or (is_union(hint) and bool in get_args(hint))


def can_read(word: str, hint: Any) -> bool:
    """Whether `word` is a value of this type."""
    try:
        convert(word, hint)
    except ValueError:
        return False
    return True


def takes_many(hint: Any) -> bool:
    """Whether a flag of this type may be followed by several words (`--seeds 0 1 2`)."""
    if is_union(hint):
        return any(takes_many(member) for member in get_args(hint))
    return hint in (list, tuple) or get_origin(hint) in (list, tuple)


def type_name(hint: Any) -> str:
    """A type as a reader of help writes it: `float`, `list[str]`, `soft|hard`, `float|null`."""
    if hint is type(None):
        return "null"
    if is_union(hint):
        return "|".join(type_name(member) for member in get_args(hint))
    if get_origin(hint) is Literal:
        return "|".join(str(choice) for choice in get_args(hint))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "|".join(str(member.value) for member in hint)
    if get_args(hint):
        inner = ", ".join("..." if part is Ellipsis else type_name(part) for part in get_args(hint))
        return f"{getattr(get_origin(hint), '__name__', hint)}[{inner}]"
    return "path" if hint is Path else getattr(hint, "__name__", str(hint))


def _to_bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _WORDS_TRUE + _WORDS_FALSE:
        return value.lower() in _WORDS_TRUE
    raise ValueError("expected true or false")


def _to_int(value: object) -> int:
    number = _to_float(value, expected="an int")
    if isinstance(value, int):
        return value
    if not number.is_integer():
        raise ValueError("expected an int")
    return int(value) if isinstance(value, str) and value.lstrip("+-").isdigit() else int(number)


def _to_float(value: object, expected: str = "a float") -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"expected {expected}")
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"expected {expected}") from None


def _to_str(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError(f"expected a str; YAML reads this as {type(value).__name__}, so put it in quotes")


def _to_path(value: object) -> Path:
    return value if isinstance(value, Path) else Path(_to_str(value)).expanduser()


def _to_none(value: object) -> None:
    if value is not None and value != "null":
        raise ValueError("expected null")


_SCALARS: dict[Any, Any] = {
    bool: _to_bool,
    int: _to_int,
    float: _to_float,
    str: _to_str,
    Path: _to_path,
    type(None): _to_none,
}


def _to_enum(value: object, kind: type[Enum]) -> Enum:
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"expected one of {', '.join(str(member.value) for member in kind)}") from None


def _to_literal(value: object, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        if value == choice and isinstance(value, bool) == isinstance(choice, bool):
            return choice
        if isinstance(value, str) and value == str(choice):
            return choice
    raise ValueError(f"expected one of {', '.join(str(choice) for choice in choices)}")


def _to_sequence(value: object, hint: Any) -> list[Any] | tuple[Any, ...]:
    value = _unquote(value, opening="[")
    if not isinstance(value, (list, tuple)):
        raise ValueError("expected a list")
    kind = get_origin(hint) or hint
    inner = get_args(hint)
    if kind is tuple and inner and inner[-1] is not Ellipsis:
        if len(value) != len(inner):
            raise ValueError(f"expected {len(inner)} entries, came {len(value)}")
        return tuple(convert(item, part) for item, part in zip(value, inner, strict=True))
    return kind(convert(item, inner[0] if inner else Any) for item in value)


def _to_dict(value: object) -> dict[Any, Any]:
    value = _unquote(value, opening="{")
    if not isinstance(value, dict):
        raise ValueError("expected a mapping")
    return value


def _unquote(value: object, *, opening: str) -> object:
    """A flag may carry a list or mapping in YAML's inline form, `--betas "[0.9, 0.95]"`."""
    if not isinstance(value, str) or not value.startswith(opening):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise ValueError(f"expected inline YAML after {opening!r}") from None


def _to_union(value: object, members: tuple[Any, ...]) -> Any:
    if not isinstance(value, str) and type(value) in members:
        return value
    reasons: list[str] = []
    for member in sorted(members, key=lambda member: member is str):
        try:
            return convert(value, member)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError("; or ".join(dict.fromkeys(reasons)))
