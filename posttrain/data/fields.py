"""Reading the columns of one JSON object strictly, keeping every fault instead of stopping at the first."""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import TypeVar

from posttrain.schema import Message

ROLES = ("system", "user", "assistant", "tool")
_T = TypeVar("_T")
_EnumT = TypeVar("_EnumT", bound=StrEnum)


class RowError(ValueError):
    """A row that cannot be used; `faults` holds one `file:line: field: what came, what was expected` each."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


class Fields:
    """The columns of one row. A column that is null counts as absent, since Parquet fills absent cells with null.

    Each reader returns the parsed value, or an empty one after noting the fault; `raise_faults` ends the reading.
    """

    def __init__(self, obj: object, where: str) -> None:
        if not isinstance(obj, Mapping):
            raise RowError([f"{where}: row: got {shown(obj)}, expected a JSON object"])
        self.where = where
        self._values = {str(name): value for name, value in obj.items() if value is not None}
        self._faulty: set[str] = set()
        self._faults: list[str] = []

    def has(self, name: str) -> bool:
        return name in self._values

    def is_sound(self, *names: str) -> bool:
        """All of these columns are there and none has a fault so far."""
        return all(name in self._values and name not in self._faulty for name in names)

    def fault(self, name: str, message: str) -> None:
        self._faulty.add(name)
        self._faults.append(f"{self.where}: {_printable(name)}: {message}")

    def raise_faults(self) -> None:
        if self._faults:
            raise RowError(self._faults)

    def refuse_unknown(self, columns: Sequence[str]) -> None:
        for name in self._values:
            if name not in columns:
                near = difflib.get_close_matches(name, columns, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"expected only {', '.join(columns)}"
                self.fault(name, f"unknown column; {hint}")

    def text(self, name: str, expected: str = "text") -> str:
        value = self._required(name, expected)
        if isinstance(value, str):
            return self._encodable(name, value)
        return self._mismatch(name, value, expected, "")

    def optional_text(self, name: str) -> str | None:
        return self.text(name) if self.has(name) else None

    def is_number(self, name: str) -> bool:
        return isinstance(self._values.get(name), (int, float))

    def number(self, name: str) -> float:
        value = self._required(name, "a finite number")
        floats = finite_floats([value])
        return floats[0] if floats else self._mismatch(name, value, "a finite number", 0.0)

    def flag(self, name: str) -> bool:
        value = self._required(name, "true or false")
        return value if isinstance(value, bool) else self._mismatch(name, value, "true or false", False)

    def choice(self, name: str, kind: type[_EnumT], meaning: str) -> _EnumT:
        value = self._required(name, meaning)
        if isinstance(value, str) and value in set(kind):
            return kind(value)
        return self._mismatch(name, value, meaning, next(iter(kind)))

    def items(self, name: str, expected: str) -> list[object]:
        """A JSON list; absent counts as empty, since the columns that are lists are all optional."""
        value = self._values.get(name, [])
        return value if isinstance(value, list) else self._mismatch(name, value, expected, [])

    def text_pairs(self, name: str) -> tuple[tuple[str, str], ...]:
        """The (name, text) pairs of an object whose values are text; absent counts as empty."""
        value = self._values.get(name, {})
        if not isinstance(value, Mapping) or not all(isinstance(text, str) for text in value.values()):
            return self._mismatch(name, value, "an object of names and texts", ())
        return tuple((self._encodable(name, key), self._encodable(name, text)) for key, text in value.items())

    def text_or_messages(self, name: str) -> str | tuple[Message, ...]:
        expected = "text or a list of {role, content}"
        value = self._required(name, expected)
        if isinstance(value, str):
            return self._encodable(name, value)
        if isinstance(value, list):
            return self._messages(name, value)
        return self._mismatch(name, value, expected, "")

    def _messages(self, name: str, items: list[object]) -> tuple[Message, ...]:
        if not items:
            self.fault(name, "got an empty list, expected at least one {role, content}")
        messages = [self._message(f"{name}[{i}]", name, item) for i, item in enumerate(items)]
        return tuple(message for message in messages if message is not None)

    def _message(self, place: str, name: str, item: object) -> Message | None:
        if not isinstance(item, Mapping):
            return self._item_fault(place, name, f"got {shown(item)}, expected {{role, content}}")
        extra = sorted(str(key) for key, value in item.items() if key not in ("role", "content") and value is not None)
        if extra:
            return self._item_fault(place, name, f"got the extra keys {shown(extra)}, expected only role and content")
        role, content = item.get("role"), item.get("content")
        if role not in ROLES:
            return self._item_fault(f"{place}.role", name, f"got {shown(role)}, expected one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            return self._item_fault(f"{place}.content", name, f"got {shown(content)}, expected text")
        return Message(role=role, content=self._encodable(name, content))

    def _item_fault(self, place: str, name: str, message: str) -> None:
        self._faulty.add(name)
        self.fault(place, message)

    def _encodable(self, name: str, text: str) -> str:
        """A lone surrogate passes JSON and then crashes tokenizers and terminals far from its file."""
        if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
            self.fault(
                name, "holds half of a surrogate pair (\\ud800 to \\udfff), expected text that UTF-8 can encode"
            )
            return ""
        return text

    def _required(self, name: str, expected: str) -> object:
        if name not in self._values and name not in self._faulty:
            near = difflib.get_close_matches(name, self._values, n=1)
            hint = f" (there is a column '{_printable(near[0])}')" if near else ""
            self.fault(name, f"is missing, expected {expected}{hint}")
        return self._values.get(name)

    def _mismatch(self, name: str, value: object, expected: str, empty: _T) -> _T:
        if name not in self._faulty:
            self.fault(name, f"got {shown(value)}, expected {expected}")
        return empty


def finite_floats(values: Sequence[object]) -> tuple[float, ...] | None:
    """The numbers as floats, or None unless all are finite numbers; one pass, since rows hold one per token."""
    if not {type(value) for value in values} <= {int, float}:
        return None
    try:
        floats = tuple(map(float, values))  # type: ignore[arg-type]
    except OverflowError:  # an integer beyond 1.8e308
        return None
    return floats if all(map(math.isfinite, floats)) else None


def are_plain_ints(values: Iterable[object]) -> bool:
    """Every value is an int and no bool, which Python would take for 0 and 1."""
    return {type(value) for value in values} <= {int}


def shown(value: object) -> str:
    """A short form of any JSON value with its JSON type."""
    names = {str: "text", bool: "a boolean", int: "an integer", float: "a number", list: "a list", dict: "an object"}
    return f"{reprlib.repr(value)} ({names.get(type(value), type(value).__name__)})" if value is not None else "null"


def _printable(name: str) -> str:
    return name if name.isprintable() and len(name) <= 60 else reprlib.repr(name)
