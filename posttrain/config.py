"""Configs are dataclasses. Defaults come first, then a YAML file, then flags; an unknown key stops the run.

    posttrain oreo --config recipe.yaml --learning_rate 1e-6

A field is documented where it is declared: `field(default=1e-6, metadata={"help": "...", "group": "optimizer"})`.
`metadata={"positional": True}` lets the field be given without its flag, as in `posttrain report RUN`.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from posttrain.coercion import can_read, convert, convert_tokens, may_stand_alone, takes_many, type_name
from posttrain.config_fields import (
    config_help,
    config_hints,
    default_of,
    inherited_fields,
    own_fields,
    plain,
    positional_fields,
    required_fields,
)

Config = TypeVar("Config")


class ConfigError(ValueError):
    """A key or value that a config cannot take; the message names it, where it came from, and the likely fix."""


def load_config(config_class: type[Config], argv: Sequence[str], *, prog: str, summary: str = "") -> Config:
    """Build `config_class` from its defaults, `--config FILE` and flags; its `__post_init__` runs once.

    Prints and raises SystemExit(0) on --help, --help-all and --dry-run, as argparse does.
    Raises ConfigError on an unknown key, a value of the wrong type, or a required key that is absent.
    """
    if not {"-h", "--help", "--help-all"}.isdisjoint(argv):
        print(config_help(config_class, prog=prog, summary=summary, is_full="--help-all" in argv))
        raise SystemExit(0)
    hints = config_hints(config_class)
    command_line = _read_flags(argv, hints, positional_fields(config_class))
    given = _read_yaml(command_line.config_file, hints) if command_line.config_file else {}
    given |= command_line.given
    absent = [name for name in required_fields(config_class) if name not in given]
    if absent:
        names = ", ".join(absent)
        raise ConfigError(f"{names} must be given, as flags (--{absent[0]} ...) or in a YAML file; see {prog} --help")
    config = config_class(**given)
    if command_line.is_dry_run:
        sys.stdout.write(config_yaml(config, given))
        raise SystemExit(0)
    return config


def config_yaml(config: Any, given: Mapping[str, Any]) -> str:
    """YAML that builds `config` again from what was `given`.

    Holds all of its own fields, and those inherited from transformers or trl whose given value is not the default.
    """
    shown = {field.name: given.get(field.name, getattr(config, field.name)) for field in own_fields(type(config))}
    for field in inherited_fields(type(config)):
        if field.name in given and given[field.name] != default_of(field):
            shown[field.name] = given[field.name]
    return yaml.safe_dump(plain(shown), sort_keys=False, allow_unicode=True)


@dataclasses.dataclass(frozen=True, slots=True)
class _CommandLine:
    given: dict[str, Any]
    config_file: Path | None
    is_dry_run: bool


def run_script(run: Callable[[Config], object], config_class: type[Config], *, path: str, summary: str) -> int:
    """The main of a recipe script at `path`: build its config, run it, say a mistake in one line; the exit code."""
    try:
        run(load_config(config_class, sys.argv[1:], prog=Path(path).name, summary=summary))
    except (OSError, ValueError) as error:  # a ConfigError is a ValueError, a stage that failed an OSError
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _read_flags(argv: Sequence[str], hints: Mapping[str, Any], positional: Sequence[str]) -> _CommandLine:
    """Flags in any order: `--key value`, `--key=value`, `--key` and `--no_key` for a bool, `--key a b` for a list."""
    words = list(argv)
    bare = list(positional)
    given: dict[str, Any] = {}
    config_file: Path | None = None
    is_dry_run = False
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            if not bare:
                raise ConfigError(f"{word!r} stands alone; options are given as --key value")
            name = bare.pop(0)
            given[name] = _converted(name, word, hints[name], where="on the command line")
            continue
        key, equals, attached = word[2:].partition("=")
        if equals:
            words.insert(0, attached)
        name = key.replace("-", "_")
        if name == "dry_run":
            is_dry_run = True
        elif name == "config":
            if config_file is not None:
                raise ConfigError("--config came twice; put the keys in one file, or give them as flags")
            config_file = Path(_take_value(name, words))
        else:
            given |= _read_flag(name, words, hints, is_attached=bool(equals))
    return _CommandLine(given, config_file, is_dry_run)


def _read_flag(name: str, words: list[str], hints: Mapping[str, Any], *, is_attached: bool) -> dict[str, Any]:
    """Take the value of one flag off the front of `words`."""
    positive = name.removeprefix("no_")
    if name not in hints and positive in hints and may_stand_alone(hints[positive]):
        return {positive: False}
    if name not in hints:
        raise ConfigError(_unknown(name, "on the command line", hints))
    hint = hints[name]
    if may_stand_alone(hint) and not is_attached and not _has_value(words, hint):
        return {name: True}
    tokens = [_take_value(name, words)]
    while takes_many(hint) and not is_attached and words and not words[0].startswith("--"):
        tokens.append(words.pop(0))
    try:
        return {name: convert_tokens(tokens, hint)}
    except ValueError as error:
        raise ConfigError(_wrong(name, " ".join(tokens), hint, "on the command line", error)) from None


def _has_value(words: list[str], hint: Any) -> bool:
    return bool(words) and not words[0].startswith("--") and can_read(words[0], hint)


def _take_value(name: str, words: list[str]) -> str:
    if not words or words[0].startswith("--"):
        raise ConfigError(f"--{name} needs a value")
    return words.pop(0)


def _read_yaml(path: Path, hints: Mapping[str, Any]) -> dict[str, Any]:
    """Keys and converted values of one YAML mapping."""
    if not path.is_file():
        raise ConfigError(f"no config file {path}; the path is read from {Path.cwd()}")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML that a config can use: {error}") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds a {type(raw).__name__}; a config is a mapping of `key: value` lines")
    for name in raw:
        if name not in hints:
            raise ConfigError(_unknown(str(name), f"in {path}", hints))
    return {name: _converted(name, value, hints[name], where=f"in {path}") for name, value in raw.items()}


_MERGE_TAG = "tag:yaml.org,2002:merge"  # the `<<` key, which may stand twice


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is an error; PyYAML would keep the last and say nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != _MERGE_TAG]
        twice = [name for index, name in enumerate(names) if name in names[:index]]
        if twice:
            raise yaml.YAMLError(f"it holds the key {twice[0]!r} twice")
        return super().construct_mapping(node, deep=deep)


def _converted(name: str, value: object, hint: Any, *, where: str) -> Any:
    try:
        return convert(value, hint)
    except ValueError as error:
        raise ConfigError(_wrong(name, value, hint, where, error)) from None


def _wrong(name: str, value: object, hint: Any, where: str, error: ValueError) -> str:
    return f"{name} = {value!r} {where}: {error} (its type is {type_name(hint)})"


def _unknown(name: str, where: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.replace("-", "_"), list(known), n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "; --help lists the keys"
    return f"unknown key {name!r} {where}{hint}"
