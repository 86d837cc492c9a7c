"""`--kind text` and `--kind chat` from the command line: train, predict and evaluate prompts that write."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from chatting import SYSTEM, TALK, chat_tokenizer
from saved import Cli, model_folder, write_csv, write_jsonl

import softprompts as sp
from softprompts.storage.run_folder import load_metrics
from softprompts.training.generation import Sampling
from tests.commands.running import config, refuse, result

PAIRS = [
    {"input": f"the {noun} was {word}", "target": f"a {word} {noun}"}
    for noun in ("film", "plot", "text")
    for word in ("good", "bad", "fine", "poor", "nice")
]


@pytest.fixture
def pairs(data: Path) -> Path:
    return write_csv(data.parent / "pairs.csv", PAIRS)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "llama"
    shutil.copytree(model_folder("llama"), folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    chat_tokenizer("chatml").save_pretrained(folder)
    return folder


def talks(path: Path, count: int = 6) -> Path:
    return write_jsonl(path, [{"messages": [SYSTEM, *TALK] if row % 2 else TALK, "id": row} for row in range(count)])


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("family", ["t5", "llama", "gpt2"])
def test_text_to_text(cli: Cli, pairs: Path, family: str, tmp_path: Path) -> None:
    command = ["train", "-m", model_folder(family), "--kind", "text", "--data", pairs, "--method", "prompt-tuning"]
    done = cli.fine(
        *command,
        "--steps",
        "12",
        "--eval-every",
        "6",
        "--lr",
        "0.3",
        "--folder",
        "run",
        "--metrics",
        "token_f1,exact_match,neg_loss",
    )
    assert "token_f1" in done.out and "exact_match" in done.out and "neg_loss" in done.out
    said = result("run")
    losses = [line["neg_loss"] for line in load_metrics("run")]
    assert losses[-1] > losses[0]  # it learns
    assert said["task_form"]["source"] == "{input}" and said["new_tokens"] >= 4
    assert config("run")["data"]["kind"] == "text"
    new = write_csv(
        tmp_path / "new.csv",
        [{"id": str(row), "input": each["input"], "answer": "x"} for row, each in enumerate(PAIRS)],
    )
    cli.fine("predict", "run", "--file", new, "--output", tmp_path / "out.csv", "--max-new-tokens", "3")
    written = read(tmp_path / "out.csv")
    assert [{key: row[key] for key in ("id", "input", "answer")} for row in written] == read(new)
    assert list(written[0]) == ["id", "input", "answer", "predicted_answer"]
    predictor = sp.Predictor("run", max_new_tokens=3)
    assert [row["predicted_answer"] for row in written] == [
        one.label for one in predictor([each["input"] for each in PAIRS])
    ]
    assert all(len(row["predicted_answer"].split()) <= 3 for row in written)
    assert (
        cli.fine("predict", "run", PAIRS[0]["input"], "--max-new-tokens", "3").out.strip()
        == written[0]["predicted_answer"]
    )
    found = json.loads(cli.fine("evaluate", "run", "--json").out)
    assert found["metrics"] == pytest.approx(said["metrics"])  # the same rows, scored again
    assert found["mistakes"] and [one["weight"] for one in found["mistakes"]] == sorted(
        one["weight"] for one in found["mistakes"]
    )
    out = cli.fine("evaluate", "run", "--data", pairs).out
    assert "lowest token_f1" in out and "right a" in out
    assert "Worst answers" in Path("run/report.html").read_text()


def test_a_chat(cli: Cli, data: Path, chat_model: Path) -> None:
    file = talks(data.parent / "talks.jsonl")
    command = ["train", "-m", chat_model, "--kind", "chat", "--data", file, "--validation", file]
    done = cli.fine(
        *command, "--method", "prompt-tuning", "--steps", "20", "--eval-every", "10", "--lr", "0.3", "--folder", "run"
    )
    assert "neg_loss" in done.out
    losses = [line["neg_loss"] for line in load_metrics("run")]
    assert list(result("run")["metrics"]) == ["neg_loss"] and losses[-1] > losses[0]
    assert cli.fine("predict", "run", "what is two plus two ?").out.strip()
    asked = write_jsonl(
        data.parent / "asked.jsonl",
        [{"n": 1, "messages": TALK[:3]}, {"n": 2, "messages": []}, {"n": 3, "messages": TALK}],
    )
    done = cli.fine("predict", "run", "--file", asked, "--output", "out.jsonl")
    assert "1 of 3 rows have no answer" in done.err
    lines: list[dict[str, Any]] = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert lines[0]["messages"] == TALK[:3] and lines[0]["answer"] == lines[2]["answer"] and lines[1]["answer"] == ""
    found = json.loads(cli.fine("evaluate", "run", "--json").out)
    assert found["metrics"]["neg_loss"] == pytest.approx(result("run")["metrics"]["neg_loss"], abs=1e-5)
    cli.fine(*command, "--steps", "1", "--metrics", "exact_match,neg_loss", "--folder", "scored")
    assert list(result("scored")["metrics"]) == ["exact_match", "neg_loss"]
    tokenizer = cli.fine("tasks", "show", "--kind", "chat", "--data", file, "-m", chat_model).out
    assert "user: what is two" in tokenizer


def test_drawing_is_repeatable_and_greedy_is_the_default(cli: Cli, pairs: Path) -> None:
    cli.fine("train", "-m", model_folder("llama"), "--kind", "text", "--data", pairs, "--steps", "1", "--folder", "run")
    texts = [row["input"] for row in PAIRS]

    def drawn(**settings: Any) -> list[str]:
        sampling = Sampling(**settings) if settings else None
        return [answer.label for answer in sp.Predictor("run", max_new_tokens=8, sampling=sampling)(texts)]

    greedy, hot = drawn(), drawn(temperature=2.0, seed=1)
    assert greedy == drawn(temperature=0.0) != hot == drawn(temperature=2.0, seed=1) != drawn(temperature=2.0, seed=2)
    assert drawn(temperature=2.0, top_p=1e-6) == greedy
    line = ["predict", "run", texts[0], "--max-new-tokens", "8"]
    assert (
        cli.fine(*line, "--temperature", "2", "--seed", "1").out
        == cli.fine(*line, "--temperature", "2", "--seed", "1").out
    )
    refuse(cli, "temperature must be at least 0", *line, "--temperature", "-1")


def test_alpaca_columns_inputs_may_be_empty_targets_may_be_several(cli: Cli, data: Path) -> None:
    rows = [
        {
            "instruction": f"was the film {word}",
            "input": "" if row % 2 else "the plot",
            "output": [f"a {word} film", word],
        }
        for row, word in enumerate(["good", "bad", "fine", "poor"] * 3)
    ]
    file = write_jsonl(data.parent / "alpaca.jsonl", rows)
    cli.fine("train", "-m", model_folder("t5"), "--kind", "text", "--data", file, "--steps", "1", "--folder", "run")
    assert config("run")["form"]["source"] == "{instruction}\n{input}"
    predictor = sp.Predictor("run")
    assert [row.fields["input"] for row in predictor.reader.labelled(file)] == [row["input"] for row in rows]
    assert predictor.reader.labelled(file)[1].answers == ("a bad film", "bad")


def test_what_is_cut_is_told_and_targets_are_never_cut(cli: Cli, data: Path) -> None:
    rows = [{"input": "the film was " + "very " * 30 * (row == 3), "target": "a good film " * 3} for row in range(10)]
    file = write_csv(data.parent / "long.csv", rows)
    model = ["train", "-m", model_folder("gpt2"), "--kind", "text", "--data", file, "--steps", "1"]
    done = cli.fine(*model, "--max-length", "16", "--method", "lora")
    assert "1 of 10 rows were cut to 16 tokens; of them the field 'input'" in done.err
    rows[5]["target"] = "a good film " * 20
    write_csv(file, rows)
    refuse(cli, "answers of up to 68 tokens (row 7 of the train rows) are too long", *model)


def test_refusals(cli: Cli, pairs: Path, data: Path, chat_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = ["train", "--kind", "text", "--data", pairs]
    refuse(cli, "is to write a text, which this encoder cannot: name a causal", *text, "-m", model_folder("bert"))
    refuse(cli, "no column 'goal'", *text, "--label", "goal", "-m", model_folder("t5"))
    refuse(
        cli,
        "metric 'accuracy' does not suit this task of text",
        *text,
        "--metrics",
        "accuracy",
        "-m",
        model_folder("t5"),
    )
    refuse(
        cli, "unknown metric 'rougel': did you mean 'rougeL'?", *text, "--metrics", "rougel", "-m", model_folder("t5")
    )
    refuse(
        cli,
        "metric 'neg_loss' does not suit",
        "train",
        "--data",
        data,
        "--metrics",
        "neg_loss",
        "-m",
        model_folder("t5"),
    )
    chat = ["train", "--kind", "chat", "-m", chat_model, "--data"]
    refuse(
        cli,
        "has no chat template: choose a model that has one",
        *chat[:3],
        "-m",
        model_folder("llama"),
        "--data",
        talks(data.parent / "a.jsonl"),
    )
    for messages, message in (
        ("hello", "line 1: 'messages' is 'hello', not a list of messages"),
        ([], "line 1: 'messages' is [], not a list of messages"),
        ([{"role": "user"}], "line 1: message 1 of 'messages' is {'role': 'user'}, not a role and a content"),
        (TALK[:1], "line 1: 'messages' has no message of the assistant that answers another"),
        ([TALK[0], {"role": "assistant", "content": " "}], "the last message of the assistant in 'messages' is empty"),
    ):
        refuse(cli, message, *chat, write_jsonl(data.parent / "b.jsonl", [{"messages": messages}] * 3))
    import importlib

    def without(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", without)
    refuse(
        cli,
        "metric 'rougeL' needs rouge-score, of the extra 'text': pip install rouge-score",
        *text,
        "--metrics",
        "rougeL",
        "-m",
        model_folder("t5"),
    )
