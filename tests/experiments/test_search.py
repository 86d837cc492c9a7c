"""Searching: who is proposed, who is cut, and that nothing but the search's settings decides it."""

from __future__ import annotations

import csv
import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from saved import Cli, model_folder, rows, write_csv

import softprompts as sp
from softprompts.errors import SoftPromptError
from softprompts.experiments.leaderboard import Entry, Leaderboard
from softprompts.experiments.search import rungs, search
from softprompts.experiments.trial import Trial
from softprompts.experiments.workbench import Workbench
from softprompts.methods import MethodConfig, Span
from softprompts.storage import run_folder
from softprompts.tasks.data import Data
from softprompts.training import TrainConfig

BUDGET = TrainConfig(max_steps=8, batch_size=8)
METHODS = ("prefix-tuning", "prompt-tuning")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return make_bench(tmp_path_factory.mktemp("data"))


def make_bench(folder: Path) -> Workbench:
    for name, seed in (("train", 0), ("validation", 1)):
        lines = rows(40, seed)
        for index, line in enumerate(lines):
            if index % 5 == 0:  # some labels are wrong, so that scores differ
                line["label"] = "positive"
        write_csv(folder / f"{name}.csv", lines)
    places = {name: str(folder / f"{name}.csv") for name in ("train", "validation")}
    return Workbench(model_folder("bert"), Data(**places))


def run(bench: Workbench, root: Path, **changes: Any) -> Leaderboard:
    asked: dict[str, Any] = {"trials": 8, "min_steps": 2, "generation": 4, "lanes": 4, **changes}
    methods = asked.pop("methods", METHODS)
    return search(bench, methods, asked.pop("training", BUDGET), root=root, progress=False, **asked)


@pytest.fixture(scope="module")
def undisturbed(bench: Workbench, tmp_path_factory: pytest.TempPathFactory) -> tuple[Leaderboard, Path]:
    root = tmp_path_factory.mktemp("undisturbed")
    return run(bench, root), root


def report(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "search").glob("leaderboard.*"))}


# --- the grid ---------------------------------------------------------------------------------------------------------


def test_rungs_are_shares_of_the_budget_that_end_with_an_evaluation() -> None:
    assert rungs(60, 8) == ((30, 60), 30)
    assert rungs(60, 8, min_steps=10) == ((15, 30, 60), 15)
    assert rungs(160, 8) == ((20, 40, 80, 160), 20)
    assert rungs(80, 9, eta=3, min_steps=1) == ((8, 24, 80), 8)
    assert rungs(80, 3) == ((40, 80), 40)
    assert rungs(100, 8, min_steps=10, eval_every=10) == ((20, 30, 50, 100), 10)
    assert rungs(100, 8, eval_every=30) == ((60, 100), 30)
    assert rungs(5, 1) == ((5,), None)
    assert rungs(5, 1, eval_every=2) == ((5,), 2)


def test_rungs_rise_and_are_evaluated_whatever_the_numbers() -> None:
    for steps in range(4, 90):
        for trials, eta, least, every in ((3, 2, 1, None), (64, 2, 2, None), (30, 3, 1, 2), (9, 4, 1, 1)):
            if steps < eta * max(least, every or 1):
                continue
            found, between = rungs(steps, trials, eta, least, every)
            assert between is not None and found[-1] == steps and found[0] >= least
            assert all(a < b for a, b in itertools.pairwise(found)) and len(found) > 1
            assert all(step % between == 0 for step in found[:-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((60, 8, 1), "eta must be a whole number of at least 2, not 1"),
        ((60, 0), "trials must be a whole number of at least 1, not 0"),
        ((60, 8, 2, 0), "min_steps must be a whole number of at least 1, not 0"),
        ((0, 8), "steps must be a whole number of at least 1, not 0"),
        ((39, 8), "39 steps are too few to cut anything after 20; set steps to at least 40, or min_steps lower"),
        ((39, 8, 2, 10, 20), "at least 40, or eval_every lower"),
    ],
)
def test_rungs_that_cannot_be(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(SoftPromptError, match=message):
        rungs(*arguments)


# --- halving ----------------------------------------------------------------------------------------------------------


def test_the_better_half_goes_on_and_the_best_has_the_whole_budget(
    bench: Workbench, undisturbed: tuple[Leaderboard, Path]
) -> None:
    board, root = undisturbed
    assert board.rungs == (2, 4, 8) and len(board.entries) == 8
    assert sorted(entry.trial for entry in board.entries) == list(range(1, 9))
    assert [entry.rung for entry in board.entries] == [3, 3, 2, 2, 1, 1, 1, 1]
    assert [entry.state for entry in board.entries] == ["finished"] * 2 + ["cut"] * 6
    for place in range(3):
        there = [entry for entry in board.entries if len(entry.scores) > place]
        on = [entry.scores[place] for entry in there if len(entry.scores) > place + 1]
        cut = [entry.scores[place] for entry in there if len(entry.scores) == place + 1]
        assert not on or min(on) >= max(cut)  # type: ignore[type-var]
    for entry in board.entries:
        folder = root / entry.run
        assert entry.steps == board.rungs[entry.rung - 1] == run_folder.load_metrics(folder)[-1]["step"]
        assert run_folder.is_done(folder) is (entry.state == "finished")
        assert (folder / "checkpoint").exists() is (entry.state == "finished")
        assert set(entry.rates) == {"head", "prefix" if entry.method == "prefix-tuning" else "prompt"}
        assert entry.trained == bench.outline(sp.make_config(entry.method, **entry.settings), BUDGET)[1]
    assert not list(bench.model.prompts)


def test_both_methods_start_with_their_defaults(undisturbed: tuple[Leaderboard, Path]) -> None:
    first = {entry.trial: entry for entry in undisturbed[0].entries}
    assert [first[n].method for n in (1, 2, 3, 4)] == ["prefix-tuning", "prompt-tuning"] * 2
    assert dict(first[1].proposed) == {"learning_rate": 0.03, "num_virtual_tokens": 10}
    assert dict(first[2].proposed) == {"learning_rate": 0.02, "num_virtual_tokens": 10, "init": "vocabulary"}
    assert len({entry.run for entry in first.values()}) == 8


def test_the_best_prompt_is_copied_and_predicts(undisturbed: tuple[Leaderboard, Path]) -> None:
    board, root = undisturbed
    best = board.best
    assert best is not None and best is board.entries[0]
    copy = root / "search" / "best"
    for file in (root / best.run / "prompt").iterdir():
        assert (copy / file.name).read_bytes() == file.read_bytes()
    (name,) = sp.load(copy).prompts
    assert best.run in name
    answers = sp.Predictor(copy)(["the film was nice", "the plot was awful"])
    assert {answer.label for answer in answers} <= {"positive", "negative"}


def test_a_survivor_has_the_scores_of_the_run_alone(
    bench: Workbench, undisturbed: tuple[Leaderboard, Path], tmp_path: Path
) -> None:
    board, _ = undisturbed
    for entry in board.entries[:2]:
        method, training = sp.make_config(entry.method, **entry.settings), TrainConfig.from_dict(entry.training)
        folder, result = bench.run(method, training, root=tmp_path, progress=False)
        assert folder.name == entry.run and result["score"] == entry.score
        lines = run_folder.load_metrics(folder)
        for step, score in zip(board.rungs, entry.scores, strict=True):
            assert max(line["accuracy"] for line in lines if line["step"] <= step) == score


def test_the_files_say_all(undisturbed: tuple[Leaderboard, Path]) -> None:
    board, root = undisturbed
    plain = json.loads((root / "search" / "leaderboard.json").read_text())
    assert plain["rungs"] == [2, 4, 8] and plain["settings"]["methods"].keys() == set(METHODS)
    assert [entry["trial"] for entry in plain["entries"]] == [entry.trial for entry in board.entries]
    lines = list(csv.DictReader((root / "search" / "leaderboard.csv").read_text().splitlines()))
    for rank, (line, entry) in enumerate(zip(lines, board.entries, strict=True), 1):
        assert (int(line["rank"]), line["run"], int(line["trained"])) == (rank, entry.run, entry.trained)
        assert float(line["learning_rate"]) == entry.proposed["learning_rate"] and float(line["score"]) == entry.score
        assert (line["score_8"] != "") is (entry.state == "finished")
    table = (root / "search" / "leaderboard.md").read_text()
    assert "| step 2 | step 4 | step 8 |" in table and "| 1 of 3 | cut |" in table
    assert table.count("\n|") == 9 and "validation rows" in table
    assert all(len(board.cells(entry, full)) == len(board.columns(full)) for entry in board.entries for full in (0, 1))


# --- nothing else decides it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_same_seed_gives_the_same_leaderboard_whatever_the_lanes(
    bench: Workbench, undisturbed: tuple[Leaderboard, Path], tmp_path: Path, sampler: str
) -> None:
    one = run(bench, tmp_path / "one", lanes=1, sampler=sampler)
    four = undisturbed[0] if sampler == "tpe" else run(bench, tmp_path / "four", lanes=4, sampler=sampler)
    assert one == four


def test_scores_and_seeds_move_proposals(
    bench: Workbench, undisturbed: tuple[Leaderboard, Path], tmp_path: Path
) -> None:
    def proposed(board: Leaderboard) -> list[Any]:
        return [dict(entry.proposed) for entry in sorted(board.entries, key=lambda entry: entry.trial)]

    tpe = proposed(undisturbed[0])
    other = proposed(run(bench, tmp_path / "seed", seed=1, trials=4))
    assert other[:2] == tpe[:2] and other[2:4] != tpe[2:4]
    # With two proposals of each method told, a study is still at random; with four, it has learned.
    fixed: dict[str, Any] = {"methods": ("prefix-tuning",), "trials": 8, "min_steps": 4}
    learned, drawn = (proposed(run(bench, tmp_path / name, sampler=name, **fixed)) for name in ("tpe", "random"))
    assert learned[0] == drawn[0] and learned[4:] != drawn[4:]


def test_a_finished_search_trains_nothing_again(
    bench: Workbench, undisturbed: tuple[Leaderboard, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    board, root = undisturbed

    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    before, told = report(root), list[str]()
    monkeypatch.setattr("softprompts.experiments.workbench.train", never)
    assert run(bench, root, tell=told.append) == board and report(root) == before
    assert "rung 1 of 3, to step 2: configurations 5 to 8 of 8 (4 trained already)" in told
    assert not any("deleted" in line for line in told)


def test_runs_that_others_took_further_count_as_they_stood_at_the_rung(
    bench: Workbench, undisturbed: tuple[Leaderboard, Path], tmp_path: Path
) -> None:
    board, _ = undisturbed
    entry = board.entries[-1]  # cut at the first rung
    method, training = sp.make_config(entry.method, **entry.settings), TrainConfig.from_dict(entry.training)
    folder, _ = bench.run(method, training, root=tmp_path, progress=False)
    assert run(bench, tmp_path) == board
    assert (folder / "checkpoint").exists() and run_folder.is_done(folder)  # which is not the search's to delete


class Killed(BaseException):
    """Stands for a process that ends in the middle."""


def test_a_search_that_dies_at_any_write_goes_on_to_the_same_leaderboard(
    bench: Workbench, undisturbed: tuple[Leaderboard, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board, clean = undisturbed
    real, deaths, left = os.replace, 0, 7

    def dying(source: Any, target: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Killed
        real(source, target)

    monkeypatch.setattr("os.replace", dying)
    while True:
        try:
            found = run(bench, tmp_path)
            break
        except Killed:
            deaths += 1
            left = 7 * (deaths + 1)
    assert deaths > 3 and found == board and report(tmp_path) == report(clean)
    for entry in board.entries:  # nothing is there twice, nothing is missing
        assert [line["step"] for line in run_folder.load_metrics(tmp_path / entry.run)] == list(
            range(2, entry.steps + 1, 2)
        )


KILLED = """
import os, pathlib, signal, sys
from softprompts.experiments.workbench import Workbench
from softprompts.tasks.data import Data
from softprompts.training import Lane
from tests.experiments import test_search
update = Lane.update
def killed(self, *values):
    update(self, *values)
    if self.step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
Lane.update = killed
bench = Workbench(sys.argv[1], Data(train=sys.argv[2], validation=sys.argv[3]))
test_search.run(bench, pathlib.Path(sys.argv[4]))
"""


def test_kill_and_resume(bench: Workbench, undisturbed: tuple[Leaderboard, Path], tmp_path: Path) -> None:
    board, clean = undisturbed
    arguments = [bench.name, str(bench.data.train), str(bench.data.validation), str(tmp_path)]
    done = warm.run([sys.executable, "-c", KILLED, *arguments])
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "search").exists() and len(list(tmp_path.iterdir())) == 8
    assert run(bench, tmp_path) == board and report(tmp_path) == report(clean)


# --- what is searched -------------------------------------------------------------------------------------------------


def test_every_method_says_what_it_is_worth_searching(bench: Workbench, tmp_path: Path) -> None:
    """Each method's own space is one that a search takes."""
    bench.model.add_prompt("source", sp.PromptTuningConfig(), num_labels=2)
    bench.model.save_prompt("source", tmp_path / "source")
    bench.model.delete_prompt("source")
    space = tmp_path / "space.safetensors"
    sp.fit_autoencoder(torch.randn(4, 10, bench.model.config.hidden_size), space, dim=2, kind="linear")
    # The defaults of some are too large for so small a model; others start from something.
    small = {"rank": 2, "num_virtual_tokens": 3}
    source = {"sources": [str(tmp_path / "source")]}
    needed = {"ept": small, "dept": small, "dpt": small, "attempt": source, "spot": source}
    needed["intrinsic"] = {"autoencoder": str(space), "num_virtual_tokens": 10}
    for name, config in sp.methods().items():
        assert issubclass(config, MethodConfig)
        if name == "folded":
            continue
        board = run(bench, tmp_path, methods={name: needed.get(name, {})}, trials=1)
        assert set(config.search_space()) >= set(board.settings["methods"][name]["space"])
        assert any(key.startswith("learning_rate") for key in board.entries[0].proposed)


def test_spaces_of_all_methods_and_of_one(bench: Workbench, tmp_path: Path) -> None:
    board = run(
        bench,
        tmp_path,
        methods={"prefix-tuning": {"init_std": 0.3}, "multi-mask": {}, "head-only": {}},
        trials=12,
        generation=12,
        space={
            "seed": [0, 1, 2],
            "num_masks": [1, 3],
            "num_virtual_tokens": [3],
            "multi-mask.num_virtual_tokens": Span(2, 4),
            "multi-mask.router_dropout": Span(0.1, 0.2),
            "learning_rate": Span(1e-3, 1e-1, log=True),
            "learning_rates.head": [0.01],
            "sites": [["encoder.self"]],
        },
    )
    spaces = {name: about["space"] for name, about in board.settings["methods"].items()}
    assert spaces["prefix-tuning"].keys() == {
        *("learning_rate", "seed", "learning_rates.head", "sites", "num_virtual_tokens")
    }
    assert spaces["head-only"].keys() == {"learning_rates.head", "seed"}  # nothing else is left for learning_rate
    drawn = {entry.trial: entry for entry in board.entries}
    for entry in drawn.values():
        assert entry.training["seed"] == entry.proposed["seed"] and entry.rates["head"] == 0.01
        if entry.method == "prefix-tuning":
            assert entry.settings["num_virtual_tokens"] == 3 and entry.settings["init_std"] == 0.3
        if entry.method == "multi-mask":
            assert entry.settings["num_masks"] in (1, 3) and entry.settings["num_virtual_tokens"] in (2, 3, 4)
            assert 0.1 <= entry.settings["router_dropout"] <= 0.2
        if entry.method != "head-only":
            assert 1e-3 <= entry.rates["prefix"] <= 1e-1 and len(f"{entry.proposed['learning_rate']:.10g}") <= 9
    # A space of three seeds is used up; the other methods get the rest.
    counts = [sum(entry.method == name for entry in drawn.values()) for name in ("head-only", "prefix-tuning")]
    assert counts[0] == 3 and sum(counts) < 12 and len({entry.run for entry in drawn.values()}) == 12


def test_a_space_that_is_used_up_ends_the_search(bench: Workbench, tmp_path: Path) -> None:
    told: list[str] = []
    board = run(
        bench,
        tmp_path,
        methods=("prefix-tuning",),
        space={"learning_rate": [0.01], "num_virtual_tokens": Span(2, 4), "seed": [0, 1, 0]},
        tell=told.append,
    )
    assert len(board.entries) == 6 and "there are no more than 6 configurations in this space" in told


def test_choices_that_the_model_has_no_room_for_are_left_out_unless_asked_for(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = {"num_virtual_tokens": (5, 100)}
    with pytest.raises(SoftPromptError, match="100 virtual tokens leave no room"):
        run(bench, tmp_path, methods=("prompt-tuning",), space=space)
    monkeypatch.setattr(sp.PromptTuningConfig, "search_space", classmethod(lambda cls: space))
    board = run(bench, tmp_path, methods=("prompt-tuning",), trials=1)
    assert board.settings["methods"]["prompt-tuning"]["space"] == {"num_virtual_tokens": [5]}
    # What does not fit by default fits with what is asked for.
    with pytest.raises(SoftPromptError, match="ept: 60 virtual tokens leave no room"):
        run(bench, tmp_path, methods=("ept",), trials=1)
    assert run(bench, tmp_path, methods={"ept": {"rank": 4}}, trials=1, space={"num_virtual_tokens": [5, 6]}).best


def test_those_that_diverge_come_last_and_are_cut(bench: Workbench, tmp_path: Path) -> None:
    board = run(
        bench,
        tmp_path,
        methods={"prefix-tuning": {"num_virtual_tokens": 2}},
        training=TrainConfig(max_steps=8, batch_size=8, schedule="constant", optimizer="adafactor"),
        space={"learning_rate": [0.01, 3e38], "seed": [0, 1, 2, 3]},
        sampler="random",
    )
    states = [entry.state for entry in board.entries]
    diverged = [entry for entry in board.entries if entry.proposed["learning_rate"] > 1]
    assert 0 < len(diverged) < 8 and states[-len(diverged) :] == ["diverged"] * len(diverged)
    assert all(entry.score is None and entry.rung == 1 and entry.steps < 8 for entry in diverged)
    assert board.best is not None and board.best.proposed["learning_rate"] == 0.01
    assert "diverged" in board.cells(diverged[0])
    assert run(bench, tmp_path, **{**_again(board), "sampler": "random"}) == board


def _again(board: Leaderboard) -> dict[str, Any]:
    return {
        "methods": {"prefix-tuning": {"num_virtual_tokens": 2}},
        "training": TrainConfig(max_steps=8, batch_size=8, schedule="constant", optimizer="adafactor"),
        "space": {"learning_rate": [0.01, 3e38], "seed": [0, 1, 2, 3]},
    }


# --- what makes no sense ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("prefix-tunin",)}, "unknown method 'prefix-tunin'; did you mean 'prefix-tuning'"),
        ({"methods": ()}, "name at least one method"),
        ({"methods": ("head-only", "head-only")}, "named twice"),
        ({"trials": 1}, "1 trials are too few for 2 methods"),
        ({"trials": 0}, "trials must be a whole number of at least 1, not 0"),
        ({"eta": 1}, "eta must be a whole number of at least 2, not 1"),
        ({"min_steps": 5}, "8 steps are too few to cut anything after 5"),
        ({"generation": 0}, "generation must be a whole number of at least 1"),
        ({"sampler": "tpee"}, "unknown sampler 'tpee'; did you mean 'tpe'"),
        ({"training": TrainConfig()}, "set max_steps"),
        ({"training": TrainConfig(max_steps=8, patience=1)}, "leave patience out"),
        ({"space": {"num_mask": [2]}}, "none of the methods has a setting 'num_mask' to search"),
        ({"space": {"max_steps": [2]}}, "none of the methods has a setting 'max_steps' to search"),
        ({"space": {"multi-mask.num_masks": [2]}}, "'multi-mask' is not among the methods"),
        (
            {"space": {"prefix-tuning.num_masks": [2]}},
            "prefix-tuning has no setting 'num_masks' to search; did you mean",
        ),
        ({"space": {"num_virtual_tokens": []}}, "num_virtual_tokens: there is nothing to choose from"),
        ({"space": {"num_virtual_tokens": 3}}, "give a list of values"),
        ({"space": {"num_virtual_tokens": [3, 0]}}, "num_virtual_tokens must be at least 1, not 0"),
        ({"space": {"num_virtual_tokens": Span(2.5, 3)}}, "takes whole numbers, not 2.5 to 3"),
        ({"space": {"learning_rate": Span(0, 1, log=True)}}, "two bounds above 0 with the lower first"),
        ({"space": {"learning_rate": Span(1, 0.1)}}, "two bounds with the lower first, not 1 and 0.1"),
        ({"space": {"init": Span(1, 2)}}, "init is no number"),
        ({"methods": {"prefix-tuning": {"num_virtual_tokens": 2}}, "space": {"num_virtual_tokens": [3]}}, "both set"),
        ({"training": TrainConfig(max_steps=8, learning_rate=0.1), "space": {"learning_rate": [1]}}, "both set"),
    ],
)
def test_errors(bench: Workbench, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SoftPromptError, match=message):
        run(bench, tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_without_optuna_it_says_what_to_install(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SoftPromptError, match="pip install optuna"):
        run(bench, tmp_path)


def test_a_report_replaces_no_strange_folder(bench: Workbench, tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    with pytest.raises(SoftPromptError, match="best is there already and is no saved prompt"):
        run(bench, tmp_path / "runs", report=tmp_path)


def test_ties_go_to_the_earlier() -> None:
    same: dict[str, Any] = {"proposed": {}, "settings": {}, "training": {}, "rates": {}, "trained": 0, "run": ""}
    entries = [
        Entry(trial=number, method="", scores=scores, state=state, **same)
        for number, scores, state in [
            (5, (None,), "cut"),
            (4, (0.6, 0.6), "cut"),
            (2, (0.9, 0.9), "diverged"),
            (3, (0.6, 0.6), "cut"),
            (1, (0.5,), "cut"),
        ]
    ]
    trials = [Trial(entry, None, None, None, Path()) for entry in entries]  # type: ignore[arg-type]
    assert [trial.entry.trial for trial in sorted(trials, key=Trial.order)] == [3, 4, 1, 5, 2]


# --- the command ------------------------------------------------------------------------------------------------------


def command(data: str | None, *more: str) -> list[str]:
    return ["search", "-m", model_folder("bert"), "--data", str(data), "--steps", "4", "--min-steps", "2", *more]


def test_the_command_shows_a_table_and_where_things_are(
    cli: Cli, bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    space = ["--space", "learning_rate=log:1e-3:1e-1", "--space", "multi-mask.num_masks=1,2", "--space", "seed=0,1"]
    asked = command(
        bench.data.train,
        "--methods",
        "multi-mask,prompt-tuning",
        "--trials",
        "4",
        *space,
        "--space",
        "prompt-tuning.init=random",
    )
    done = cli.fine(*asked, "--set", "num_virtual_tokens=4")
    assert "multi-mask: learning_rate 0.001 to 0.1 (log); seed 0, 1; num_masks 1, 2" in done.err
    assert "rung 1 of 2, to step 2: configurations 1 to 4 of 4" in done.err and "rung 2 of 2, to step 4: 2" in done.err
    assert "checkpoints of 2 runs that were cut are deleted" in done.err and "4 run folders in runs hold" in done.err
    assert "num_masks=" in done.out and "init=random" in done.out and "…" not in done.out
    assert max(len(line) for line in done.out.splitlines() if "step 2" in line) <= 80
    plain = json.loads(Path("runs/search/leaderboard.json").read_text())
    assert all(entry["settings"]["num_virtual_tokens"] == 4 for entry in plain["entries"])
    assert f"runs/{plain['entries'][0]['run']}" in done.out
    assert cli.fine("predict", "runs/search/best", "the film was nice").out.startswith(("positive", "negative"))
    kept = cli.fine(*asked, "--set", "num_virtual_tokens=3", "--keep-cut", "--out", "kept")
    assert "deleted" not in kept.err and len(list(Path("kept").glob("*/checkpoint"))) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "prefix"], "unknown method 'prefix'"),
        (["--space", "learning_rate"], "--space learning_rate: write NAME=VALUE"),
        (["--space", "learning_rate=log:1"], "write log:LOW:HIGH with two numbers"),
        (["--space", "learning_rate=log:a:b"], "write log:LOW:HIGH with two numbers"),
        (["--space", "seed=0,,1"], "write VALUE,VALUE,... or log:LOW:HIGH or uniform:LOW:HIGH"),
        (["--space", "num_masks=2"], "none of the methods has a setting 'num_masks'"),
        (["--trials", "0"], "trials must be a whole number of at least 1, not 0"),
        (["--eta", "1"], "eta must be a whole number of at least 2, not 1"),
        (["--min-steps", "3"], "4 steps are too few to cut anything after 3"),
        (["--set", "num_virtual_tokens=2", "--space", "num_virtual_tokens=3"], "both set and searched"),
    ],
)
def test_errors_of_the_command(
    cli: Cli, bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli(*command(bench.data.train, *arguments))
    errors = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert done.code == 2 and len(errors) == 1 and message in errors[0] and not list(tmp_path.iterdir())


def test_ctrl_c_says_how_to_go_on(cli: Cli, bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from softprompts.training.lane import Lane

    monkeypatch.chdir(tmp_path)
    real = Lane.update
    interrupted: list[bool] = []

    def interrupting(self: Lane, *values: Any) -> None:
        real(self, *values)
        if self.step == 3 and not interrupted:
            interrupted.append(True)
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Lane, "update", interrupting)
        done = cli(*command(bench.data.train, "--trials", "4"))
    assert done.code == 130 and "the same command goes on from there" in done.err
    assert "rung 2 of 2" in cli.fine(*command(bench.data.train, "--trials", "4")).err
