"""The rules that hold for every file: where imports may point, how long files are, what may not occur in them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "posttrain"

# A unit, which is a package or module directly under posttrain/, may import itself and units of lower layers. Units of
# one layer may not import each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("schema", "boxed", "coercion", "environment", "provenance", "stages", "verbs"),
    ("config_fields", "pretrained", "sampling"),
    ("config", "losses"),
    ("vision",),  # rows and rewards speak of its pictures
    ("models", "data", "rewards", "control"),
    ("search",),
    ("rollout",),  # evaluation and serving sample through its engines
    ("alfworld",),  # its episodes are sampled through an engine and written as rollouts
    ("training", "evaluation", "serve"),
    ("quickstart", "iterate", "studies"),
    ("cli",),
    ("__main__",),
)
# A module of protocols may be imported from below its layer: search is written against the sampling engine's.
PROTOCOLS = {"posttrain.sampling": "search"}

MAX_LINES = 300
FORBIDDEN_NAMES = re.compile(r"(^|_)(utils?|helpers?|common|misc|scratch)$|_(v\d+|new|old|bak)$")
FORBIDDEN_CALLS = {
    "torch.load": "use safetensors",
    "torch.save": "use safetensors",
    "pickle.load": "use safetensors or JSON",
    "pickle.loads": "use safetensors or JSON",
    "pickle.dump": "use safetensors or JSON",
    "pickle.dumps": "use safetensors or JSON",
}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
# Split so that this file passes its own rule.
MACHINE_PATH = re.compile(r"(?<![\w./~$}{<-])/(?:" + "work|home|root|Users|opt|mnt|tmp" + r")/[\w.-]+")


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Full names of what a module imports, `from a import b` as both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute in this library"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(unit: str) -> int:
    for level, units in enumerate(LAYERS):
        if unit in units:
            return level
    raise AssertionError(f"posttrain/{unit} has no layer: name it in LAYERS of tests/test_layering.py")


def find_upward_imports(imports: Mapping[str, set[str]]) -> list[str]:
    """`importer -> imported` for every import between units that does not point down."""
    found: list[str] = []
    for importer, targets in imports.items():
        for target in sorted(targets):
            source_unit, target_unit = importer.split(".")[1], target.split(".")[1]
            if source_unit != target_unit and layer_of(target_unit) >= layer_of(source_unit):
                found.append(f"{importer} -> {target}")
    return found


def find_cycle(imports: Mapping[str, set[str]]) -> list[str] | None:
    """One cycle among modules, or None."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str] | None:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return None
        for target in sorted(imports.get(module, ())):
            cycle = walk(target, [*path, module])
            if cycle:
                return cycle
        done.add(module)
        return None

    return next((cycle for module in sorted(imports) if (cycle := walk(module, []))), None)


@pytest.fixture(scope="module")
def library_imports() -> dict[str, set[str]]:
    """Module -> modules of the library that it imports; importing the package root counts for nothing."""
    trees = {module_name(path): parse(path) for path in PACKAGE.rglob("*.py")}
    return {
        module: {name for name in imported_modules(tree) if name in trees and name not in ("posttrain", module)}
        for module, tree in trees.items()
        if module != "posttrain"
    }


def tracked_files() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode != 0:
        pytest.skip(f"needs a git checkout: {listing.stderr.strip()}")
    return [REPOSITORY / name for name in listing.stdout.splitlines() if (REPOSITORY / name).is_file()]


def test_imports_point_down_only(library_imports: dict[str, set[str]]) -> None:
    assert find_upward_imports(library_imports) == []


def test_upward_and_sideways_imports_are_found_when_planted() -> None:
    planted = {
        "posttrain.losses.oreo": {"posttrain.models.value"},  # up
        "posttrain.data.rows": {"posttrain.models.policy"},  # sideways
        "posttrain.training.oreo": {"posttrain.data.rows"},  # down
        "posttrain.search.beam": {"posttrain.sampling", "posttrain.rollout.collect"},  # down, and up
    }
    assert find_upward_imports(planted) == [
        "posttrain.losses.oreo -> posttrain.models.value",
        "posttrain.data.rows -> posttrain.models.policy",
        "posttrain.search.beam -> posttrain.rollout.collect",
    ]


def test_modules_import_each_other_without_cycles(library_imports: dict[str, set[str]]) -> None:
    assert find_cycle(library_imports) is None


def test_cycle_is_found_when_planted() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_losses_import_only_schema_torch_and_the_standard_library() -> None:
    allowed = {"torch", "posttrain", *sys.stdlib_module_names}
    foreign = [
        f"{module_name(path)} -> {name}"
        for path in (PACKAGE / "losses").rglob("*.py")
        for name in imported_modules(parse(path))
        if name.split(".")[0] not in allowed
        or (name.startswith("posttrain.") and not name.startswith(("posttrain.losses", "posttrain.schema")))
    ]
    assert foreign == []


def test_files_keep_to_300_lines_unless_pyproject_gives_a_reason() -> None:
    config = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    excused: dict[str, str] = config["tool"]["posttrain"]["long-files"]
    sources = [path for path in tracked_files() if path.suffix in (".py", ".sh")]
    long = {
        str(path.relative_to(REPOSITORY))
        for path in sources
        if len(path.read_text(encoding="utf-8").splitlines()) > MAX_LINES
    }
    assert long - set(excused) == set(), "split them, or give a reason in [tool.posttrain.long-files]"
    assert set(excused) - long == set(), "these are short now: take them out of [tool.posttrain.long-files]"
    assert all(reason.strip() for reason in excused.values())


def test_file_names_say_what_is_inside() -> None:
    vague = [str(path) for path in tracked_files() if path.suffix == ".py" and FORBIDDEN_NAMES.search(path.stem)]
    assert vague == []


def test_no_code_unpickles_or_runs_code_from_a_model() -> None:
    found: list[str] = []
    for path in (path for path in tracked_files() if path.suffix == ".py"):
        for line, what in unsafe_uses(parse(path)):
            found.append(f"{path.relative_to(REPOSITORY)}:{line}: {what}")
    assert found == []


def unsafe_uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name in imported_modules(node):
                if name.split(".")[0] in FORBIDDEN_MODULES:
                    yield node.lineno, f"imports {name}"
        elif isinstance(node, ast.Call):
            if (called := ast.unparse(node.func)) in FORBIDDEN_CALLS:
                yield node.lineno, f"{called}: {FORBIDDEN_CALLS[called]}"
            for keyword in node.keywords:
                if keyword.arg == "trust_remote_code" and ast.unparse(keyword.value) != "False":
                    yield node.lineno, "trust_remote_code"


def test_unsafe_uses_are_found_when_planted() -> None:
    planted = "import pickle\ntorch.load(path)\nload(p, trust_remote_code=True)\nload(p, trust_remote_code=False)"
    assert [line for line, _ in unsafe_uses(ast.parse(planted))] == [1, 2, 3]


def test_no_file_names_a_path_of_one_machine() -> None:
    found: list[str] = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # pictures and fonts
        for line, content in enumerate(text.splitlines(), start=1):
            if MACHINE_PATH.search(content):
                found.append(f"{path.relative_to(REPOSITORY)}:{line}: {content.strip()[:100]}")
    assert found == []


def test_machine_paths_are_told_from_relative_ones_and_placeholders() -> None:
    root = "/" + "home"
    assert MACHINE_PATH.search(f"open('{root}/ann/model')")
    assert MACHINE_PATH.search("path=" + "/" + "tmp/x")
    assert not MACHINE_PATH.search("see data/home/x, ~/home/x, $OUT/work/x and https://host/home/x")
