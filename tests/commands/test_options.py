"""Groups of options: what typer makes of them, and what becomes of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from softprompts.commands.options import TrainingOptions, WorkbenchOptions, grouped
from softprompts.errors import SoftPromptError
from softprompts.tasks.data import Data
from softprompts.training import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Fruit:
    apples: Annotated[int, typer.Option("--apples", "-a", help="Red ones.")] = 1
    pears: Annotated[int, typer.Option(min=0, help="Green ones.")] = 2
    plums: Annotated[list[str] | None, typer.Option("--plum")] = None


@dataclass(frozen=True, kw_only=True)
class OtherFruit(Fruit):
    apples: Annotated[int, typer.Option(help="Yellow ones.")] = 5
    pears: int = field(init=False, default=7)


def program(group: type[Fruit]) -> tuple[typer.Typer, list[Any]]:
    app, seen = typer.Typer(), []

    def verb(*, first: int = 0, fruit: Fruit, last: bool = False) -> None:
        """What it does."""
        seen.append((first, fruit, last))

    verb.__annotations__["fruit"] = group
    app.command()(grouped(verb))
    return app, seen


def test_fields_become_options_in_the_place_of_their_group() -> None:
    app, seen = program(Fruit)
    text = CliRunner().invoke(app, ["--help"]).output
    places = [text.index(part) for part in ("What it does.", "--first", "--apples", "--pears", "--plum", "--last")]
    assert places == sorted(places) and "Green ones." in text and "--fruit" not in text
    done = CliRunner().invoke(app, ["-a", "3", "--plum", "x", "--plum", "y", "--last"])
    assert done.exit_code == 0, done.output
    assert CliRunner().invoke(app, []).exit_code == 0
    assert seen == [(0, Fruit(apples=3, plums=["x", "y"]), True), (0, Fruit(), False)]
    assert CliRunner().invoke(app, ["--pears", "-1"]).exit_code == 2 and len(seen) == 2


def test_a_subclass_changes_an_option_or_fixes_it() -> None:
    app, seen = program(OtherFruit)
    text = CliRunner().invoke(app, ["--help"]).output
    assert text.index("--apples") < text.index("--plum")  # still in its place
    assert "Yellow ones." in text and "Red ones." not in text and "--pears" not in text
    assert CliRunner().invoke(app, ["--pears", "1"]).exit_code == 2
    assert CliRunner().invoke(app, []).exit_code == 0
    assert seen == [(0, OtherFruit(apples=5), False)] and seen[0][1].pears == 7


def test_groups_with_an_option_of_the_same_name_are_refused() -> None:
    def verb(*, apples: int = 0, fruit: Fruit) -> None: ...

    with pytest.raises(ValueError, match="apples"):
        grouped(verb)


def test_every_workbench_option_reaches_the_data() -> None:
    # 1 and 2, a and b, ...: no two options have the same value, so none can take another's place.
    given: dict[str, Any] = {"task": "t", "data_dir": "d", "template": "p", "split": "smop", "answer": "rank"}
    given |= {"invalid": "zero", "max_train": 1, "max_validation": 2, "few_shot": 3, "few_shot_seed": 4}
    given |= {"few_shot_protocol": "dept"}
    expected = {**given, "answering": given["answer"]}
    del expected["answer"]
    assert WorkbenchOptions(**given).to_data() == Data(**expected)
    own: dict[str, Any] = {"validation": "v", "test": "w", "text": "a", "text_pair": "b", "label": "c"}
    lists = {"choices": "e, f", "labels": "g,h", "label_words": "i,j"}
    made = WorkbenchOptions(data="f.csv", kind="choice", **own, **lists).to_data()
    listed = {"choices": ("e", "f"), "labels": ("g", "h"), "label_words": ("i", "j")}
    assert made == Data(train="f.csv", kind="choice", **own, **listed)
    # Besides these there are only what the workbench itself takes, and another way to say kind="regression".
    all_ = {f.name for f in dataclasses.fields(WorkbenchOptions)}
    assert all_ == {*given, *own, *lists, "data", "kind", "model", "max_length", "quantize", "regression"}
    assert WorkbenchOptions(data="f.csv", regression=True).to_data().kind == "regression"
    assert WorkbenchOptions().to_data() == Data(task="reviews")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task": "t", "data": "d"}, "give --task or --data, not both"),
        ({"text_pair": "t"}, "--text-pair is about a file of your own: give --data too"),
        ({"data": "d", "template": "t"}, "--template goes with a task that has templates"),
        ({"data": "d", "regression": True, "kind": "span"}, "--regression and --kind span do not go together"),
    ],
)
def test_options_that_do_not_go_together(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SoftPromptError, match=message):
        WorkbenchOptions(**given).to_data()


def test_every_training_option_reaches_the_config() -> None:
    same: dict[str, Any] = {"epochs": 4, "batch_size": 5, "optimizer": "adafactor", "schedule": "constant"}
    same |= {"weight_decay": 0.1, "eval_every": 9, "patience": 2, "seed": 6, "bf16": True, "backbone_dropout": True}
    named: dict[str, Any] = {"steps": 11, "accumulate": 3, "lr": 0.3, "lr_of": ["router=1e-3"], "warmup": 7}
    expected = TrainConfig(
        **same,
        max_steps=11,
        gradient_accumulation_steps=3,
        learning_rate=0.3,
        learning_rates={"router": 0.001},
        warmup_steps=7,
        compile=True,
    )
    assert TrainingOptions(**same, **named, compile_=True).to_config() == expected
    assert {f.name for f in dataclasses.fields(TrainingOptions)} == {*same, *named, "compile_"}
    with pytest.raises(SoftPromptError, match="--lr-of router=x: a learning rate is a number"):
        TrainingOptions(lr_of=["router=x"]).to_config()
