from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

import pytest
import yaml
from transformers import TrainingArguments

from posttrain.config import ConfigError, load_config


class Direction(StrEnum):
    FORWARD = "forward"
    REVERSE = "reverse"


@dataclass(frozen=True)
class RunConfig:
    """A run."""

    policy: str = field(metadata={"help": "Folder or Hub id."})
    learning_rate: float = field(default=1e-5, metadata={"help": "Step size.", "group": "optimizer"})
    n_samples: int = field(default=4, metadata={"help": "Samples per prompt."})
    is_packed: bool = field(default=True, metadata={"help": "Pack rows."})
    kl: Direction = field(default=Direction.REVERSE, metadata={"help": "KL direction."})
    level: Literal["token", "step"] = field(default="token", metadata={"help": "Where V is read."})
    out: Path | None = field(default=None, metadata={"help": "Output folder."})
    seeds: tuple[int, ...] = field(default=(0,), metadata={"help": "Seeds."})
    betas: tuple[float, float] = field(default=(0.9, 0.95), metadata={"help": "Adam's two."})
    stop: list[str] = field(default_factory=list, metadata={"help": "Delimiters."})
    limit: int | None = field(default=None, metadata={"help": "Rows read."})
    shard: bool | str = field(default=False, metadata={"help": "Shard the model; a word names how."})


@dataclass
class TrainConfig(TrainingArguments):
    beta: float = field(default=0.03, metadata={"help": "Weight of the KL."})
    n_post_inits: int = field(default=0, metadata={"help": "Counts __post_init__."})

    def __post_init__(self) -> None:
        self.n_post_inits += 1
        super().__post_init__()


@dataclass(frozen=True)
class ReportConfig:
    run: Path = field(metadata={"help": "Run folder.", "positional": True})
    is_open: bool = field(default=False, metadata={"help": "Open it."})
    title: str = field(default="run", metadata={"help": "Heading."})


def load(*argv: str) -> RunConfig:
    return load_config(RunConfig, argv, prog="posttrain run")


def write(folder: Path, text: str) -> str:
    path = folder / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_flag_beats_yaml_and_yaml_beats_default(tmp_path: Path) -> None:
    path = write(tmp_path, "policy: from-yaml\nlearning_rate: 1e-6\nn_samples: 8\n")
    config = load("--n_samples", "2", "--config", path)
    assert (config.policy, config.learning_rate, config.n_samples, config.level) == ("from-yaml", 1e-6, 2, "token")


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("learning_rate: 1e-6", "learning_rate", 1e-6),  # PyYAML reads 1e-6 as text
        ("learning_rate: 1", "learning_rate", 1.0),
        ("n_samples: 1e3", "n_samples", 1000),
        ("is_packed: no", "is_packed", False),
        ("kl: forward", "kl", Direction.FORWARD),
        ("level: step", "level", "step"),
        ("out: runs/a", "out", Path("runs/a")),
        ("out: null", "out", None),
        ("seeds: [1, 2]", "seeds", (1, 2)),
        ("betas: [0.8, 1e-1]", "betas", (0.8, 0.1)),
        ('stop: ["\\n\\n", END]', "stop", ["\n\n", "END"]),
        ("limit: 10", "limit", 10),
    ],
)
def test_yaml_value_takes_the_declared_type(tmp_path: Path, text: str, name: str, expected: object) -> None:
    config = load("--config", write(tmp_path, f"policy: p\n{text}\n"))
    value = getattr(config, name)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("argv", "name", "expected"),
    [
        (["--learning-rate", "1e-6"], "learning_rate", 1e-6),
        (["--learning_rate=1e-6"], "learning_rate", 1e-6),
        (["--is_packed"], "is_packed", True),
        (["--is_packed", "false"], "is_packed", False),
        (["--no-is-packed"], "is_packed", False),
        (["--seeds", "3", "4", "--limit", "1"], "seeds", (3, 4)),
        (["--seeds", "3"], "seeds", (3,)),
        (["--stop", "a b"], "stop", ["a b"]),
        (["--betas", "[0.5, 0.6]"], "betas", (0.5, 0.6)),
        (["--limit", "null"], "limit", None),
        (["--limit", "-1"], "limit", -1),
        (["--shard"], "shard", True),
        (["--shard", "--limit", "1"], "shard", True),
        (["--shard", "full"], "shard", "full"),
        (["--shard", "no"], "shard", False),
    ],
)
def test_flag_value_takes_the_declared_type(argv: list[str], name: str, expected: object) -> None:
    value = getattr(load("--policy", "p", *argv), name)
    assert value == expected
    assert type(value) is type(expected)


def test_misspelt_yaml_key_names_its_file_and_neighbour(tmp_path: Path) -> None:
    path = write(tmp_path, "policy: p\nlr_rate: 1e-6\n")
    with pytest.raises(ConfigError) as error:
        load("--config", path)
    assert str(error.value) == f"unknown key 'lr_rate' in {path}; did you mean 'learning_rate'?"


def test_misspelt_flag_names_its_neighbour_among_library_fields() -> None:
    with pytest.raises(
        ConfigError, match="unknown key 'warmup_step' on the command line; did you mean 'warmup_steps'"
    ):
        load_config(TrainConfig, ["--warmup_step", "3"], prog="posttrain run")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_samples: four", "n_samples = 'four' .*expected an int"),
        ("n_samples: 2.5", "n_samples = 2.5 .*expected an int"),
        ("n_samples: true", "n_samples = True .*expected an int"),
        ("learning_rate: fast", "learning_rate = 'fast' .*expected a float"),
        ("is_packed: 1", "is_packed = 1 .*expected true or false"),
        ("kl: sideways", "kl = 'sideways' .*expected one of forward, reverse"),
        ("level: word", "level = 'word' .*expected one of token, step"),
        ("betas: [0.9]", "betas = .*expected 2 entries, came 1"),
        ("seeds: 3", "seeds = 3 .*expected a list"),
        ("policy: 7", "policy = 7 .*reads this as int, so put it in quotes"),
        ("limit: x", "limit = 'x' .*expected an int"),
    ],
)
def test_wrong_type_names_key_value_and_expectation(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("--policy", "p", "--config", write(tmp_path, text))


def test_required_key_is_asked_for_by_name() -> None:
    with pytest.raises(ConfigError, match=r"policy must be given, as flags \(--policy \.\.\.\) or"):
        load("--limit", "3")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--policy"], "--policy needs a value"),
        (["--policy", "--limit", "1"], "--policy needs a value"),
        (["p"], "'p' stands alone"),
        (["--config", "absent.yaml"], r"no config file absent\.yaml"),
        (["--config", "a.yaml", "--config", "b.yaml"], "--config came twice"),
    ],
)
def test_malformed_command_line_says_what_is_missing(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(*argv)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "holds a list; a config is a mapping"),
        ("a: [1\n", "is not YAML that a config can use"),
        ("n: 1\nn: 2\n", "'n' twice"),
    ],
)
def test_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("--config", write(tmp_path, text))


@pytest.mark.parametrize(
    "argv",
    [
        ["runs/a", "--is_open", "--title", "x"],
        ["--title", "x", "--is_open", "runs/a"],
        ["--run=runs/a", "--is_open", "--title=x"],
    ],
)
def test_bare_word_fills_the_positional_field_wherever_it_stands(argv: list[str]) -> None:
    config = load_config(ReportConfig, argv, prog="posttrain report")
    assert config == ReportConfig(run=Path("runs/a"), is_open=True, title="x")


def test_training_arguments_subclass_is_built_once_with_converted_values(tmp_path: Path) -> None:
    path = write(tmp_path, "learning_rate: 1e-6\nlr_scheduler_type: cosine\nreport_to: none\nuse_cpu: true\n")
    config = load_config(TrainConfig, ["--config", path, "--output_dir", str(tmp_path)], prog="posttrain run")
    assert config.n_post_inits == 1
    assert (config.learning_rate, config.lr_scheduler_type, config.use_cpu) == (1e-6, "cosine", True)


def test_dry_run_prints_yaml_that_gives_the_same_config_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--policy", "p", "--learning_rate", "3e-7", "--kl", "forward", "--out", "runs/a", "--seeds", "1", "2"]
    with pytest.raises(SystemExit) as stop:
        load(*argv, "--dry-run")
    assert stop.value.code == 0
    assert load("--config", write(tmp_path, capsys.readouterr().out)) == load(*argv)


def test_dry_run_shows_own_fields_and_only_the_changed_library_fields(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--dry-run", "--max_steps", "5", "--learning_rate", "5e-5", "--beta", "0.1", "--use_cpu"]
    with pytest.raises(SystemExit):
        load_config(TrainConfig, argv, prog="posttrain run")
    # 5e-5 is transformers' own default, so it is left out.
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown == {"beta": 0.1, "n_post_inits": 1, "max_steps": 5, "use_cpu": True}


def test_help_lists_own_fields_and_sums_up_the_library_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_config(TrainConfig, ["--help"], prog="posttrain run")
    page = capsys.readouterr().out
    assert "--beta float  (default: 0.03)\n        Weight of the KL." in page
    assert "--warmup_steps" not in page
    assert "see --help-all" in page


def test_help_all_lists_the_library_fields_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_config(TrainConfig, ["--help-all"], prog="posttrain run")
    page = capsys.readouterr().out
    assert page.index("--beta") < page.index("--warmup_steps") < page.index("--seed")


def test_help_shows_required_fields_first_and_groups_by_title(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load("--help")
    page = capsys.readouterr().out
    assert page.index("required:\n  --policy str") < page.index(
        "optimizer:\n  --learning_rate float  (default: 1e-05)"
    )
    assert "--kl forward|reverse  (default: reverse)" in page
