"""The command line. Every verb is a function below; errors are one line on stderr and exit code 2."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich import box
from rich.table import Column, Table

from softprompts.bench.cli import bench_app
from softprompts.errors import SoftPromptError, nearest
from softprompts.names import JOINT
from softprompts.terminal import csv_text, err, listed, out, pairs, report_folder, telling_how_to_go_on, whole

app = typer.Typer(
    name="softprompts",
    help="Soft-prompt and prefix tuning of frozen transformers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[str, typer.Option("--model", "-m", help="Backbone: hub id, local folder, or the packaged encoder.")]
TaskName = Annotated[
    str | None, typer.Option("--task", "-t", help="Task by name, see 'softprompts tasks', or your own as a YAML file.")
]
DataDir = Annotated[str | None, typer.Option("--data-dir", help="Folder with a local copy of the task's data.")]
Template = Annotated[
    str | None, typer.Option(help="How the task's rows are written out, by name; see 'softprompts tasks show TASK'.")
]
Split = Annotated[
    str, typer.Option(help="How rows are parted into train, validation and test: official, smop, dept or residual.")
]
Answer = Annotated[
    str | None,
    typer.Option("--answer", help="How a language model answers: rank (the label words) or generate (freely)."),
]
Invalid = Annotated[
    str | None,
    typer.Option(help="What a generated answer that is no label counts as: mismatch, opposite or zero."),
]
File = Annotated[
    str | None, typer.Option("--data", help="Your own file to train on: CSV, TSV, JSONL, JSON or (tagging) CoNLL.")
]
Kind = Annotated[str, typer.Option(help="What --data is about: classification, regression, choice, span or tagging.")]
Validation = Annotated[str | None, typer.Option("--validation", help="Your own file to score on.")]
Test = Annotated[str | None, typer.Option("--test", help="Your own file for the last score, not to choose by.")]
TextColumn = Annotated[
    str | None, typer.Option("--text", help="Column of the text, the words or the question; default: its usual name.")
]
PairColumn = Annotated[str | None, typer.Option("--text-pair", help="Column of the second text or the context.")]
LabelColumn = Annotated[
    str | None, typer.Option("--label", help="Column of the label, the tags or the answers; default: its usual name.")
]
ChoiceColumns = Annotated[
    str | None, typer.Option("--choices", help="Columns of the choices, by commas, or the one of a list of them.")
]
LabelNames = Annotated[
    str | None, typer.Option("--labels", help="Names of the labels or tags, by commas, where --data has numbers.")
]
Regression = Annotated[bool, typer.Option("--regression", help="As --kind regression: the labels are scores.")]
LabelWords = Annotated[
    str | None,
    typer.Option("--label-words", help="What a language model answers for each label of --data, by commas."),
]
MaxTrain = Annotated[int | None, typer.Option(min=1, help="At most so many rows to train on.")]
MaxValidation = Annotated[int | None, typer.Option(min=1, help="At most so many rows to score on.")]
FewShot = Annotated[
    int | None, typer.Option(min=1, help="Train on so many rows in all, about evenly many of each label.")
]
FewShotSeed = Annotated[int, typer.Option(min=0, help="Draws the rows of --few-shot; --seed does not.")]
FewShotProtocol = Annotated[str, typer.Option(help="How they are drawn: even, or dept (as DePT's authors do).")]
MaxLength = Annotated[int, typer.Option(min=4, help="Most tokens of an input, the prompt not counted.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Number of updates; in place of --epochs.")]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over the training rows.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows per forward pass.")]
Accumulate = Annotated[int, typer.Option(min=1, help="Forward passes per update.")]
Rate = Annotated[float | None, typer.Option("--lr", help="Learning rate of the method's main component.")]
Rates = Annotated[list[str] | None, typer.Option("--lr-of", help="Learning rate of one component: router=0.001.")]
Optimizer = Annotated[str, typer.Option(help="adamw or adafactor.")]
Schedule = Annotated[str, typer.Option(help="linear or constant.")]
Warmup = Annotated[int, typer.Option(min=0, help="Steps of warm-up.")]
WeightDecay = Annotated[float | None, typer.Option(help="Weight decay of all components.")]
EvalEvery = Annotated[int | None, typer.Option(min=1, help="Steps between evaluations; default: an epoch.")]
Patience = Annotated[int | None, typer.Option(min=1, help="Stop after so many evaluations without a better score.")]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Forward passes in bfloat16.")]
Dropout = Annotated[bool, typer.Option("--backbone-dropout", help="Keep the frozen model's dropout on.")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the backbone's layers: for long runs.")]
Lanes = Annotated[
    int | None,
    typer.Option(min=1, help="Runs that share each pass of the model; default: as many as there is memory for."),
]
Out = Annotated[str, typer.Option("--out", "-o", help="Where run folders go.")]
Tracker = Annotated[list[str] | None, typer.Option("--tracker", help="tensorboard, wandb, ... (any of Accelerate's).")]


@app.command()
def methods(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The page docs/methods.md: equations, parameters, papers.")
    ] = False,
) -> None:
    """List the methods and their settings."""
    from softprompts.methods import methods as known

    if markdown:
        from softprompts.method_table import table as page

        print(page(), end="")
        return
    table = Table("method", "what it is", "settings (default)", show_lines=True)
    for name, config in sorted(known().items()):
        if not config.listed:
            continue
        module = sys.modules[config.__module__]
        about = (module.__doc__ or "").strip().splitlines()[0]
        fields = [
            f"{f.name} ({_default(f.default)})" for f in dataclasses.fields(config) if f.name in config.settable()
        ]
        table.add_row(name, about, ", ".join(fields))
    out.print(table)


tasks_app = typer.Typer(invoke_without_command=True, help="List the tasks that are known by name; or show one.")
app.add_typer(tasks_app, name="tasks")


app.add_typer(bench_app, name="bench")


@tasks_app.callback()
def tasks(context: typer.Context) -> None:
    """List the tasks that are known by name."""
    if context.invoked_subcommand is not None:
        return
    from softprompts.tasks.catalog import task_kinds, task_names

    table = Table("task", "kind", "what is asked")
    kinds = task_kinds()
    for name, about in task_names():
        table.add_row(name, kinds[name], about)
    out.print(table)
    out.print("One of them: softprompts tasks show NAME")
    out.print("Your own: --task FILE.yaml, or --data FILE --kind KIND --text COLUMN --label COLUMN")


@tasks_app.command("show")
def show_task(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME_OR_YAML]", help="A task by name, or your own as a YAML file.")
    ] = None,
    data_dir: DataDir = None,
    template: Template = None,
    split: Split = "official",
    data: File = None,
    kind: Kind = "classification",
    validation: Validation = None,
    test: Test = None,
    text: TextColumn = None,
    text_pair: PairColumn = None,
    label: LabelColumn = None,
    choices: ChoiceColumns = None,
    labels: LabelNames = None,
    regression: Regression = False,
    label_words: LabelWords = None,
    model: Model = "all-minilm-l6-v2",
    max_train: MaxTrain = None,
    max_validation: MaxValidation = None,
    max_length: MaxLength = 256,
    examples: Annotated[int, typer.Option(min=0, help="Number of rows to show.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as JSON, nothing shortened.")] = False,
) -> None:
    """Show a task: fields, labels, templates, how long its rows are for a model, and how models read them."""
    from softprompts.experiment import load_tokenizer
    from softprompts.tasks.catalog import task_outline
    from softprompts.tasks.describe import describe

    if (name is None) == (data is None):
        raise SoftPromptError("name a task, or give --data FILE, and not both")
    task, answer, invalid = name, None, None
    source = _data(**{key: value for key, value in locals().items() if key in _BENCH and key not in _NOT_DATA})
    about, templates = ("", []) if name is None else task_outline(name)
    with err.status("loading the data"):
        loaded = source.load()
        tokenizer, model_kind, limit = load_tokenizer(model)
        found = describe(loaded, tokenizer, model_kind, limit, max_length, examples)
    found = {
        **found,
        "about": about,
        "templates": templates,
        "template": template or (templates[0] if templates else None),
    }
    found.update(model=model, model_kind=model_kind)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    _show_task(found)


@app.command()
def train(
    method: Annotated[
        str, typer.Option("--method", help="See 'softprompts methods'; several in one: ept+multi-mask.")
    ] = "prefix-tuning",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the method: num_masks=4; of one of several: multi-mask.num_masks=4."),
    ] = None,
    task: TaskName = None,
    data_dir: DataDir = None,
    template: Template = None,
    split: Split = "official",
    answer: Answer = None,
    invalid: Invalid = None,
    data: File = None,
    kind: Kind = "classification",
    validation: Validation = None,
    test: Test = None,
    text: TextColumn = None,
    text_pair: PairColumn = None,
    label: LabelColumn = None,
    choices: ChoiceColumns = None,
    labels: LabelNames = None,
    regression: Regression = False,
    label_words: LabelWords = None,
    model: Model = "all-minilm-l6-v2",
    max_train: MaxTrain = None,
    max_validation: MaxValidation = None,
    few_shot: FewShot = None,
    few_shot_seed: FewShotSeed = 0,
    few_shot_protocol: FewShotProtocol = "even",
    max_length: MaxLength = 256,
    steps: Steps = None,
    epochs: Epochs = 3,
    batch_size: BatchSize = 32,
    accumulate: Accumulate = 1,
    lr: Rate = None,
    lr_of: Rates = None,
    optimizer: Optimizer = "adamw",
    schedule: Schedule = "linear",
    warmup: Warmup = 0,
    weight_decay: WeightDecay = None,
    eval_every: EvalEvery = None,
    patience: Patience = None,
    seed: Annotated[int, typer.Option(min=0, help="Of initialisation, data order and what a method draws.")] = 0,
    bf16: Bf16 = False,
    backbone_dropout: Dropout = False,
    compile_: Compile = False,
    out_: Out = "runs",
    folder: Annotated[str | None, typer.Option(help="Run folder in place of the one named by the settings.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")] = False,
    tracker: Tracker = None,
) -> None:
    """Train one prompt and leave a run folder."""
    from softprompts.experiment import check_trackers

    check_trackers(tracker)
    config = _method(method, pairs(set_))
    training = _training(**{key: value for key, value in locals().items() if key in _TRAINING})
    bench = _bench(**{key: value for key, value in locals().items() if key in _BENCH})
    bench.check(config, training, root=out_, folder=folder, resume=resume)
    _describe(bench)
    _tell_cut(bench, [config])
    with telling_how_to_go_on("give the same command and --resume to go on"):
        path, result = bench.run(config, training, root=out_, folder=folder, resume=resume, trackers=tracker)
    _report_run(path, result)


@app.command()
def compare(
    methods_: Annotated[str, typer.Option("--methods", help="Names, separated by commas.")] = (
        "head-only,prompt-tuning,superpos,prefix-tuning,multi-mask,selective-prefix"
    ),
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of all methods that have it, or of one: multi-mask.num_masks=2."),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Separated by commas.")] = "0,1,2",
    task: TaskName = None,
    data_dir: DataDir = None,
    template: Template = None,
    split: Split = "official",
    answer: Answer = None,
    invalid: Invalid = None,
    data: File = None,
    kind: Kind = "classification",
    validation: Validation = None,
    test: Test = None,
    text: TextColumn = None,
    text_pair: PairColumn = None,
    label: LabelColumn = None,
    choices: ChoiceColumns = None,
    labels: LabelNames = None,
    regression: Regression = False,
    label_words: LabelWords = None,
    model: Model = "all-minilm-l6-v2",
    max_train: MaxTrain = None,
    max_validation: MaxValidation = None,
    few_shot: FewShot = None,
    few_shot_seed: FewShotSeed = 0,
    few_shot_protocol: FewShotProtocol = "even",
    max_length: MaxLength = 256,
    steps: Steps = None,
    epochs: Epochs = 3,
    batch_size: BatchSize = 32,
    accumulate: Accumulate = 1,
    lr: Rate = None,
    lr_of: Rates = None,
    optimizer: Optimizer = "adamw",
    schedule: Schedule = "linear",
    warmup: Warmup = 0,
    weight_decay: WeightDecay = None,
    eval_every: EvalEvery = None,
    patience: Patience = None,
    bf16: Bf16 = False,
    backbone_dropout: Dropout = False,
    compile_: Compile = False,
    lanes: Lanes = None,
    out_: Out = "runs",
    report: Annotated[str | None, typer.Option(help="Folder for table and plot; default: <out>/compare.")] = None,
    tracker: Tracker = None,
) -> None:
    """Train several methods with several seeds; end in a table. Finished runs are not done again."""
    from softprompts.compare import compare as run_all
    from softprompts.experiment import check_trackers
    from softprompts.files import require_folder

    check_trackers(tracker)
    names = listed("--methods", methods_)
    settings = pairs(set_)
    configs = [_method(name, _settings_of(name, settings, names)) for name in names]
    seed = 0
    training = _training(**{key: value for key, value in locals().items() if key in _TRAINING})
    numbers = [whole("--seeds", part) for part in listed("--seeds", seeds)]
    folder = report_folder(report, out_, "compare")
    require_folder(folder, "the report")  # before anything trains for minutes
    bench = _bench(**{key: value for key, value in locals().items() if key in _BENCH})
    total, count = len(configs) * len(numbers), 0

    def start() -> None:
        _describe(bench)
        _tell_cut(bench, configs)

    def tell(config: Any, number: int, result: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        _tell(count, total, config.method, number, result)

    with telling_how_to_go_on("the same command goes on from there"):
        comparison = run_all(
            bench,
            [(config, training) for config in configs],
            numbers,
            root=out_,
            lanes=lanes,
            trackers=tracker,
            on_start=start,
            on_result=tell,
        )
    _show(comparison, folder)


@app.command()
def search(
    methods_: Annotated[str, typer.Option("--methods", help="Names, separated by commas.")] = "prefix-tuning",
    space: Annotated[
        list[str] | None,
        typer.Option(
            help="What to search, of all methods that have it or of one: learning_rate=log:1e-3:1e-1, "
            "init_std=uniform:0.1:1, multi-mask.num_masks=2,4,8, seed=0,1,2. Default: each method's own."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A fixed setting of all methods that have it, or of one: multi-mask.num_masks=2."),
    ] = None,
    trials: Annotated[int, typer.Option(help="Configurations to start.")] = 16,
    eta: Annotated[int, typer.Option(help="At each rung one in so many goes on.")] = 2,
    steps: Annotated[int, typer.Option(help="Updates of a configuration that is never cut.")] = 300,
    min_steps: Annotated[int, typer.Option(help="Least updates before the first cut.")] = 20,
    sampler: Annotated[str, typer.Option(help="tpe (learns from scores) or random.")] = "tpe",
    generation: Annotated[
        int | None, typer.Option(help="Configurations proposed at once; default: a quarter, but 4 to 16.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is proposed, and of the runs.")] = 0,
    keep_cut: Annotated[bool, typer.Option("--keep-cut", help="Keep the checkpoints of runs that were cut.")] = False,
    task: TaskName = None,
    data_dir: DataDir = None,
    template: Template = None,
    split: Split = "official",
    answer: Answer = None,
    invalid: Invalid = None,
    data: File = None,
    kind: Kind = "classification",
    validation: Validation = None,
    test: Test = None,
    text: TextColumn = None,
    text_pair: PairColumn = None,
    label: LabelColumn = None,
    choices: ChoiceColumns = None,
    labels: LabelNames = None,
    regression: Regression = False,
    label_words: LabelWords = None,
    model: Model = "all-minilm-l6-v2",
    max_train: MaxTrain = None,
    max_validation: MaxValidation = None,
    max_length: MaxLength = 256,
    batch_size: BatchSize = 32,
    accumulate: Accumulate = 1,
    lr: Annotated[
        float | None, typer.Option("--lr", help="A fixed learning rate of every method's main component.")
    ] = None,
    lr_of: Rates = None,
    optimizer: Optimizer = "adamw",
    schedule: Schedule = "linear",
    warmup: Warmup = 0,
    weight_decay: WeightDecay = None,
    eval_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between evaluations; default: those before the first cut.")
    ] = None,
    bf16: Bf16 = False,
    backbone_dropout: Dropout = False,
    compile_: Compile = False,
    lanes: Lanes = None,
    out_: Out = "runs",
    report: Annotated[
        str | None, typer.Option(help="Folder for leaderboard and best prompt; default: <out>/search.")
    ] = None,
    tracker: Tracker = None,
) -> None:
    """Search settings: start many configurations, cut the worse half at every rung, train the last to the end.

    With a linear schedule the rates of a run follow its full budget, so what is cut early has seen high rates only.
    """
    from softprompts.experiment import check_trackers
    from softprompts.leaderboard import check_report
    from softprompts.search import load_optuna, rungs
    from softprompts.search import search as find

    load_optuna()
    check_trackers(tracker)
    rungs(steps, trials, eta, min_steps, eval_every)  # what cannot be is said before a model is loaded
    names = listed("--methods", methods_)
    settings = pairs(set_)
    configs = {name: _method(name, _settings_of(name, settings, names)) for name in names}
    fixed = {name: _chosen(configs[name], _settings_of(name, settings, names)) for name in names}
    searched = {key: _searched(key, value, names) for key, value in pairs(space, "--space").items()}
    epochs, patience = 1, None
    training = _training(**{key: value for key, value in locals().items() if key in _TRAINING})
    folder = report_folder(report, out_, "search")
    check_report(folder)
    bench = _bench(**{key: value for key, value in locals().items() if key in _BENCH})

    _describe(bench)
    _tell_cut(bench, list(configs.values()))
    with telling_how_to_go_on("the same command goes on from there"):
        found = find(
            bench,
            fixed,
            training,
            space=searched,
            trials=trials,
            eta=eta,
            min_steps=min_steps,
            generation=generation,
            sampler=sampler,
            root=out_,
            report=folder,
            lanes=lanes,
            keep_cut=keep_cut,
            trackers=tracker,
            tell=lambda line: err.print(line, soft_wrap=True),
        )
    _show_leaderboard(found, folder, out_)


@app.command()
def transfer(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Run folders, prompt folders or hub ids.")],
    tasks_: Annotated[str, typer.Option("--tasks", help="Target tasks, separated by commas.")] = "reviews",
    shots: Annotated[
        str, typer.Option(help="Numbers of training rows, by commas; 0: the source's prompt and head as they are.")
    ] = "0,16",
    seeds: Annotated[str, typer.Option(help="Of the rows drawn and the training; separated by commas.")] = "0,1,2",
    length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of the tuned prompts; default: as the longest source.")
    ] = None,
    data_dir: DataDir = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Backbone; default: the one that the first source names.")
    ] = None,
    max_validation: MaxValidation = None,
    max_length: MaxLength = 256,
    steps: Annotated[int, typer.Option(min=1, help="Number of updates.")] = 60,
    batch_size: BatchSize = 16,
    lr: Rate = None,
    lr_of: Rates = None,
    optimizer: Optimizer = "adamw",
    schedule: Schedule = "linear",
    warmup: Warmup = 0,
    weight_decay: WeightDecay = None,
    bf16: Bf16 = False,
    backbone_dropout: Dropout = False,
    lanes: Lanes = None,
    out_: Out = "runs",
    report: Annotated[str | None, typer.Option(help="Folder for the tables; default: <out>/transfer.")] = None,
) -> None:
    """Measure what saved prompts are worth on other tasks: tuned on a few rows, or as they are."""
    from softprompts.experiment import Data, Workbench
    from softprompts.files import require_folder
    from softprompts.sources import described
    from softprompts.training.processes import together
    from softprompts.transfer import transfer as measure
    from softprompts.transfer import write_report

    accumulate, epochs, eval_every, patience, compile_, seed = 1, 1, None, None, False, 0
    training = _training(**{key: value for key, value in locals().items() if key in _TRAINING})
    counts = [whole("--shots", part) for part in listed("--shots", shots)]
    numbers = [whole("--seeds", part) for part in listed("--seeds", seeds)]
    targets = [Data(task=name, data_dir=data_dir, max_validation=max_validation) for name in listed("--tasks", tasks_)]
    folder = report_folder(report, out_, "transfer")
    require_folder(folder, "the report")  # before anything trains for minutes
    name = model or str(described(sources[0])["backbone"].get("name") or "")
    with err.status("loading data and model"), together():
        bench = Workbench(name, targets[0], max_length, backbone_dropout)
    done = 0
    total = (len(sources) + 1) * len(targets) * len(numbers) * sum(count > 0 for count in counts)

    def tell(source: str, target: str, count: int, result: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        _tell(done, total, f"{source} to {target} with {count} rows", result["seed"], result)

    with telling_how_to_go_on("the same command goes on from there"):
        found = measure(
            bench,
            sources,
            targets,
            training,
            shots=counts,
            seeds=numbers,
            length=length,
            root=out_,
            lanes=lanes,
            on_result=tell,
        )
    if out.quiet:  # the main process writes
        return
    written = write_report(found, folder)
    for count in found.shots:
        table = Table(title=found.title(count), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("source")
        for target in found.targets:
            width = max(len(found.cell(source, target, count)) for source in found.sources)
            table.add_column(target.name, justify="right", min_width=width)
        for line in found.lines(count):
            table.add_row(*line)
        out.print(table)
    out.print(found.note())
    out.print("written: " + ", ".join(map(str, written)), soft_wrap=True)


@app.command()
def demo(
    out_: Out = "runs",
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 2,
    lanes: Lanes = None,
    report: Annotated[str | None, typer.Option(help="Folder for table and plot.")] = None,
) -> None:
    """Tune six methods on real film reviews with a packaged 22M-parameter encoder and compare them."""
    from softprompts.demo import run_demo
    from softprompts.files import require_folder

    folder = report_folder(report, out_, "demo")
    require_folder(folder, "the report")  # before anything trains for minutes
    with telling_how_to_go_on("the same command goes on from there"):
        comparison = run_demo(out_, range(seeds), lanes=lanes, tell=_tell, describe=_describe)
    _show(comparison, folder)


@app.command()
def predict(
    source: Annotated[str, typer.Argument(metavar="RUN_OR_PROMPT", help="Run folder, prompt folder or hub id.")],
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts to label.")] = None,
    file: Annotated[
        str | None, typer.Option("--file", "-f", help="CSV, TSV, JSONL, JSON, CoNLL, or .txt with one text a line.")
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", help="Column of the text; default: as in training, else 'text'.")
    ] = None,
    text_pair: Annotated[
        str | None,
        typer.Option("--text-pair", help="Column of the second text or context; without --file, the text itself."),
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option("--field", help="A field of the task, NAME=TEXT; with --file its column, NAME=COLUMN."),
    ] = None,
    choice: Annotated[
        list[str] | None, typer.Option("--choice", help="One of the texts to choose from (multiple choice).")
    ] = None,
    output: Annotated[str | None, typer.Option("--output", help="Write a CSV file instead of a table.")] = None,
    batch_size: BatchSize = 32,
) -> None:
    """Label texts with a trained prompt: label and probability, tags, or the answer found."""
    from softprompts.predictor import Predictor

    fields = pairs(field, "--field")
    if bool(texts or (fields and file is None)) == (file is not None):
        raise SoftPromptError("give texts, or --file FILE with texts, and not both")
    if len(texts or ()) > 1 and (text_pair is not None or fields or choice):
        given = "--text-pair" if text_pair is not None else "--field" if fields else "--choice"
        raise SoftPromptError(f"{given} goes with one text; put several rows into a file")
    if choice and file is not None:
        raise SoftPromptError("--choice goes with one text; a file has its choices in columns")
    if output is not None and Path(output).is_dir():
        raise SoftPromptError(f"--output {output} is a folder; name a file")
    with err.status("loading the model"):
        predictor = Predictor(source)
    if file is not None:
        rows = predictor.read(file, text, text_pair, fields)
    elif texts:
        rows = [predictor.row(one, text_pair, fields, choice or ()) for one in texts]
    else:
        rows = [predictor.row(None, text_pair, fields, choice or ())]
    answers = predictor(rows, batch_size=batch_size)
    if predictor.cut:
        err.print(predictor.cut, soft_wrap=True)
    if output is not None:
        _write_answers(predictor, rows, answers, output)
        return
    form = predictor.task.form
    if not sys.stdout.isatty():
        for row, answer in zip(rows, answers, strict=True):
            print("\t".join([answer.label, _probability(answer.probability), " ".join(_first(row, predictor).split())]))
        return
    if form.kind == "tagging":
        from softprompts.predictor import marked

        for row, answer in zip(rows, answers, strict=True):
            words = row["words"]
            out.print(marked(words.split() if isinstance(words, str) else words, answer.tags))
        return
    chances = any(answer.probability is not None for answer in answers)
    table = Table("answer" if form.kind in ("span", "choice", "ranking") else "label")
    for header in [*(["probability"] if chances else []), "text"]:
        table.add_column(header)
    for row, answer in zip(rows, answers, strict=True):
        table.add_row(answer.label, *([_probability(answer.probability)] if chances else []), _first(row, predictor))
    out.print(table)


def _first(row: Mapping[str, Any], predictor: Any) -> str:
    """The text of a row to show."""
    value = row[predictor.fields[0]]
    return value if isinstance(value, str) else " ".join(value)


def _write_answers(predictor: Any, rows: list[Any], answers: list[Any], output: str) -> None:
    from softprompts.training.runs import write_text_atomic

    form = predictor.task.form
    own = ["choices"] if form.chooses and not form.choices else []
    lines = [[*predictor.fields, *own, "label", "probability"]]
    for row, answer in zip(rows, answers, strict=True):
        values = [row[name] for name in predictor.fields]
        values = [value if isinstance(value, str) else " ".join(value) for value in values]
        choices = [json.dumps(list(row["choices"]), ensure_ascii=False) for _ in own]
        lines.append([*values, *choices, answer.label, _probability(answer.probability)])
    write_text_atomic(output, csv_text(lines))
    out.print(f"{len(answers)} rows written to {output}", soft_wrap=True)


@app.command()
def inspect(
    sources: Annotated[list[str], typer.Argument(metavar="RUN_OR_PROMPT...", help="Run or prompt folders, hub ids.")],
    plots: Annotated[bool, typer.Option("--plots", help="Draw what it learned, as PNG and SVG, with CSV.")] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", help="Folder for them; default: 'plots' in the run or prompt folder; of several: here."
        ),
    ] = None,
    data_dir: DataDir = None,
    rows: Annotated[int, typer.Option(min=1, help="Most rows of the task, for pictures that need some.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as JSON.")] = False,
) -> None:
    """Show what is in a saved prompt; draw what it learned; compare several."""
    from softprompts.saving import prompt_folder, read

    found = []
    for source in sources:
        config, tensors = read(prompt_folder(source))
        found.append({**config, "tensors": {name: _numbers(tensors[name]) for name in config["tensors"]}})
    if not as_json:
        for one in found:
            _show_prompt(one)
    drawn = _drawn(sources, output, data_dir, rows, tell=not as_json) if plots else None
    if as_json:
        more = {} if drawn is None else {"plots": drawn}
        whole = {**found[0], **more} if len(found) == 1 else {"prompts": found, **more}
        print(json.dumps(whole, indent=2, ensure_ascii=False))
    elif len(sources) > 1 and not plots:
        _show_similarities(sources)


def _numbers(value: Any) -> dict[str, Any]:
    """A tensor in a few numbers."""
    return {
        "shape": list(value.shape),
        "type": str(value.dtype).removeprefix("torch."),
        "mean": float(value.float().mean()),
        "std": float(value.float().std(unbiased=False)),
        "largest": float(value.float().abs().max()),
    }


def _show_prompt(config: dict[str, Any]) -> None:
    from softprompts.saving import counted

    meta, backbone, stats = config.get("metadata") or {}, config["backbone"], config["tensors"]
    facts = Table.grid(Column(), Column(overflow="fold"), padding=(0, 2))
    facts.add_row("method", config["method"])
    facts.add_row("settings", ", ".join(f"{k}={v}" for k, v in config["config"].items() if v is not None))
    facts.add_row("backbone", f"{backbone.get('name') or backbone.get('model_type')} ({backbone.get('class')})")
    if config.get("labels"):
        facts.add_row("labels", ", ".join(config["labels"]))
    for key in ("task", "seed", "step", "score", "trained_parameters"):
        if meta.get(key) is not None:
            facts.add_row(key.replace("_", " "), str(meta[key]))
    sizes = {name: (one["type"], one["shape"]) for name, one in stats.items()}
    trained, frozen = counted({**config, "tensors": sizes})
    facts.add_row("parameters", f"{trained:,}" + (f", and {frozen:,} numbers that stay as they are" if frozen else ""))
    out.print(facts)
    table = Table("tensor", "shape", "type", "mean", "std", "largest")
    table.columns[0].overflow = "fold"
    for name, value in stats.items():
        numbers = [f"{value[key]:.4g}" for key in ("mean", "std", "largest")]
        table.add_row(name, " x ".join(map(str, value["shape"])), value["type"], *numbers)
    out.print(table)


def _drawn(sources: list[str], output: str | None, data_dir: str | None, rows: int, tell: bool) -> list[dict[str, Any]]:
    """Writes the pictures, and says of each what it is and where."""
    from softprompts.analysis import plots_folder, write_figures

    folder, done = Path(output) if output is not None else plots_folder(sources), []
    for picture in write_figures(sources, folder, data_dir=data_dir, rows=rows):
        done.append({"what": picture.what, "files": [str(file) for file in picture.files], "text": picture.text})
        if tell:
            where = f"{picture.files[0]} (.svg, .csv). " if picture.files else "no picture; "
            out.print(f"{picture.what}: {where}{picture.text}", soft_wrap=True)
    return done


def _show_similarities(sources: list[str]) -> None:
    from softprompts.analysis import open_prompts, similarities

    try:
        found, reasons = similarities(open_prompts(sources), with_start=False)
    except SoftPromptError as error:
        found, reasons = [], [str(error)]
    for one in found:
        table = Table(f"cosine of {one.part}, pooled", *map(str, range(1, len(one.names) + 1)))
        for number, (name, line) in enumerate(zip(one.names, one.pooled, strict=True), start=1):
            table.add_row(f"{number} {name}", *(f"{value:.2f}" for value in line))
        out.print(table)
    for reason in reasons:
        out.print(f"not compared: {reason}", soft_wrap=True)


# --- shared ---------------------------------------------------------------------------------------------------------

_TRAINING = (
    "steps", "epochs", "batch_size", "accumulate", "lr", "lr_of", "optimizer", "schedule", "warmup", "weight_decay",
    "eval_every", "patience", "seed", "bf16", "backbone_dropout", "compile_",
)  # fmt: skip
_BENCH = (
    "task", "data_dir", "template", "split", "answer", "invalid", "data", "kind", "validation", "test", "text",
    "text_pair", "label", "choices", "labels", "regression", "label_words", "model", "max_train", "max_validation",
    "max_length", "backbone_dropout", "few_shot", "few_shot_seed", "few_shot_protocol",
)  # fmt: skip


_NOT_DATA = ("model", "max_length", "backbone_dropout")


def _training(
    *,
    steps: int | None,
    epochs: int,
    accumulate: int,
    lr: float | None,
    lr_of: list[str] | None,
    warmup: int,
    compile_: bool,
    **same: Any,
) -> Any:
    from softprompts.training import TrainConfig

    rates = {}
    for name, text in pairs(lr_of, "--lr-of").items():
        value = _value(text)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SoftPromptError(f"--lr-of {name}={text}: a learning rate is a number")
        rates[name] = float(value)
    return TrainConfig(
        max_steps=steps,
        epochs=epochs,
        gradient_accumulation_steps=accumulate,
        learning_rate=lr,
        learning_rates=rates,
        warmup_steps=warmup,
        compile=compile_,
        **same,
    )


def _bench(*, model: str, max_length: int, backbone_dropout: bool, **asked: Any) -> Any:
    from softprompts.experiment import Workbench
    from softprompts.training.processes import together

    source = _data(**asked)
    with err.status("loading data and model"), together():
        return Workbench(model, source, max_length, backbone_dropout)


def _data(
    *,
    task: str | None,
    data: str | None,
    kind: str,
    regression: bool,
    answer: str | None,
    choices: str | None,
    labels: str | None,
    label_words: str | None,
    template: str | None,
    **same: Any,
) -> Any:
    """Where the rows come from, as the options say it."""
    from softprompts.experiment import Data

    if task is not None and data is not None:
        raise SoftPromptError("give --task or --data, not both")
    if regression and kind not in ("classification", "regression"):
        raise SoftPromptError(f"--regression and --kind {kind} do not go together")
    if data is None:
        own = {
            **{
                f"--{name.replace('_', '-')}": same[name]
                for name in ("validation", "test", "text", "text_pair", "label")
            },
            **{"--choices": choices, "--labels": labels, "--label-words": label_words},
            **{"--regression": regression or None, "--kind": None if kind == "classification" else kind},
        }
        given = [flag for flag, value in own.items() if value is not None]
        if given:
            raise SoftPromptError(f"{given[0]} is about a file of your own: give --data too")
        task = task or "reviews"
    elif template is not None:
        raise SoftPromptError("--template goes with a task that has templates; declare yours in a YAML file (--task)")
    return Data(
        task=task,
        train=data,
        kind="regression" if regression else kind,
        answering=answer,
        choices=_parts(choices),
        labels=_parts(labels),
        label_words=_parts(label_words),
        template=template,
        **same,
    )


def _parts(text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(part.strip() for part in text.split(","))


def _show_task(found: Mapping[str, Any]) -> None:
    facts = Table.grid(Column(), Column(overflow="fold"), padding=(0, 2))
    facts.add_row("task", found["task"] + (f": {found['about']}" if found["about"] else ""))
    facts.add_row("kind", f"{found['kind']}: {found['what']}")
    facts.add_row("source", found["source"])
    facts.add_row("fields", ", ".join(found["fields"]))
    if found["words"] and found["words"] != found["labels"]:
        facts.add_row("label words", _some(found["words"]))
    facts.add_row("metrics", ", ".join(found["metrics"]))
    if found["templates"]:
        facts.add_row("templates", ", ".join(found["templates"]) + f" (below: {found['template']})")
    takes = "any number of tokens" if found["context"] is None else f"{found['context']:,} tokens"
    facts.add_row("model", f"{found['model']} ({found['model_kind']}), takes {takes}")
    first = f"; of a longer row {found['cut_first'][0]} is cut" if found["cut_first"] else ""
    if found["kind"] == "span" and found["model_kind"] == "encoder":
        first = "; a longer context is read in windows"
    facts.add_row("max length", f"{found['max_length']:,} tokens{first}")
    out.print(facts)
    limits = {f"over {found['max_length']:,}": "over_max_length"}
    if found["context"] not in (None, found["max_length"]):
        limits[f"over {found['context']:,}"] = "over_context"
    table = _plain_table("split", "rows", *(f"{part} tokens" if part == "50%" else part for part in _PERCENTILES))
    for header in limits:
        table.add_column(header, justify="right")
    for split, said in found["splits"].items():
        tokens = [f"{said['tokens'][part]:,}" for part in _PERCENTILES]
        table.add_row(split, f"{said['rows']:,}", *tokens, *(f"{said[key]:,}" for key in limits.values()))
    out.print(table)
    _show_labels(found["kind"], {split: said["labels"] for split, said in found["splits"].items()})
    for place, example in enumerate(found["examples"], start=1):
        answer = example["answer"]
        shown = " ".join(answer) if found["kind"] == "tagging" else answer
        shown = ", ".join(shown) if isinstance(shown, list) else shown
        written = example["written"]
        beside = "" if written is None or written in (shown, answer) else f" (a language model writes: {written})"
        out.print(f"example {place} (row {example['id']}): {_short(str(shown))}{beside}")
        for index, texts in enumerate(example["encoder"][:_MOST_READ]):
            for part, text in enumerate(texts):
                many = f" {index + 1}" if len(example["encoder"]) > 1 else ""
                _paragraph(f"encoder{many}" if part == 0 else "  and", text)
        if len(example["encoder"]) > _MOST_READ:
            _paragraph("", f"(and {len(example['encoder']) - _MOST_READ} more to choose from)")
        if example["language_model"] is not None:
            _paragraph("language model", example["language_model"])
        out.print()


_PERCENTILES = ("50%", "90%", "99%", "longest")
_MOST_LABELS = 20
_MOST_READ = 2  # choices of a row that are shown


def _show_labels(kind: str, counts: Mapping[str, Mapping[str, float]]) -> None:
    names = next(iter(counts.values()))
    if not names:
        return
    table = _plain_table("score" if kind == "regression" else "tag" if kind == "tagging" else "label", *counts)
    for name in list(names)[:_MOST_LABELS]:
        if kind == "regression":
            table.add_row(name, *(f"{said[name]:.2f}" for said in counts.values()))
        else:
            shares = [(said[name], max(1, sum(said.values()))) for said in counts.values()]
            table.add_row(name, *(f"{count:,} ({100 * count / all_:4.1f} %)" for count, all_ in shares))
    out.print(table)
    if len(names) > _MOST_LABELS:
        out.print(f"  and {len(names) - _MOST_LABELS} more labels (--json has all)")


def _plain_table(first: str, *others: str) -> Table:
    table = Table(first, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in others:
        table.add_column(name, justify="right")
    return table


def _paragraph(head: str, text: str) -> None:
    """A text behind its name, wrapped and shortened to some lines."""
    grid = Table.grid(Column(width=16), Column(overflow="fold"), padding=(0, 1))
    grid.add_row(f"  {head}", _short(text))
    out.print(grid)


def _short(text: str, most: int = 400) -> str:
    """The beginning and the end of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most * 3 // 4]} ... {line[-most // 4 :]}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:_MOST_LABELS]) + (f" and {len(names) - _MOST_LABELS} more" if len(names) > 20 else "")


def _method(name: str, settings: dict[str, str]) -> Any:
    from softprompts.methods import compose, make_config
    from softprompts.methods import methods as known

    if name == "folded":
        raise SoftPromptError("'folded' is what fold() leaves of a prompt; train one of the methods")
    if JOINT in name:
        parts = {part: _settings_of(part, settings, name.split(JOINT)) for part in name.split(JOINT)}
        if len(parts) == name.count(JOINT) + 1:
            return compose(*(_method(part, own) for part, own in parts.items()))
    types = {f.name: str(f.type) for f in dataclasses.fields(known()[name])} if name in known() else {}
    return make_config(name, **{key: _value(text, types.get(key, "")) for key, text in settings.items()})


def _default(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _value(text: str, type_: str = "") -> Any:
    """What a value on the command line stands for.

    Args:
        text: a number, true, false, none, a JSON list, parts between commas, or a text.
        type_: the field's type as it is written in the method's file: it tells a list from a text with commas in it.
    """
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        # Some settings have "none" for a name.
        return text if words[text.lower()] is None and type_ and "None" not in type_ else words[text.lower()]
    if type_.startswith("str"):
        return text
    for read in (json.loads, float):
        with contextlib.suppress(ValueError):
            return read(text)
    return [part.strip() for part in text.split(",")] if "tuple" in type_ or ("," in text and not type_) else text


def _settings_of(name: str, settings: dict[str, str], names: list[str]) -> dict[str, str]:
    """The settings that concern one method: those with its name in front, and general ones that it has.

    A composition's are those of its parts, still with the part's name in front.
    """
    from softprompts.methods import methods as known

    configs = known()
    parts = name.split(JOINT) if JOINT in name else []
    everyone = [part for given in names for part in given.split(JOINT)]
    fields = {n: configs[n].settable() for n in everyone if n in configs}
    chosen: dict[str, str] = {}
    for key, value in settings.items():
        method, dot, rest = key.partition(".")
        if dot:
            if method not in everyone:
                raise SoftPromptError(f"--set {key}: '{method}' is not among the methods; {nearest(method, everyone)}")
            if method == name:
                chosen[rest] = value
            elif method in parts:
                chosen[key] = value
        elif not any(key in there for there in fields.values()):
            raise SoftPromptError(f"--set {key}: none of the methods has this setting")
        elif any(key in fields.get(own, ()) for own in parts or [name]):
            chosen.setdefault(key, value)  # what is said of this method alone wins
    return chosen


def _chosen(config: Any, settings: dict[str, str]) -> dict[str, Any]:
    """The settings that were given, as the config took them."""
    return {key: config.setting(key) for key in settings}


def _searched(key: str, text: str, names: list[str]) -> Any:
    """What --space says of a setting: a span, or values to choose from."""
    from softprompts.methods import methods as known
    from softprompts.methods.base import Span
    from softprompts.training import TrainConfig

    first, dot, rest = key.partition(".")
    name = rest if dot and first in names else key
    homes: list[Any] = [TrainConfig, *(known()[part] for method in names for part in method.split(JOINT))]
    type_ = next((str(f.type) for home in homes for f in dataclasses.fields(home) if f.name == name), "")
    kind, colon, bounds = text.partition(":")
    if colon and kind in ("log", "uniform"):
        ends = [_value(part) for part in bounds.split(":")]
        if len(ends) != 2 or any(isinstance(end, bool) or not isinstance(end, int | float) for end in ends):
            raise SoftPromptError(f"--space {key}={text}: write {kind}:LOW:HIGH with two numbers")
        return Span(ends[0], ends[1], log=kind == "log")
    if "tuple" in type_:  # whose values have commas of their own
        with contextlib.suppress(ValueError):
            return list(json.loads(f"[{text}]"))
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise SoftPromptError(f"--space {key}={text}: write VALUE,VALUE,... or log:LOW:HIGH or uniform:LOW:HIGH")
    return [_value(part, type_) for part in parts]


def _describe(bench: Any) -> None:
    task = bench.task
    reads = "" if bench.data.task is not None else f"; reads {', '.join(task.form.fields)}"
    sizes = f"{len(task.train):,} train, {len(task.validation):,} validation"
    sizes += f", {len(task.test):,} test" if task.test else ""
    balance = ", ".join(f"{name} {count:,}" for name, count in task.balance().items())
    err.print(f"{task.name}: {sizes} rows" + (f" ({balance})" if balance else "") + reads, soft_wrap=True)
    frozen = sum(p.numel() for p in bench.model.parameters())
    err.print(f"{bench.name}: {frozen:,} frozen parameters, {bench.kind}", soft_wrap=True)


def _tell_cut(bench: Any, configs: list[Any]) -> None:
    """Encodes all rows and says which were too long."""
    with err.status("encoding the rows"):
        said = {bench.room(config): bench.say_cut(config) for config in configs}
    for _, line in sorted(said.items()):
        if line:
            err.print(line, soft_wrap=True)


def _tell(count: int, total: int, method: str, seed: int, result: dict[str, Any]) -> None:
    metrics = result["test_metrics"] or result["metrics"]
    scores = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if value is not None)
    what = scores or result["stop_reason"]
    time = f"{result['seconds']:.0f} s" + (f", beside {result['lanes'] - 1} more" if result["lanes"] > 1 else "")
    err.print(f"[{count}/{total}] {method}, seed {seed}: {what} ({time})", soft_wrap=True)
    if result["message"]:
        err.print(result["message"], soft_wrap=True)


def _report_run(path: Path, result: dict[str, Any]) -> None:
    if result["message"]:
        err.print(result["message"], soft_wrap=True)
    table = Table("split", *result["metrics"])
    for split in ("metrics", "test_metrics"):
        if result[split]:
            name = "validation" if split == "metrics" else "test"
            cells = ["-" if v is None else f"{v:.4f}" for v in result[split].values()]
            table.add_row(f"{name} ({result['eval_rows' if split == 'metrics' else 'test_rows']:,})", *cells)
    out.print(table)
    speed = 100 * result["step_seconds"] / max(1, result["steps"])
    out.print(
        f"best step {result['best_step']} of {result['steps']}; {result['trained_parameters']:,} trained parameters; "
        f"{speed:.1f} s/100 steps; peak memory {result['peak_memory'] / 1e9:.2f} GB",
        highlight=False,
    )
    out.print(f"run folder: {path}", soft_wrap=True)
    out.print(f"try it: softprompts predict {path} {_texts_for(result['task'], result['task_form'])}", soft_wrap=True)
    if result["stop_reason"] == "non-finite loss":
        raise SoftPromptError("the run did not reach its end; a lower learning rate (--lr) may help")


def _texts_for(task: str, form: Mapping[str, Any]) -> str:
    """How `predict` is given what a task reads."""
    from softprompts.tasks.catalog import SPECS

    fields = form["fields"]
    if task in SPECS and SPECS[task].prepare is not None and len(fields) > 2:
        return "--file ROWS.jsonl"  # its fields are made of the columns of such rows
    if len(fields) > 2:
        return " ".join(f'--field {name}="..."' for name in fields)
    return '"..."' + ' --text-pair "..."' * (len(fields) - 1)


def _show(comparison: Any, folder: Path) -> None:
    from softprompts.compare import COLUMNS, write_report

    if out.quiet:  # the main process writes
        return
    table = Table(title=f"{comparison.model} on {comparison.task}", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    rows = [comparison.cells(row) for row in comparison.rows]
    for index, name in enumerate(COLUMNS):
        # In a narrow terminal headers may wrap, numbers may not.
        width = max(len(cells[index]) for cells in rows)
        table.add_column(name, justify="left" if index == 0 else "right", min_width=width)
    for row, cells in zip(comparison.rows, rows, strict=True):
        table.add_row(*cells, style="bold" if row is comparison.best else None)
    written = write_report(comparison, folder)
    out.print(table)
    out.print(comparison.note())
    out.print("written: " + ", ".join(str(path) for path in written), soft_wrap=True)
    if len(written) < 3 and comparison.best is not None:
        out.print("no picture: pip install matplotlib")


def _show_leaderboard(found: Any, folder: Path, root: str) -> None:
    from softprompts.leaderboard import BEST, RECORDS

    table = Table(title=f"{found.model} on {found.task}", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    rows = [found.cells(entry, full=False) for entry in found.entries]
    for index, name in enumerate(found.columns(full=False)):
        words = name in ("method", "settings")
        # In a narrow terminal headers and settings may wrap, numbers and single settings may not.
        parts = [cells[index].split() if name == "settings" else [cells[index]] for cells in rows]
        width = max(len(part) for line in parts for part in line)
        table.add_column(name, justify="left" if words else "right", min_width=width)
    for entry, cells in zip(found.entries, rows, strict=True):
        table.add_row(*cells, style="bold" if entry is found.best else None)
    out.print(table)
    out.print(found.note())
    written = [folder / name for name in RECORDS]
    best = found.best
    if best is None:
        out.print("written: " + ", ".join(map(str, written)), soft_wrap=True)
        raise SoftPromptError(
            "no configuration reached its end; search lower learning rates (--space learning_rate=...)"
        )
    out.print(f"best: {best}", soft_wrap=True)
    out.print(f"its run: {Path(root) / best.run}; its prompt: {folder / BEST}", soft_wrap=True)
    out.print("written: " + ", ".join(map(str, written)), soft_wrap=True)
    out.print(f'try it: softprompts predict {folder / BEST} "..."', soft_wrap=True)


def _probability(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def main() -> None:
    """Runs the command line: 0 fine, 2 the caller's mistake, 130 interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Under a launcher all processes say the same; the main one says it.
    out.quiet = err.quiet = int(os.environ.get("RANK") or 0) > 0
    try:
        _quiet_transformers()
        app()
    except SoftPromptError as error:
        _fail(str(error))
    except OSError as error:  # no room on the disk, no right to write there
        _fail(f"{error.filename or 'file system'}: {error.strerror or error}")
    finally:
        if int(os.environ.get("WORLD_SIZE") or 1) > 1:
            from softprompts.training.processes import end

            end()


def _fail(message: str) -> NoReturn:
    err.print("error:", style="red", end=" ")
    err.print(" ".join(message.split()), soft_wrap=True)
    raise SystemExit(2)


def _quiet_transformers() -> None:
    if {"-h", "--help"} & set(sys.argv) or len(sys.argv) < 2:
        return  # help is quicker without loading it
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
