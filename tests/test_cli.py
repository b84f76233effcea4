from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from posttrain import __version__, cli
from posttrain.cli import VERBS, Verb, main, resolve
from posttrain.config_fields import own_fields


@dataclass(frozen=True)
class FailConfig:
    n_rows: int = field(default=0, metadata={"help": "Rows."})


def fail(config: FailConfig) -> None:
    raise ValueError(f"train.jsonl holds {config.n_rows} rows, at least 1 is needed")


@pytest.fixture
def failing_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    verb = Verb("fail now", "Always fails.", config=f"{__name__}:FailConfig", function=f"{__name__}:fail")
    monkeypatch.setattr(cli, "VERBS", (*VERBS, verb))


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_verb_imports_and_documents_each_of_its_fields(verb: Verb, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(resolve(verb.function))
    undocumented = [item.name for item in own_fields(resolve(verb.config)) if not item.metadata.get("help")]
    assert undocumented == []
    with pytest.raises(SystemExit) as stop:
        main([*verb.name.split(), "--help"])
    assert stop.value.code == 0
    page = capsys.readouterr().out
    assert page.startswith(f"usage: posttrain {verb.name}")
    assert verb.summary.split()[0] in page


def test_overview_lists_every_verb_with_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    for verb in VERBS:
        assert re.search(rf"^  {verb.name} +{re.escape(verb.summary)}$", page, re.MULTILINE)


def test_overview_loads_neither_torch_nor_transformers() -> None:
    script = "import sys; from posttrain.cli import main; main(['--help']); print('torch' in sys.modules)"
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert outcome.stdout.splitlines()[-1] == "False"


def test_alfworld_as_a_task_is_the_verb_of_its_own_and_other_tasks_stay_what_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pages = {}
    for words in ("eval run alfworld", "alfworld eval", "eval run"):
        with pytest.raises(SystemExit):
            main([*words.split(), "--help"])
        pages[words] = capsys.readouterr().out.partition("required:")[2]
    assert pages["eval run alfworld"] == pages["alfworld eval"]
    assert "--seconds_per_game" in pages["alfworld eval"]
    assert "--decoding" in pages["eval run"]
    assert main(["eval", "run", "--model", "m", "alfworld"]) == 2
    assert "name the task first, posttrain eval run alfworld" in capsys.readouterr().err


def test_misspelt_verb_names_its_neighbour(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docter"]) == 2
    assert "unknown verb 'docter'; did you mean 'doctor'?" in capsys.readouterr().err


@pytest.mark.usefixtures("failing_verb")
def test_misspelt_second_word_names_the_whole_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fail", "nwo", "--n_rows", "1"]) == 2
    assert "unknown verb 'fail nwo'; did you mean 'fail now'?" in capsys.readouterr().err


@pytest.mark.usefixtures("failing_verb")
def test_half_of_a_two_word_verb_lists_the_second_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fail"]) == 2
    assert "'posttrain fail' needs a second word: fail now" in capsys.readouterr().err


@pytest.mark.usefixtures("failing_verb")
def test_error_of_a_verb_is_one_message_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fail", "now", "--n_rows", "0"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("posttrain fail now: error: train.jsonl holds 0 rows, at least 1 is needed\n")
    assert "Traceback" not in captured.err


@pytest.mark.usefixtures("failing_verb")
def test_traceback_flag_lets_the_error_through() -> None:
    with pytest.raises(ValueError, match="holds 0 rows"):
        main(["fail", "now", "--traceback"])


@pytest.mark.usefixtures("failing_verb")
def test_unknown_key_is_an_error_of_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fail", "now", "--n_row", "3"]) == 2
    assert "unknown key 'n_row' on the command line; did you mean 'n_rows'?" in capsys.readouterr().err


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"posttrain {__version__}\n"


def test_module_form_runs_the_same_command_line() -> None:
    command = [sys.executable, "-m", "posttrain", "env", "--dry-run"]
    outcome = subprocess.run(command, capture_output=True, text=True, check=True)
    assert outcome.stdout.strip() == "{}"
