"""Command-line options that are made from the fields of settings classes, and those that several verbs share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_origin, get_type_hints

import typer
from pydantic import Field

from softprompts.backbones.packaged import DEFAULT_MODEL
from softprompts.commands.parsing import kinds_of, pairs, value_of
from softprompts.commands.run_file import read_run_file
from softprompts.commands.terminal import err, typed_command
from softprompts.errors import SoftPromptError
from softprompts.storage.files import require_folder
from softprompts.storage.runs import located
from softprompts.tasks.data import MAX_LENGTH, Data
from softprompts.training.config import TrainConfig
from softprompts.training.generation import Sampling
from softprompts.validation import settings

if TYPE_CHECKING:
    from softprompts.experiments.warm_start import WarmStart
    from softprompts.experiments.workbench import Workbench

# Titles of the groups in --help.
DATA, MODEL, METHOD, TRAINING, OUTPUT = "Task and data", "Model", "Method", "Training", "Output"


def option(panel: str | None, help: str, flags: str = "", **more: Any) -> Any:
    """An option of a group; ``flags``, with spaces between them, are by default ``--`` and the parameter's name."""
    return typer.Option(*flags.split(), help=help, rich_help_panel=panel, **more)


def _place_of(source: str) -> str:
    return str(located(source))


def _places_of(sources: list[str]) -> list[str]:
    return [str(located(source)) for source in sources]


_SOURCE = "Run by its name or folder, prompt folder or hub id."
Source = Annotated[str, typer.Argument(metavar="RUN_OR_PROMPT", help=_SOURCE, callback=_place_of)]
Sources = Annotated[
    list[str], typer.Argument(metavar="RUN_OR_PROMPT...", help=f"{_SOURCE[:-1]}; or several.", callback=_places_of)
]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows per forward pass.")]
Place = Annotated[
    str | None, typer.Option("--model", "-m", help="The backbone, where it is not in the place that the prompt names.")
]
DataDir = Annotated[str | None, typer.Option("--data-dir", help="Folder with a local copy of the task's data.")]
Methods = Annotated[str, option(METHOD, "Names, separated by commas.", "--methods")]
Set = Annotated[
    list[str] | None,
    option(METHOD, "A setting of all methods that have it, or of one: num_masks=2, multi-mask.num_masks=2.", "--set"),
]
Seeds = Annotated[str, option(TRAINING, "Of initialisation, data order and draws; separated by commas.")]
Lanes = Annotated[
    int | None,
    option(TRAINING, "Runs that share each pass of the model; default: as many as there is memory for.", min=1),
]
Out = Annotated[str, option(OUTPUT, "Where run folders go.", "--out -o")]
Report = Annotated[str | None, option(OUTPUT, "Folder of the report; default: in --out, by the verb's name.")]
CONFIG = option(
    OUTPUT,
    "Settings from a file, such as the run.yaml that a run leaves, or that of a run by name; flags go before.",
    "--config -c",
)
Tracker = Annotated[list[str] | None, option(OUTPUT, "tensorboard, wandb, ... (any of Accelerate's).", "--tracker")]


@settings
class ModelSettings:
    """The frozen model of a verb's runs."""

    owner: ClassVar[str] = "model"

    name: Annotated[str, Field(description="Backbone: hub id, local folder, or the packaged encoder.")] = DEFAULT_MODEL
    quantize: Annotated[
        str | None,
        Field(description="Keep the backbone in 4 or 8 bits: nf4, fp4, int8 (bitsandbytes) or torchao-int8."),
    ] = None
    max_length: Annotated[int, Field(ge=4, description="Most tokens of an input, the prompt not counted.")] = MAX_LENGTH


@dataclass(frozen=True)
class Options:
    """Makes the fields of a settings class options of a verb, as the annotation of a parameter of the verb."""

    settings: type[Any]
    panel: str | None = None  # title of the options' group in --help
    flags: Mapping[str, str] = field(default_factory=dict)  # of fields whose flag is not -- and their name
    without: tuple[str, ...] = ()  # fields that are no options of the verb
    defaults: Mapping[str, Any] = field(default_factory=dict)  # the verb's own, also of fields that are no options
    helps: Mapping[str, str] = field(default_factory=dict)  # the verb's own descriptions
    # Makes the settings from the options' values, in place of the class; its keyword-only parameters are options too.
    build: Callable[..., Any] | None = None
    # Of a field, those that go out of a file of settings when the field's option is typed: they would contradict it.
    replaces: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def drop(self, *names: str) -> Options:
        """The same options without some."""
        return replace(self, without=(*self.without, *names))

    def parameters(self) -> list[inspect.Parameter]:
        """The options as parameters of a function, as typer reads them."""
        named = inspect.signature(self.build, eval_str=True).parameters.values() if self.build is not None else ()
        more = [parameter for parameter in named if parameter.kind is parameter.KEYWORD_ONLY]
        return [*(self._parameter(name, info) for name, info in self._fields().items()), *more]

    def read(
        self, values: Mapping[str, Any], stored: Mapping[str, Any] | None = None, typed: Collection[str] = ()
    ) -> Any:
        """The settings from the values of the options.

        Args:
            values: of all options, by their names.
            stored: values of fields from a file of settings.
            typed: names of the options that were given on the command line, whose values go before those of the file.

        Raises:
            SoftPromptError: they do not make sense.
        """
        fields = self._fields()
        parsed = {
            name: _parsed(fields[name].annotation, value, self._flags(name)[0]) if name in fields else value
            for name, value in values.items()
        }
        gone = {*typed, *(other for name in typed for other in self.replaces.get(name, ()))}
        kept = {name: value for name, value in (stored or {}).items() if name not in gone}
        return (self.build or self.settings)(**{**self.defaults, **parsed, **kept})

    def names(self) -> dict[str, str]:
        """The fields by the names of their flags: "learning_rate" by "lr"."""
        return {flag.lstrip("-").replace("-", "_"): name for name in self._fields() for flag in self._flags(name)}

    def _fields(self) -> dict[str, Any]:
        """Pydantic's descriptions of the fields that are options."""
        return {name: info for name, info in self.settings.__pydantic_fields__.items() if name not in self.without}

    def _flags(self, name: str) -> list[str]:
        return self.flags.get(name, f"--{name.replace('_', '-')}").split()

    def _parameter(self, name: str, info: Any) -> inspect.Parameter:
        kind, metavar = _TEXT_TYPES.get(_form(info.annotation), (info.annotation, None))
        least = [bound.ge for bound in info.metadata if hasattr(bound, "ge")]
        made = option(
            self.panel,
            self.helps.get(name, info.description),
            " ".join(self._flags(name)),
            min=least[0] if least and int in kinds_of(info.annotation) else None,
            metavar=metavar,
        )
        default = self.defaults.get(name, info.default) if metavar is None else None
        return inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, made]
        )


# The types of options that typer has in place of a field's, and what --help calls their values.
_TEXT_TYPES: dict[Any, Any] = {
    Literal: (str, None),
    tuple: (str | None, "<a,b,...>"),
    Mapping: (list[str] | None, "<name=number>"),
    float: (str | None, "<number|word>"),
    dict: (list[str] | None, "<word|name=number>"),
}


def _form(annotation: Any) -> Any:
    """The key of `_TEXT_TYPES` for a field: float for one that takes a number or a word, dict for numbers or a word."""
    kinds = kinds_of(annotation)
    if Literal in kinds and kinds & {float, Mapping}:
        return float if float in kinds else dict
    return get_origin(annotation)


def _parsed(annotation: Any, value: Any, flag: str) -> Any:
    """The value of a field from that of its option: parts between commas, NAME=NUMBER, or a number or a word."""
    kind = _form(annotation)
    if kind is tuple:
        return () if value is None else tuple(part.strip() for part in value.split(","))
    if kind is float:
        return None if value is None else value_of(value)
    if kind is dict and (not value or "=" not in value[0]):
        return value[0] if value else None
    if kind is dict and all("=" in part for text in value for part in text.split(",")):  # ham=1,spam=5
        value = [part.strip() for text in value for part in text.split(",")]
    if kind not in (Mapping, dict):
        return value
    numbers = {}
    for name, text in pairs(value, flag).items():
        numbers[name] = value_of(text)
        if isinstance(numbers[name], bool) or not isinstance(numbers[name], int | float):
            raise SoftPromptError(
                f"{flag} {name}={text}: a {'weight' if kind is dict else 'learning rate'} is a number"
            )
    return numbers


def with_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Expands each parameter of a verb that `Options` annotate into these options; typer calls the result.

    The verb itself is called with the settings that were made from the options' values. A verb with a parameter
    ``config`` takes a file of settings, which stand where no option was typed, and gets the `RunFile`; one with a
    parameter ``context`` gets typer's.
    """
    hints = get_type_hints(verb, include_extras=True)
    reads_file, takes_context = "config" in hints, _CONTEXT in hints
    if reads_file:  # typed as a path, which `run` reads
        hints["config"] = Annotated[str | None, CONFIG]
    groups = {
        name: group
        for name, hint in hints.items()
        for group in getattr(hint, "__metadata__", ())
        if isinstance(group, Options)
    }
    options: dict[str, list[inspect.Parameter]] = {
        name: groups[name].parameters() if name in groups else [parameter.replace(annotation=hints[name])]
        for name, parameter in inspect.signature(verb).parameters.items()
    }

    @functools.wraps(verb)
    def run(**values: Any) -> None:
        context: Any = values.get(_CONTEXT) if takes_context else values.pop(_CONTEXT, None)
        stored, given_here = None, set[str]()
        if reads_file and values["config"] is not None:
            given_here = {name for name in values if typed(context, name)}
            classes = {name: group.settings for name, group in groups.items()}
            flags = {name: group.names() for name, group in groups.items()}
            stored = values["config"] = read_run_file(values["config"], classes, flags)
            if stored.method is not None and "method" not in given_here:
                values["method"] = stored.method
        for name, group in groups.items():
            given = {option.name: values.pop(option.name) for option in options[name]}
            values[name] = group.read(given, None if stored is None else stored.groups[name], given_here)
        verb(**values)

    added = inspect.Parameter(_CONTEXT, inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    of_typer = [added] * (reads_file and not takes_context)
    signature = inspect.Signature([*of_typer, *(option for group in options.values() for option in group)])
    run.__signature__ = signature  # type: ignore[attr-defined]  # what typer reads
    run.__annotations__ = {name: option.annotation for name, option in signature.parameters.items()}
    return run


Import = Annotated[
    list[str] | None, typer.Option("--import", help="A Python file with methods of your own; may be given again.")
]


def with_imports(verb: Callable[..., None]) -> Callable[..., None]:
    """Adds ``--import FILE`` to a verb: methods in these files are known in it, and in its workers."""

    @functools.wraps(verb)
    def run(*, import_: list[str] | None, **values: Any) -> None:
        if import_:
            from softprompts.methods.imports import import_methods

            for given in import_:
                import_methods(given)
        verb(**values)

    hints = get_type_hints(verb, include_extras=True)
    given = inspect.signature(verb).parameters.values()
    added = inspect.Parameter("import_", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Import)
    signature = inspect.Signature([*(each.replace(annotation=hints[each.name]) for each in given), added])
    run.__signature__ = signature  # type: ignore[attr-defined]  # what typer reads
    run.__annotations__ = {name: each.annotation for name, each in signature.parameters.items()}
    return run


_CONTEXT = "context"  # parameter by which typer tells which options were typed

# Settings of the rows of a file, which a task by name has already.
_OF_FILES = (
    "validation", "test", "text", "text_pair", "label", "label_separator", "label_columns", "choices", "labels",
    "label_words", "metrics", "kind", "sep",
)  # fmt: skip


def _data(
    *,
    regression: Annotated[bool, option(DATA, "As --kind regression: the labels are scores.", "--regression")] = False,
    **values: Any,
) -> Data:
    """The data that options name, without any the packaged reviews; refuses options that do not go together."""
    empty = next((name for name, value in values.items() if value == ""), None)
    if empty is not None:
        raise SoftPromptError(f"{_flag(empty)} is empty: name something, or leave it out")
    if values.get("task") is not None and values["train"] is not None:
        raise SoftPromptError("give --task or --data, not both")
    if regression and values["kind"] not in ("classification", "regression"):
        raise SoftPromptError(f"--regression and --kind {values['kind']} do not go together")
    data = Data(**{**values, "kind": "regression"} if regression else values)
    if data.train is None:
        given = [name for name in _OF_FILES if getattr(data, name) != getattr(_PLAIN, name)]
        if given:
            flag = "--regression" if given == ["kind"] and regression else _flag(given[0])
            raise SoftPromptError(f"{flag} is about a file of your own: give --data too")
    elif data.template is not None:
        raise SoftPromptError("--template goes with a task that has templates; declare yours in a YAML file (--task)")
    return data if data.train is not None or data.task is not None else replace(data, task="reviews")


def _flag(name: str) -> str:
    return DATA_OPTIONS.flags.get(name, f"--{name.replace('_', '-')}").split()[0]


_PLAIN = Data()
MOST = 1000  # of a learning rate: a step of AdamW moves each parameter by about the rate
DATA_OPTIONS = Options(
    Data,
    panel=DATA,
    flags={"task": "--task -t", "train": "--data", "answering": "--answer", "sep": "--separator"},
    without=("max_test", "seed"),
    build=_data,
    replaces={"task": ("train", *_OF_FILES), "train": ("task", "template")},
)
TRAINING_OPTIONS = Options(
    TrainConfig,
    panel=TRAINING,
    flags={
        "max_steps": "--steps",
        "gradient_accumulation_steps": "--accumulate",
        "learning_rate": "--lr",
        "head_learning_rate": "--head-lr",
        "learning_rates": "--lr-of",
        "warmup_steps": "--warmup",
    },
    without=("eval_batch_size", "warmup_ratio", "max_grad_norm"),
    defaults={"epochs": 3, "backbone_dropout": False},  # ids of runs are made of them
    replaces={"epochs": ("max_steps",), "warmup_steps": ("warmup_ratio",)},
    helps={"backbone_dropout": "Keep the frozen model's dropout on."},
)


SAMPLING_OPTIONS = Options(Sampling)
MODEL_OPTIONS = Options(ModelSettings, panel=MODEL, flags={"name": "--model -m"})


def typed(context: typer.Context, *names: str) -> bool:
    """Whether any of these parameters of a verb was given on the command line."""
    sources = [context.get_parameter_source(name) for name in names]
    return any(source is not None and source.name == "COMMANDLINE" for source in sources)


def open_workbench(
    model: ModelSettings, data: Data, training: TrainConfig, evaluate: bool = True, start: WarmStart | None = None
) -> Workbench:
    """Loads the rows and the model; raises a `SoftPromptError` where one of them cannot be used."""
    from softprompts.experiments.workbench import Workbench
    from softprompts.processes import synchronized

    rates = {
        "--lr": training.learning_rate,
        "--head-lr": training.head_learning_rate,
        **{f"--lr-of {name}": rate for name, rate in training.learning_rates.items()},
    }
    for flag, rate in rates.items():
        if isinstance(rate, int | float) and rate > MOST:
            raise SoftPromptError(f"{flag} {rate:g}: a learning rate is at most {MOST} here")
    with err.status("loading data and model"), synchronized():
        bench = Workbench(
            model.name,
            data,
            model.max_length,
            bool(training.backbone_dropout),
            evaluate,
            quantize=model.quantize,
            command=typed_command(),
            start=start,
        )
    for name, flag in (("label_words", "--label-words"), ("answering", "--answer"), ("invalid", "--invalid")):
        if getattr(data, name) and bench.kind == "encoder":
            raise SoftPromptError(
                f"{flag} is about what a language model writes; {model.name} is an encoder, whose head names the label"
            )
    return bench


def report_folder(report: str | None, root: str, name: str) -> Path:
    """The folder of a report: the given one, or one beside the runs; checked before anything trains for minutes."""
    folder = Path(report) if report is not None else Path(root) / name
    require_folder(folder, "the report")
    return folder
