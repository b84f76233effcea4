"""The command line: `posttrain <verb> --config x.yaml --key value`.

A verb is a config class and a function that takes one; both are imported when the verb runs, so `posttrain --help`
loads neither torch nor transformers.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain import __version__
from posttrain.config import ConfigError, load_config


@dataclass(frozen=True, slots=True)
class Verb:
    """One command. `config` and `function` are import paths, `module:name`."""

    name: str  # words: "oreo", "data check"; a longer name stands before a verb that it begins with
    summary: str  # one line, shown by `posttrain --help`
    config: str
    function: str  # takes the config; an int that it returns is the exit code


VERBS = (
    Verb(
        "sft",
        "Fine-tune on demonstrations, or on the correct rows of a collection (rejection sampling).",
        config="posttrain.training.sft:SftConfig",
        function="posttrain.training.sft:train_sft",
    ),
    Verb(
        "oreo",
        "Train a policy and its value function on rows that carry rewards (offline, soft Bellman).",
        config="posttrain.training.oreo_config:OreoConfig",
        function="posttrain.training.oreo:train_oreo",
    ),
    Verb(
        "dpo",
        "Train the DPO baseline on pairs made from rows that carry rewards.",
        config="posttrain.training.dpo:DpoBaselineConfig",
        function="posttrain.training.dpo:train_dpo",
    ),
    Verb(
        "kto",
        "Train the KTO baseline on rows that carry rewards, each called good or bad.",
        config="posttrain.training.kto:KtoBaselineConfig",
        function="posttrain.training.kto:train_kto",
    ),
    Verb(
        "collect",
        "Sample and grade answers to problems, and write them as rows that carry rewards.",
        config="posttrain.rollout.collect:CollectConfig",
        function="posttrain.rollout.collect:collect",
    ),
    Verb(
        "merge",
        "Join the shards of a collection that several engines have sampled into one file of rows.",
        config="posttrain.rollout.merge:MergeConfig",
        function="posttrain.rollout.merge:merge",
    ),
    Verb(
        "data check",
        "Read every row of a source; say what is wrong, where, and how many are dropped or truncated.",
        config="posttrain.data.inspect:DataCheckConfig",
        function="posttrain.data.inspect:data_check",
    ),
    Verb(
        "data inspect",
        "Show rows token by token: what is prompt, action, step start and reward.",
        config="posttrain.data.inspect:DataInspectConfig",
        function="posttrain.data.inspect:data_inspect",
    ),
    Verb(
        "data solutions",
        "Write the worked solutions of GSM8K or MATH as prompt/completion rows for sft.",
        config="posttrain.data.solutions:SolutionsConfig",
        function="posttrain.data.solutions:write_solutions",
    ),
    Verb(
        "data contamination",
        "Find the problems of a test split that share long runs of words with a training file.",
        config="posttrain.data.contamination:ContaminationConfig",
        function="posttrain.data.contamination:data_contamination",
    ),
    Verb(
        "inspect credit",
        "Show which tokens of an answer a policy credits beside its reference, and a value model's steps.",
        config="posttrain.evaluation.inspect_credit:CreditConfig",
        function="posttrain.evaluation.inspect_credit:inspect_credit",
    ),
    Verb(
        "eval run alfworld",
        "The same as alfworld eval, with the same keys.",
        config="posttrain.evaluation.alfworld_eval:AlfworldEvalConfig",
        function="posttrain.evaluation.alfworld_eval:evaluate_alfworld",
    ),
    Verb(
        "eval run",
        "Answer problems with one policy: greedy, samples with best-of-n and majority, value-guided beams.",
        config="posttrain.evaluation.eval_config:EvalConfig",
        function="posttrain.evaluation.run:evaluate",
    ),
    Verb(
        "eval ls",
        "List the tasks and the protocols of evaluation, or show one protocol whole.",
        config="posttrain.evaluation.tasks:ListConfig",
        function="posttrain.evaluation.tasks:list_tasks",
    ),
    Verb(
        "eval compare",
        "Compare two results on the same problems: paired difference, interval, exact McNemar test.",
        config="posttrain.evaluation.compare_files:CompareConfig",
        function="posttrain.evaluation.compare_files:compare_files",
    ),
    Verb(
        "eval validate",
        "Check a results file: rows, keys, whole chunks, and every grade made anew.",
        config="posttrain.evaluation.validate:ValidateConfig",
        function="posttrain.evaluation.validate:validate",
    ),
    Verb(
        "search",
        "Search for an answer to every problem of a file: best-of-n, votes, beams, diverse sub-trees, by value.",
        config="posttrain.evaluation.search_files:SearchConfig",
        function="posttrain.evaluation.search_files:search",
    ),
    Verb(
        "alfworld baseline",
        "Play the official ALFWorld games with an agent that needs no model, and print the share of games won.",
        config="posttrain.evaluation.alfworld_baseline:BaselineConfig",
        function="posttrain.evaluation.alfworld_baseline:run_baseline",
    ),
    Verb(
        "alfworld eval",
        "Play the official ALFWorld games with a policy on the real engine, and print the share of games won.",
        config="posttrain.evaluation.alfworld_eval:AlfworldEvalConfig",
        function="posttrain.evaluation.alfworld_eval:evaluate_alfworld",
    ),
    Verb(
        "alfworld generate",
        "Make new ALFWorld games with expert plans from the rooms of training games.",
        config="posttrain.alfworld.generator:GenerateConfig",
        function="posttrain.alfworld.generator:write_generated",
    ),
    Verb(
        "alfworld expert",
        "Write an expert's episodes of ALFWorld games as rows to imitate.",
        config="posttrain.alfworld.expert:ExpertConfig",
        function="posttrain.alfworld.expert:write_expert_rows",
    ),
    Verb(
        "alfworld collect",
        "Play ALFWorld games with a policy, and write the episodes as rows that carry rewards.",
        config="posttrain.alfworld.collect:AlfworldCollectConfig",
        function="posttrain.alfworld.collect:collect_episodes",
    ),
    Verb(
        "vision train",
        "Train a visual tokenizer and its one-step renderer on drawn pictures.",
        config="posttrain.training.visual_tokenizer_config:VisualTokenizerConfig",
        function="posttrain.training.visual_tokenizer:train_visual_tokenizer",
    ),
    Verb(
        "vision tokenize",
        "Write the visual tokens of picture files as JSON lines, coarse first.",
        config="posttrain.vision.files:TokenizeConfig",
        function="posttrain.vision.files:tokenize_files",
    ),
    Verb(
        "vision detokenize",
        "Render rows of visual tokens, or their first few, as picture files.",
        config="posttrain.vision.files:DetokenizeConfig",
        function="posttrain.vision.files:detokenize_files",
    ),
    Verb(
        "vision eval",
        "Measure what a visual tokenizer keeps: strict reward, PSNR, SSIM, code use, pictures from prefixes.",
        config="posttrain.vision.files:VisionEvalConfig",
        function="posttrain.vision.files:evaluate_tokenizer",
    ),
    Verb(
        "serve",
        "Serve a policy and its value model over HTTP: OpenAI's API, value-guided search, values, a page.",
        config="posttrain.serve.serve_config:ServeConfig",
        function="posttrain.serve.run:serve",
    ),
    Verb(
        "report",
        "Write a run's tables and plots as one HTML page with PNG files.",
        config="posttrain.evaluation.report:ReportConfig",
        function="posttrain.evaluation.report:report",
    ),
    Verb(
        "quickstart",
        "The whole idea in one command: train, search, evaluate and report a small study.",
        config="posttrain.quickstart:QuickstartConfig",
        function="posttrain.quickstart:run_quickstart",
    ),
    Verb(
        "iterate",
        "Sample, learn from the samples, sample again: rounds of OREO or of rejection sampling.",
        config="posttrain.iterate:IterateConfig",
        function="posttrain.iterate:iterate",
    ),
    Verb(
        "doctor",
        "Check this machine: versions, broken installs, GPU, disk, threads; says the fix.",
        config="posttrain.environment:DoctorConfig",
        function="posttrain.environment:doctor",
    ),
    Verb(
        "env",
        "Print the versions to paste into a bug report.",
        config="posttrain.environment:EnvConfig",
        function="posttrain.environment:env",
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0 fine, 2 an error of use, else what the verb returns."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"posttrain {__version__}")
        return 0
    found = _find_verb(words)
    if found is None:
        return _report_error("posttrain", _unknown_verb(words))
    verb, rest = found
    is_traceback_wanted = "--traceback" in rest
    try:
        return _run(verb, [word for word in rest if word != "--traceback"])
    except ConfigError as error:
        return _report_error(f"posttrain {verb.name}", str(error))
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError) as error:
        if is_traceback_wanted:
            raise
        return _report_error(f"posttrain {verb.name}", f"{error}\n(--traceback shows where this came from)")


def resolve(path: str) -> Any:
    """Import `module:name`."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _run(verb: Verb, argv: list[str]) -> int:
    config = load_config(resolve(verb.config), argv, prog=f"posttrain {verb.name}", summary=verb.summary)
    function: Callable[[Any], object] = resolve(verb.function)
    outcome = function(config)
    return outcome if isinstance(outcome, int) else 0


def _find_verb(words: list[str]) -> tuple[Verb, list[str]] | None:
    for verb in VERBS:
        parts = verb.name.split()
        if words[: len(parts)] == parts:
            return verb, words[len(parts) :]
    return None


def _unknown_verb(words: list[str]) -> str:
    """What to say of words that name no verb: the nearest one, or the second words that fit the first."""
    names = [verb.name for verb in VERBS]
    spoken = " ".join(word for word in words[:2] if not word.startswith("-"))
    family = [name for name in names if name.split()[0] == words[0]]
    near = difflib.get_close_matches(spoken, names, n=1, cutoff=0.7) or difflib.get_close_matches(words[0], names, n=1)
    if family and (spoken == words[0] or not near):
        return f"'posttrain {words[0]}' needs a second word: {', '.join(family)}"
    if near:
        return f"unknown verb {(spoken if ' ' in near[0] else words[0])!r}; did you mean {near[0]!r}?"
    return f"unknown verb {words[0]!r}; see posttrain --help"


def _overview() -> str:
    width = max(len(verb.name) for verb in VERBS)
    lines = [f"  {verb.name:<{width}}  {verb.summary}" for verb in VERBS]
    return "\n".join(
        [
            "usage: posttrain VERB [--config FILE.yaml] [--KEY VALUE ...]",
            "",
            "Post-train language models with token-level Q/value objectives.",
            "",
            *lines,
            "",
            "posttrain VERB --help lists its keys; --dry-run prints the resolved config; posttrain --version.",
        ]
    )


def _report_error(prog: str, message: str) -> int:
    print(f"{prog}: error: {message}", file=sys.stderr)
    return 2
