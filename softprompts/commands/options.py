"""The options that several verbs have, in groups, and what becomes of them.

A group is a dataclass whose fields are options. A verb for which one of them is another one (its default, its help) has
a subclass that declares the field again, in the same place of ``--help``; with ``field(init=False, default=...)`` it is
no option of that verb but always this value.

Annotations are not put off here: to read so many of them as text would slow every start of the program.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from softprompts.commands.parsing import pairs, value_of
from softprompts.commands.terminal import err
from softprompts.errors import SoftPromptError

if TYPE_CHECKING:
    from softprompts.experiments.workbench import Workbench
    from softprompts.tasks.data import Data
    from softprompts.training import TrainConfig

DataDir = Annotated[str | None, typer.Option("--data-dir", help="Folder with a local copy of the task's data.")]
MaxValidation = Annotated[int | None, typer.Option(min=1, help="At most so many rows to score on.")]
MaxLength = Annotated[int, typer.Option(min=4, help="Most tokens of an input, the prompt not counted.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows per forward pass.")]
Lanes = Annotated[
    int | None,
    typer.Option(min=1, help="Runs that share each pass of the model; default: as many as there is memory for."),
]
Out = Annotated[str, typer.Option("--out", "-o", help="Where run folders go.")]
Tracker = Annotated[list[str] | None, typer.Option("--tracker", help="tensorboard, wandb, ... (any of Accelerate's).")]


def grouped(verb: Callable[..., None]) -> Callable[..., None]:
    """Gives a verb the options of its groups: for each parameter that is a dataclass, the fields of that class.

    They stand where the parameter stands. The verb itself is called with the dataclass, not with the options.
    """
    hints = get_type_hints(verb, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    options: list[inspect.Parameter] = []
    for name, own in inspect.signature(verb).parameters.items():
        options += _options(groups[name]) if name in groups else [own.replace(annotation=hints[name])]

    @functools.wraps(verb)
    def flat(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{option.name: given.pop(option.name) for option in _options(group)})
        verb(**given)

    flat.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]  # what typer reads
    flat.__annotations__ = {option.name: option.annotation for option in options}
    return flat


def _options(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
        for f in dataclasses.fields(group)
        if f.init
    ]


@dataclass(frozen=True, kw_only=True)
class WorkbenchOptions:
    """Rows and model: what a workbench is made of."""

    task: Annotated[
        str | None,
        typer.Option("--task", "-t", help="Task by name, see 'softprompts tasks', or your own as a YAML file."),
    ] = None
    data_dir: DataDir = None
    template: Annotated[
        str | None,
        typer.Option(help="How the task's rows are written out, by name; see 'softprompts tasks show TASK'."),
    ] = None
    split: Annotated[
        str, typer.Option(help="How rows are parted into train, validation and test: official, smop, dept or residual.")
    ] = "official"
    answer: Annotated[
        str | None,
        typer.Option("--answer", help="How a language model answers: rank (the label words) or generate (freely)."),
    ] = None
    invalid: Annotated[
        str | None,
        typer.Option(help="What a generated answer that is no label counts as: mismatch, opposite or zero."),
    ] = None
    data: Annotated[
        str | None, typer.Option("--data", help="Your own file to train on: CSV, TSV, JSONL, JSON or (tagging) CoNLL.")
    ] = None
    kind: Annotated[
        str, typer.Option(help="What --data is about: classification, regression, choice, span or tagging.")
    ] = "classification"
    validation: Annotated[str | None, typer.Option("--validation", help="Your own file to score on.")] = None
    test: Annotated[str | None, typer.Option("--test", help="Your own file for the last score, not to choose by.")] = (
        None
    )
    text: Annotated[
        str | None,
        typer.Option("--text", help="Column of the text, the words or the question; default: its usual name."),
    ] = None
    text_pair: Annotated[str | None, typer.Option("--text-pair", help="Column of the second text or the context.")] = (
        None
    )
    label: Annotated[
        str | None,
        typer.Option("--label", help="Column of the label, the tags or the answers; default: its usual name."),
    ] = None
    choices: Annotated[
        str | None, typer.Option("--choices", help="Columns of the choices, by commas, or the one of a list of them.")
    ] = None
    labels: Annotated[
        str | None, typer.Option("--labels", help="Names of the labels or tags, by commas, where --data has numbers.")
    ] = None
    regression: Annotated[bool, typer.Option("--regression", help="As --kind regression: the labels are scores.")] = (
        False
    )
    label_words: Annotated[
        str | None,
        typer.Option("--label-words", help="What a language model answers for each label of --data, by commas."),
    ] = None
    model: Annotated[
        str, typer.Option("--model", "-m", help="Backbone: hub id, local folder, or the packaged encoder.")
    ] = "all-minilm-l6-v2"
    quantize: Annotated[
        str | None,
        typer.Option(help="Keep the backbone in 4 or 8 bits: nf4, fp4, int8 (bitsandbytes) or torchao-int8."),
    ] = None
    max_train: Annotated[int | None, typer.Option(min=1, help="At most so many rows to train on.")] = None
    max_validation: MaxValidation = None
    few_shot: Annotated[
        int | None, typer.Option(min=1, help="Train on so many rows in all, about evenly many of each label.")
    ] = None
    few_shot_seed: Annotated[int, typer.Option(min=0, help="Draws the rows of --few-shot; --seed does not.")] = 0
    few_shot_protocol: Annotated[
        str, typer.Option(help="How they are drawn: even, or dept (as DePT's authors do).")
    ] = "even"
    max_length: MaxLength = 256

    def to_data(self) -> "Data":
        """Where the rows come from.

        Raises:
            SoftPromptError: options that do not go together.
        """
        from softprompts.tasks.data import Data

        if self.task is not None and self.data is not None:
            raise SoftPromptError("give --task or --data, not both")
        if self.regression and self.kind not in ("classification", "regression"):
            raise SoftPromptError(f"--regression and --kind {self.kind} do not go together")
        if self.data is None:
            own = {
                "--validation": self.validation,
                "--test": self.test,
                "--text": self.text,
                "--text-pair": self.text_pair,
                "--label": self.label,
                "--choices": self.choices,
                "--labels": self.labels,
                "--label-words": self.label_words,
                "--regression": self.regression or None,
                "--kind": None if self.kind == "classification" else self.kind,
            }
            given = [flag for flag, value in own.items() if value is not None]
            if given:
                raise SoftPromptError(f"{given[0]} is about a file of your own: give --data too")
        elif self.template is not None:
            raise SoftPromptError(
                "--template goes with a task that has templates; declare yours in a YAML file (--task)"
            )
        return Data(
            task=self.task or ("reviews" if self.data is None else None),
            data_dir=self.data_dir,
            train=self.data,
            validation=self.validation,
            test=self.test,
            text=self.text,
            text_pair=self.text_pair,
            label=self.label,
            choices=_parts(self.choices),
            kind="regression" if self.regression else self.kind,
            labels=_parts(self.labels),
            label_words=_parts(self.label_words),
            template=self.template,
            answering=self.answer,
            invalid=self.invalid,
            split=self.split,
            max_train=self.max_train,
            max_validation=self.max_validation,
            few_shot=self.few_shot,
            few_shot_seed=self.few_shot_seed,
            few_shot_protocol=self.few_shot_protocol,
        )

    def to_workbench(self, backbone_dropout: bool) -> "Workbench":
        """The rows and the model, loaded.

        Raises:
            SoftPromptError: options that do not go together, or a task, file or model that cannot be used.
        """
        from softprompts.experiments.workbench import Workbench
        from softprompts.processes import synchronized

        source = self.to_data()
        with err.status("loading data and model"), synchronized():
            return Workbench(self.model, source, self.max_length, backbone_dropout, quantize=self.quantize)


def _parts(text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(part.strip() for part in text.split(","))


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How a run trains."""

    steps: Annotated[int | None, typer.Option(min=1, help="Number of updates; in place of --epochs.")] = None
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training rows.")] = 3
    batch_size: BatchSize = 32
    accumulate: Annotated[int, typer.Option(min=1, help="Forward passes per update.")] = 1
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate of the method's main component.")] = None
    lr_of: Annotated[
        list[str] | None, typer.Option("--lr-of", help="Learning rate of one component: router=0.001.")
    ] = None
    optimizer: Annotated[str, typer.Option(help="adamw or adafactor.")] = "adamw"
    schedule: Annotated[str, typer.Option(help="linear or constant.")] = "linear"
    warmup: Annotated[int, typer.Option(min=0, help="Steps of warm-up.")] = 0
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay of all components.")] = None
    eval_every: Annotated[int | None, typer.Option(min=1, help="Steps between evaluations; default: an epoch.")] = None
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many evaluations without a better score.")
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="Of initialisation, data order and what a method draws.")] = 0
    bf16: Annotated[bool, typer.Option("--bf16", help="Forward passes in bfloat16.")] = False
    backbone_dropout: Annotated[
        bool, typer.Option("--backbone-dropout", help="Keep the frozen model's dropout on.")
    ] = False
    compile_: Annotated[bool, typer.Option("--compile", help="Compile the backbone's layers: for long runs.")] = False

    def to_config(self) -> "TrainConfig":
        """How a run trains, as the library takes it.

        Raises:
            SoftPromptError: a value makes no sense.
        """
        from softprompts.training import TrainConfig

        rates = {}
        for name, text in pairs(self.lr_of, "--lr-of").items():
            value = value_of(text)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise SoftPromptError(f"--lr-of {name}={text}: a learning rate is a number")
            rates[name] = float(value)
        return TrainConfig(
            max_steps=self.steps,
            epochs=self.epochs,
            batch_size=self.batch_size,
            gradient_accumulation_steps=self.accumulate,
            optimizer=self.optimizer,
            learning_rate=self.lr,
            learning_rates=rates,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            warmup_steps=self.warmup,
            eval_every=self.eval_every,
            patience=self.patience,
            seed=self.seed,
            bf16=self.bf16,
            backbone_dropout=self.backbone_dropout,
            compile=self.compile_,
        )


def report_folder(report: str | None, root: str, name: str) -> Path:
    """Where a report goes: as asked, else beside the runs."""
    return Path(report) if report is not None else Path(root) / name
