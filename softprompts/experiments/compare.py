"""Several methods and seeds on one task: the runs, and the table and picture that they end in."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from softprompts.experiments.run_record import Run
from softprompts.experiments.workbench import Workbench
from softprompts.methods.contract import MethodConfig
from softprompts.plotting import Point, draw_points, have_matplotlib, new_figure, plain, png
from softprompts.storage.files import write_atomic, write_text_atomic
from softprompts.storage.tables import csv_text, escape, markdown_table
from softprompts.training import TrainConfig

COLUMNS = ("method", "score", "seeds", "trained", "% of model", "s/100 steps", "peak GB", "best run")
OF_RUNS_ALONE = ("s/100 steps", "peak GB")  # columns that say nothing of a method where runs shared passes


@dataclass(frozen=True)
class Row:
    """One method's runs, summed up.

    Attributes:
        method: its name.
        scores: the main metric of each seed that has one.
        trained: number of trained parameters.
        total: number of all parameters.
        step_seconds: seconds per 100 steps, the median over seeds; where runs share passes, each one's even share.
        peak_memory: bytes, the largest over seeds.
        idle: by a sentence on a part of the method that did not act, in how many of its runs.
        runs: how many there are.
        seeds: those of ``scores``.
        names: of the run folders, seed by seed.
        best_run: the one with the highest score; "" where none has one.
    """

    method: str
    scores: tuple[float, ...]
    trained: int
    total: int
    step_seconds: float
    peak_memory: int
    idle: Mapping[str, int] = field(default_factory=dict)
    runs: int = 0
    seeds: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    best_run: str = ""

    @property
    def mean(self) -> float:
        """Mean score; NaN where no seed has one."""
        return statistics.fmean(self.scores) if self.scores else math.nan

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None for fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    Attributes:
        task: name of the task.
        model: name of the backbone.
        metric: the score's name.
        rows_scored: number of rows behind a score.
        held_out: True when they are test rows, by which nothing was chosen; else the score is the best validation one.
        rows: one per method, in the order asked for.
        lanes: the most runs that shared a pass.
        few_shot: number of training rows, where few were drawn.
        root: where the run folders are.
        constant: the score of one answer for all rows; None where there is no such score.
    """

    task: str
    model: str
    metric: str
    rows_scored: int
    held_out: bool
    rows: tuple[Row, ...]
    lanes: int = 1
    few_shot: int | None = None
    root: str = ""
    constant: float | None = None

    @property
    def columns(self) -> list[str]:
        """The table's columns: times and memory of each method only where no runs shared passes."""
        return [name for name in COLUMNS if self.lanes == 1 or name not in OF_RUNS_ALONE]

    @property
    def lines(self) -> list[list[str]]:
        """The table's lines: the methods, and one answer for all rows where that has a score."""
        lines = [self.cells(row) for row in self.rows]
        if self.constant is not None:
            constant = {COLUMNS[0]: "one answer", COLUMNS[1]: f"{100 * self.constant:.1f}"}
            lines.append([constant.get(name, "-") for name in self.columns])
        return lines

    @property
    def best(self) -> Row | None:
        """The row with the highest mean."""
        scored = [row for row in self.rows if row.scores]
        return max(scored, key=lambda row: row.mean) if scored else None

    def cells(self, row: Row) -> list[str]:
        """A row as text, by `columns`."""
        cells = [
            row.method,
            mean_and_spread(row.scores) if row.scores else "failed",
            str(len(row.scores)),
            f"{row.trained:,}",
            f"{100 * row.trained / row.total:.3f}",
            "-" if math.isnan(row.step_seconds) else f"{row.step_seconds:.1f}",
            f"{row.peak_memory / 1e9:.2f}",
            row.best_run or "-",
        ]
        return [cell for name, cell in zip(COLUMNS, cells, strict=True) if name in self.columns]

    def score_in_words(self) -> str:
        """What a score is: "accuracy x 100 on 400 held-out rows"."""
        kind = "held-out rows" if self.held_out else "validation rows, the best of all evaluations"
        return f"{self.metric} x 100 on {self.rows_scored:,} {kind}"

    def note(self) -> str:
        """The caption of the table: what a score is, and how sure it is."""
        seeds = max((len(row.scores) for row in self.rows), default=0)
        text = f"score: {self.score_in_words()}; "
        if seeds > 1:
            text += f"mean ± standard deviation over {seeds} seeds."
        else:
            text += "one seed, so that chance is not told from merit; give more."
        if self.constant is not None:
            text += " 'one answer' gives all rows the commonest one."
        if self.few_shot is not None:
            text += f" Trained on {self.few_shot:,} rows, the same ones with every seed."
        best = self.best
        if best is not None and self.metric == "accuracy":
            # Two systems on so many rows drawn at random: 1.96 sqrt(2 p (1-p) / n), with one right and one wrong row
            # more (Agresti and Caffo 2000), since few rows that are all right do not make it certain.
            p = (best.mean * self.rows_scored + 1) / (self.rows_scored + 2)
            margin = 196 * math.sqrt(2 * p * (1 - p) / (self.rows_scored + 2))
            text += (
                f" With {self.rows_scored:,} rows, two methods that differ by less than {margin:.1f} points may be "
                "equally good (95 %)."
            )
        if self.lanes > 1:
            times = [row.step_seconds for row in self.rows if not math.isnan(row.step_seconds)]
            share = f"{statistics.median(times):.1f} s/100 steps is a run's even share, " if times else ""
            memory = max(row.peak_memory for row in self.rows) / 1e9
            text += f" Up to {self.lanes} runs shared each pass: {share}{memory:.2f} GB the peak memory of all."
        return text

    def where(self) -> list[str]:
        """A line for each method: its run folders, seed by seed."""
        return [f"{row.method}: {', '.join(str(Path(self.root, name)) for name in row.names)}" for row in self.rows]

    def idle(self) -> list[str]:
        """A line for each part of a method that did not act."""
        return [
            f"idle: {row.method}: {sentence} ({count} of {row.runs} runs)"
            for row in self.rows
            for sentence, count in row.idle.items()
        ]

    def markdown(self) -> str:
        """The table as Markdown, the best score in bold."""
        rows = self.lines
        if self.best is not None:
            cells = rows[self.rows.index(self.best)]
            cells[1] = f"**{cells[1]}**"
        runs = [f"Runs: {escape(line)}" for line, row in zip(self.where(), self.rows, strict=True) if row.names]
        lines = [f"{self.model} on {self.task}; {self.note()}", *runs, *map(escape, self.idle())]
        return "\n\n".join([markdown_table(self.columns, rows, "lr"), *lines]) + "\n"

    def csv(self) -> str:
        """One line per method and seed-wise scores, for programs."""
        lines = []
        for row in self.rows:
            scores = " ".join(f"{score:.6f}" for score in row.scores)
            std = "" if row.std is None else f"{row.std:.6f}"
            measured = row.trained, row.total, row.step_seconds, row.peak_memory
            lines.append((row.method, f"{row.mean:.6f}", std, scores, *measured, " ".join(row.names)))
        head = ("method", "mean", "std", "scores", "trained", "total", "step_seconds", "peak_memory", "runs")
        return csv_text(head, lines)


def compare(
    workbench: Workbench,
    methods: Sequence[tuple[MethodConfig, TrainConfig]],
    seeds: Sequence[int],
    *,
    root: str | Path = "runs",
    lanes: int | None = None,
    progress: bool = True,
    trackers: Sequence[str] | None = None,
    on_start: Callable[[], None] | None = None,
    on_result: Callable[[Run, dict[str, Any]], None] | None = None,
) -> Comparison:
    """Trains each method with each seed, several runs in shared passes; what is done already is not done again.

    Args:
        workbench: backbone and task.
        methods: each with how it trains.
        seeds: of initialisation, data order and what methods draw.
        root: where run folders live.
        lanes: runs that share a pass of the backbone; None: as many as there is memory for. No number depends on it.
        progress: show progress bars on a terminal.
        trackers: Accelerate's trackers to log to.
        on_start: called once it is sure that every run can start, before rows are encoded and the first one trains.
        on_result: called after each run.

    Raises:
        SoftPromptError: a method does not fit the model.
        KeyboardInterrupt: interrupted; the same call goes on where it was.
    """
    # Seed by seed, so that an interrupted comparison has as much of every method as there is.
    runs = [Run(method, replace(training, seed=seed)) for seed in seeds for method, training in methods]
    ended = workbench.run_all(
        runs, root=root, lanes=lanes, progress=progress, trackers=trackers, on_start=on_start, on_result=on_result
    )
    found = [(path.name, result) for path, result in ended if result is not None]
    results = [result for _, result in found]
    by_method = [found[place :: len(methods)] for place in range(len(methods))]
    task, metric = workbench.task, workbench.task.metrics[0]
    return Comparison(
        task=task.name,
        model=workbench.name,
        metric=metric,
        rows_scored=len(task.test or task.validation),
        held_out=bool(task.test),
        rows=tuple(_row(method.method, runs, metric) for (method, _), runs in zip(methods, by_method, strict=True)),
        lanes=max((result["lanes"] for result in results), default=1),
        few_shot=workbench.data.few_shot,
        root=str(root),
        constant=task.constant_scores("test" if task.test else "validation").get(metric),
    )


def mean_and_spread(scores: Sequence[float]) -> str:
    """Mean x 100, with the standard deviation where there are several scores."""
    text = f"{100 * statistics.fmean(scores):.1f}"
    return f"{text} ± {100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else text


def score_of(result: dict[str, Any], metric: str) -> float | None:
    """The main metric of a run: on test rows where there are some, else of the best evaluation."""
    metrics = result["test_metrics"] if result["test_rows"] else result["metrics"]
    value = metrics.get(metric)
    return None if value is None else float(value)


def _row(method: str, runs: Sequence[tuple[str, dict[str, Any]]], metric: str) -> Row:
    """The results of a method's runs, with the names of their folders, summed up."""
    results = [result for _, result in runs]
    scored = [(score, result["seed"], name) for name, result in runs if (score := score_of(result, metric)) is not None]
    speed = [100 * result["step_seconds"] / result["steps"] for result in results if result["steps"]]
    trained = results[0]["trained_parameters"]
    return Row(
        method=method,
        scores=tuple(score for score, _, _ in scored),
        trained=trained,
        total=trained + results[0]["backbone_parameters"],
        step_seconds=statistics.median(speed) if speed else math.nan,
        peak_memory=max(result["peak_memory"] for result in results),
        idle=Counter(sentence for result in results for sentence in result.get("idle", [])),
        runs=len(results),
        seeds=tuple(seed for _, seed, _ in scored),
        names=tuple(name for name, _ in runs),
        best_run=max(scored, key=lambda run: run[0])[2] if scored else "",
    )


def write_report(comparison: Comparison, folder: str | Path) -> list[Path]:
    """Writes the table as Markdown and CSV and, where matplotlib is installed, the picture; returns the files."""
    folder = Path(folder)
    written = [folder / "table.md", folder / "table.csv"]
    write_text_atomic(written[0], comparison.markdown())
    write_text_atomic(written[1], comparison.csv())
    if not have_matplotlib() or comparison.best is None:  # or all runs failed
        return written
    return [*written, plot(comparison, folder / "accuracy.png")]


def plot(comparison: Comparison, path: Path) -> Path:
    """Score against trained parameters, one point a method with its spread over seeds."""
    figure, (axes,) = new_figure(7.2, 4.2)
    rows = f"{comparison.rows_scored:,} {'held-out' if comparison.held_out else 'validation'} rows"
    axes.set_title(plain(f"{comparison.model} on {comparison.task} ({rows})"), fontsize=10)
    axes.set_ylabel(plain(f"{comparison.metric} x 100"))
    scored = enumerate(row for row in comparison.rows if row.scores)
    percents = [(place, row, tuple(100 * score for score in row.scores)) for place, row in scored]
    draw_points(axes, [Point(row.trained, scores, row.method, place) for place, row, scores in percents])
    write_atomic(path, png(figure))
    return path
