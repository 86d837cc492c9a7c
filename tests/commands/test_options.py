"""Options that are made of the fields of settings classes: what typer makes of them, and what becomes of them."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

from softprompts.commands import compare, search, train, transfer
from softprompts.commands.options import DATA_OPTIONS, TRAINING_OPTIONS, Options, with_options
from softprompts.errors import SoftPromptError
from softprompts.tasks.data import Data
from softprompts.training import TrainConfig
from softprompts.validation import settings


@settings
class Fruit:
    owner: ClassVar[str] = "fruit"

    apples: Annotated[int, Field(description="Red ones.")] = 1
    green_pears: Annotated[int | None, Field(ge=0, description="Green ones.")] = 2
    plums: Annotated[tuple[str, ...], Field(description="Blue ones.")] = ()
    weights: Annotated[Mapping[str, float], Field(description="Of each.")] = dataclasses.field(default_factory=dict)
    taste: Annotated[Literal["sweet", "sour"], Field(description="sweet or sour.")] = "sweet"
    ripe: Annotated[bool, Field(description="Or not.")] = False


FRUIT = Options(Fruit, panel="Fruit of the day", flags={"apples": "--apples -a", "weights": "--weight-of"})
OTHER = replace(FRUIT, without=("ripe",), defaults={"ripe": True, "apples": 5}, helps={"apples": "Yellow ones."})


def program(options: Options) -> tuple[typer.Typer, list[Any]]:
    app, calls = typer.Typer(), []

    def verb(*, first: int = 0, fruit: Fruit, last: bool = False) -> None:
        """What it does."""
        calls.append((first, fruit, last))

    verb.__annotations__["fruit"] = Annotated[Fruit, options]
    app.command()(with_options(verb))
    return app, calls


def test_fields_become_options_in_a_titled_group() -> None:
    app, calls = program(FRUIT)
    text = CliRunner().invoke(app, ["--help"]).output
    names = ("Fruit of the day", "--apples", "-a", "--green-pears", "--plums", "--weight-of", "--taste", "--ripe")
    places = [text.index(part) for part in ("What it does.", "--first", "--last", *names)]
    assert places == sorted(places) and "--fruit" not in text and "--no-ripe" not in text
    for part in ("Red ones.", "[default: 1]", "Green ones.", "x>=0", "<a,b,...>", "<name=number>", "[default: sweet]"):
        assert part in text
    given = ["-a", "3", "--plums", "x, y", "--weight-of", "x=1e-3", "--weight-of", "y=2", "--taste", "sour", "--ripe"]
    done = CliRunner().invoke(app, [*given, "--last"])
    assert done.exit_code == 0, done.output
    assert CliRunner().invoke(app, []).exit_code == 0
    full = Fruit(apples=3, plums=("x", "y"), weights={"x": 0.001, "y": 2.0}, taste="sour", ripe=True)
    assert calls == [(0, full, True), (0, Fruit(), False)]
    assert CliRunner().invoke(app, ["--green-pears", "-1"]).exit_code == 2 and len(calls) == 2


def test_values_that_make_no_sense_are_refused_by_the_class_and_by_name() -> None:
    app, calls = program(FRUIT)
    for flags, message in (
        (["--taste", "salty"], "fruit: taste must be one of sweet, sour, not 'salty'"),
        (["--weight-of", "x"], "--weight-of x: write NAME=VALUE"),
        (["--weight-of", "x=much"], "--weight-of x=much: a learning rate is a number"),
    ):
        error = CliRunner().invoke(app, flags).exception
        assert isinstance(error, SoftPromptError) and str(error) == message
    assert calls == []


def test_a_verb_has_defaults_and_descriptions_of_its_own_and_leaves_options_out() -> None:
    app, calls = program(OTHER)
    text = CliRunner().invoke(app, ["--help"]).output
    assert "Yellow ones." in text and "[default: 5]" in text and "Red ones." not in text and "--ripe" not in text
    assert CliRunner().invoke(app, ["--ripe"]).exit_code == 2
    assert CliRunner().invoke(app, []).exit_code == 0
    assert calls == [(0, Fruit(apples=5, ripe=True), False)]


def test_groups_with_an_option_of_the_same_name_are_refused() -> None:
    def verb(*, apples: int = 0, fruit: Annotated[Fruit, FRUIT]) -> None: ...

    verb.__annotations__["fruit"] = Annotated[Fruit, FRUIT]
    with pytest.raises(ValueError, match="apples"):
        with_options(verb)


def data_of(**given: Any) -> Data:
    """What the options make of values, the others as they are."""
    defaults = {option.name: option.default for option in DATA_OPTIONS.parameters()}
    assert set(given) <= set(defaults)
    data: Data = DATA_OPTIONS.read({**defaults, **given})
    return data


def test_every_data_option_reaches_the_data() -> None:
    # 1 and 2, a and b, ...: no two options have the same value, so none can take another's place.
    given: dict[str, Any] = {"task": "t", "data_dir": "d", "template": "p", "split": "smop", "answering": "rank"}
    given |= {"invalid": "zero", "max_train": 1, "max_validation": 2, "few_shot": 3, "few_shot_seed": 4}
    given |= {"few_shot_protocol": "dept", "max_new_tokens": 5}
    assert data_of(**given) == Data(**given)
    own: dict[str, Any] = {"validation": "v", "test": "w", "text": "a", "text_pair": "b", "label": "c", "sep": ";"}
    own |= {"label_separator": "|"}
    lists = {"choices": "e, f", "labels": "g,h", "label_words": "i,j", "label_columns": "k,l", "metrics": "m,n"}
    made = data_of(train="f.csv", kind="choice", **own, **lists)
    listed = {"choices": ("e", "f"), "labels": ("g", "h"), "label_words": ("i", "j"), "label_columns": ("k", "l")}
    listed |= {"metrics": ("m", "n")}
    assert made == Data(train="f.csv", kind="choice", **own, **listed)
    # All but what the command line does not offer, and another way to say kind="regression".
    fields = {f.name for f in dataclasses.fields(Data)} - {"max_test", "seed"}
    assert fields == {*given, *own, *lists, "train", "kind"}
    assert {option.name for option in DATA_OPTIONS.parameters()} == {*fields, "regression"}
    assert data_of(train="f.csv", regression=True).kind == "regression"
    assert data_of() == Data(task="reviews")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task": "t", "train": "d"}, "give --task or --data, not both"),
        ({"text_pair": "t"}, "--text-pair is about a file of your own: give --data too"),
        ({"regression": True}, "--regression is about a file of your own: give --data too"),
        ({"task": "t", "kind": "span"}, "--kind is about a file of your own: give --data too"),
        ({"train": "d", "template": "t"}, "--template goes with a task that has templates"),
        ({"train": "d", "regression": True, "kind": "span"}, "--regression and --kind span do not go together"),
    ],
)
def test_options_that_do_not_go_together(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SoftPromptError, match=message):
        data_of(**given)


def training_options(verb: Any) -> Options:
    """The options that a verb makes of the settings of training."""
    (options,) = typing.get_type_hints(inspect.unwrap(verb), include_extras=True)["training"].__metadata__
    assert isinstance(options, Options)
    return options


def trained(options: Options, **given: Any) -> TrainConfig:
    config: TrainConfig = options.read({**{each.name: each.default for each in options.parameters()}, **given})
    return config


def test_every_training_option_reaches_the_config() -> None:
    given: dict[str, Any] = {"epochs": 4, "batch_size": 5, "optimizer": "adafactor", "schedule": "constant"}
    given |= {"weight_decay": 0.1, "eval_every": 9, "patience": 2, "seed": 6, "bf16": True, "backbone_dropout": True}
    given |= {"max_steps": 11, "gradient_accumulation_steps": 3, "learning_rate": 0.3, "warmup_steps": 7}
    given |= {"group_by_length": False, "learning_rate_factor": 3.0, "calibrate": True}
    expected = TrainConfig(**given, learning_rates={"router": 0.001})
    assert trained(TRAINING_OPTIONS, **given, learning_rates=["router=1e-3"]) == expected
    for text, rate in (("0.5", 0.5), ("5e-1", 0.5), ("main", "main"), (None, None)):
        assert trained(TRAINING_OPTIONS, head_learning_rate=text).head_learning_rate == rate
    with pytest.raises(SoftPromptError, match="head_learning_rate must be a number above 0 or 'main', not 'fast'"):
        trained(TRAINING_OPTIONS, head_learning_rate="fast")
    for text, chosen in (("f1", "f1"), ("0.3", 0.3), (None, None)):
        assert trained(TRAINING_OPTIONS, threshold=text).threshold == chosen
    for texts, weights in ((["balanced"], "balanced"), (["a=2,b=0.5"], {"a": 2, "b": 0.5}), (["a=2", "b=1"], None)):
        assert trained(TRAINING_OPTIONS, class_weights=texts).class_weights == (weights or {"a": 2, "b": 1})
    others = {"learning_rates", "head_learning_rate", "threshold", "class_weights"}
    assert {option.name for option in TRAINING_OPTIONS.parameters()} == {*given, *others}
    fields = {f.name for f in dataclasses.fields(TrainConfig)}
    assert fields - {*given, *others} == {
        "eval_batch_size",
        "warmup_ratio",
        "max_grad_norm",
    }
    with pytest.raises(SoftPromptError, match="--lr-of router=x: a learning rate is a number"):
        trained(TRAINING_OPTIONS, learning_rates=["router=x"])


def test_what_verbs_train_with_when_nothing_is_said() -> None:
    """Ids of runs are made of these."""
    usual = TrainConfig(epochs=3, backbone_dropout=False)
    assert trained(training_options(train.train)) == trained(training_options(compare.compare)) == usual
    assert trained(training_options(search.search)) == replace(usual, epochs=1)
    assert trained(training_options(transfer.transfer)) == replace(usual, epochs=1, max_steps=60, batch_size=16)
