"""The verbs of the command line: what each is called, what it does, its config and its function."""

from __future__ import annotations

from dataclasses import dataclass


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
        "visual-pg",
        "Train a policy over visual tokens on checks of the pictures it draws, while it draws them.",
        config="posttrain.training.visual_pg_config:VisualPgConfig",
        function="posttrain.training.visual_pg:train_visual_pg",
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
        "vision problems",
        "Write prompts of drawn pictures as problems, which eval run, search and collect answer.",
        config="posttrain.data.picture_problems:PictureProblemsConfig",
        function="posttrain.data.picture_problems:write_picture_problems",
    ),
    Verb(
        "vision rows",
        "Write drawn pictures as rows to imitate, from a prompt to visual tokens.",
        config="posttrain.data.picture_rows:PictureRowsConfig",
        function="posttrain.data.picture_rows:write_picture_rows",
    ),
    Verb(
        "vision policy",
        "Write an untrained language model over words and visual tokens.",
        config="posttrain.models.picture_policy:PicturePolicyConfig",
        function="posttrain.models.picture_policy:write_picture_policy",
    ),
    Verb(
        "vision page",
        "Draw the answers to picture problems as a page: pictures, checks, the value of every token.",
        config="posttrain.evaluation.picture_page:PicturePageConfig",
        function="posttrain.evaluation.picture_page:write_picture_page",
    ),
    Verb(
        "control intrl",
        "Integral RL: what the rule of quadrature does to the learned value and to its policy, against exact answers.",
        config="posttrain.studies.intrl.config:IntrlConfig",
        function="posttrain.studies.intrl.run:run_intrl",
    ),
    Verb(
        "control molecules",
        "Search for molecules that bind to a protein: GFlowNets beside MARS, PPO and chance.",
        config="posttrain.studies.molecules.config:MoleculesConfig",
        function="posttrain.studies.molecules.run:run_molecules",
    ),
    Verb(
        "control strings",
        "GFlowNet, OREO and policy gradients on digit strings with a verifier: exact distance, distinct solutions.",
        config="posttrain.studies.strings.config:StringsConfig",
        function="posttrain.studies.strings.run:run_strings",
    ),
    Verb(
        "control beer-grid",
        "Train DQN with penalties on its features (BEER, DR3, InFeR) on grids with exact values, over seeds.",
        config="posttrain.studies.beer.grid_config:BeerGridConfig",
        function="posttrain.studies.beer.grid_study:run_beer_grid",
    ),
    Verb(
        "control beer",
        "Train DDPG, TD3 or DQN with penalties on their features (BEER, DR3, InFeR) on a control task, over seeds.",
        config="posttrain.studies.beer.config:BeerConfig",
        function="posttrain.studies.beer.run:run_beer",
    ),
    Verb(
        "control model-theorem",
        "Count the value functions that fit the data, with a model and without, over whole classes of models.",
        config="posttrain.studies.model_based.config:ModelTheoremConfig",
        function="posttrain.studies.model_based.theorem:run_model_theorem",
    ),
    Verb(
        "control panflute",
        "Learn PanFlute from a fixed set of random transitions: by replay, by a learned model, by the world.",
        config="posttrain.studies.model_based.config:PanFluteConfig",
        function="posttrain.studies.model_based.offline:run_panflute",
    ),
    Verb(
        "control worlds-online",
        "Learn PanFlute, mazes or buttons while acting: by replay, by a model learned alongside, by the world.",
        config="posttrain.studies.model_based.config:WorldsOnlineConfig",
        function="posttrain.studies.model_based.online:run_worlds_online",
    ),
    Verb(
        "control imagined-values",
        "Train a language model's values on few answers, with and without continuations that it imagines.",
        config="posttrain.studies.model_based.config:ImaginedValuesConfig",
        function="posttrain.studies.model_based.imagined_values:run_imagined_values",
    ),
    Verb(
        "control hypergrid",
        "Sample the cells of a hypergrid by their reward: GFlowNets beside Markov chains and policy gradients.",
        config="posttrain.studies.hypergrid.config:HypergridConfig",
        function="posttrain.studies.hypergrid.run:run_hypergrid",
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
