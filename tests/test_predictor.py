"""A trained prompt as a function: its answers against probabilities computed by hand."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from saved import model_folder, rows, write_csv, write_jsonl

import softprompts as sp
from softprompts.backbones.loading import load_backbone
from softprompts.experiments.workbench import Workbench
from softprompts.predictor import Answer, marked
from softprompts.tasks.data import Data
from softprompts.training import TrainConfig

TEXTS = ["the film was good", "a very bad plot", "plot"]


def trained(tmp_path: Path, family: str, method: sp.MethodConfig) -> Path:
    data = Data(train=str(write_csv(tmp_path / "data.csv", rows())))
    path, _ = Workbench(model_folder(family), data).run(method, TrainConfig(max_steps=5), root=tmp_path / "runs")
    return path


def test_an_encoder_answers_as_computed_by_hand(tmp_path: Path) -> None:
    predictor = sp.Predictor(trained(tmp_path, "bert", sp.PrefixTuningConfig(num_virtual_tokens=3)))
    answers = predictor(TEXTS, batch_size=2)
    for text, answer in zip(TEXTS, answers, strict=True):
        with torch.no_grad():
            logits = predictor.model(**predictor.tokenizer(text, return_tensors="pt")).logits[0]
        chances = logits.softmax(0)
        assert answer.label == ("negative", "positive")[int(chances.argmax())]
        assert answer.probability == pytest.approx(float(chances.max()), abs=1e-5)


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_language_model_answers_with_its_likeliest_label_word(tmp_path: Path, family: str) -> None:
    predictor = sp.Predictor(trained(tmp_path, family, sp.PromptTuningConfig(num_virtual_tokens=3)))
    answers = predictor(TEXTS, batch_size=2)
    model, tokenizer = predictor.model, predictor.tokenizer
    words = [tokenizer.convert_tokens_to_ids(word) for word in ("negative", "positive")]
    for text, answer in zip(TEXTS, answers, strict=True):
        inputs: dict[str, Any] = {"input_ids": tokenizer(f"text: {text}")["input_ids"]}
        if family == "llama":
            inputs = {"input_ids": tokenizer(f"text: {text}\nanswer:")["input_ids"]}
        scores = []
        for word in words:
            target = [word, tokenizer.eos_token_id]
            with torch.no_grad():
                if family == "t5":
                    logits = model(input_ids=torch.tensor([inputs["input_ids"]]), labels=torch.tensor([target])).logits
                else:
                    logits = model(input_ids=torch.tensor([inputs["input_ids"] + target])).logits[:, -3:-1]
            steps = logits[0].log_softmax(-1)
            scores.append(steps[0, target[0]] + steps[1, target[1]])
        chances = torch.stack(scores).softmax(0)
        assert answer.label == ("negative", "positive")[int(chances.argmax())]
        assert answer.probability == pytest.approx(float(chances.max()), abs=1e-4)


def test_a_prompt_finds_its_backbone_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(model_folder("bert"), tmp_path / "model")
    data = Data(train=str(write_csv(tmp_path / "data.csv", rows())))
    monkeypatch.chdir(tmp_path)
    path, _ = Workbench("./model", data).run(sp.PrefixTuningConfig(), TrainConfig(max_steps=1))
    before = sp.Predictor(path)(TEXTS)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert sp.Predictor(tmp_path / path)(TEXTS) == before
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(sp.SoftPromptError, match="backbone"):
        sp.Predictor(tmp_path / path)


def test_a_prompt_saved_without_a_run_labels_texts_too(tmp_path: Path) -> None:
    backbone = load_backbone(model_folder("bert"))[1]
    model = sp.attach(backbone, sp.PrefixTuningConfig(num_virtual_tokens=3), labels=["a", "b", "c"])
    model.save_prompt("default", tmp_path / "prompt")
    predictor = sp.Predictor(tmp_path / "prompt")
    assert predictor(["the film"])[0].label in "abc" and predictor([("the film", "a plot")])[0].label in "abc"
    t5 = sp.attach(load_backbone(model_folder("t5"))[1], sp.PrefixTuningConfig(num_virtual_tokens=3))
    t5.save_prompt("default", tmp_path / "t5")
    with pytest.raises(sp.SoftPromptError, match="does not say how its texts are written out"):
        sp.Predictor(tmp_path / "t5")


def test_one_text_gives_one_answer_and_a_list_a_list(tmp_path: Path) -> None:
    predictor = sp.Predictor(trained(tmp_path, "bert", sp.HeadOnlyConfig()))
    one = predictor("the film was good")
    assert isinstance(one, Answer) and [one] == predictor(["the film was good"])
    assert predictor({"text": "the film was good"}) == one


def test_no_texts_no_answers_and_no_mixtures(tmp_path: Path) -> None:
    predictor = sp.Predictor(trained(tmp_path, "bert", sp.HeadOnlyConfig()))
    assert predictor([]) == []
    with pytest.raises(sp.SoftPromptError, match=r"reads single texts \(text\), not 2"):
        predictor(["one", ("one", "two")])
    with pytest.raises(sp.SoftPromptError, match="empty text"):
        predictor(["one", ""])


# --- every kind of task -----------------------------------------------------------------------------------------------

WORDS = ["the", "film", "was", "good"]
KINDS: dict[str, dict[str, Any]] = {
    "tagging": {"words": WORDS, "tags": ["O", "B-THING", "O", "O"]},
    "span": {"question": "first film", "context": "the film was good", "answers": "good"},
    "choice": {"question": "the film was", "choices": ["good", "very bad"], "label": 1},
    "regression": {"text": "the film was good", "label": 1.5},
}


def of_kind(tmp_path: Path, kind: str, family: str = "bert", **more: Any) -> sp.Predictor:
    """A predictor whose prompt was trained on files of a kind."""
    data = Data(train=str(write_jsonl(tmp_path / f"{kind}.jsonl", [KINDS[kind]] * 8)), kind=kind, **more)
    method = sp.PromptTuningConfig(num_virtual_tokens=3)
    path, _ = Workbench(model_folder(family), data, max_length=30).run(
        method, TrainConfig(max_steps=1), root=tmp_path / "runs"
    )
    return sp.Predictor(path)


def logits(predictor: sp.Predictor, *texts: str) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = predictor.model(**predictor.tokenizer(*texts, return_tensors="pt")).logits[0]
    return found


def test_an_encoder_tags_words_as_computed_by_hand(tmp_path: Path) -> None:
    predictor = of_kind(tmp_path, "tagging")
    rows: list[Any] = ["the film was good", {"words": WORDS}, {"words": "a plot"}]
    answers = predictor(rows)
    scores = logits(predictor, "the film was good")[-5:-1]  # behind the prompt and <s>, before </s>
    assert answers[0].tags == tuple(("O", "B-THING")[int(index)] for index in scores.argmax(-1))
    assert answers[0].label == " ".join(answers[0].tags) and answers[0].probability is None
    assert answers[1] == answers[0] and len(answers[2].tags) == 2
    with pytest.raises(sp.SoftPromptError, match="empty text"):
        predictor([{"words": []}])


def test_an_encoder_finds_spans_as_computed_by_hand(tmp_path: Path) -> None:
    predictor = of_kind(tmp_path, "span")
    (answer,) = predictor([("first film", "the film was good")])
    scores = logits(predictor, "first film", "the film was good")[-5:-1]
    spans = {(a, b): float(scores[a, 0] + scores[b, 1]) for a in range(4) for b in range(a, 4)}
    first, last = max(spans, key=spans.__getitem__)
    assert answer.label == " ".join(WORDS[first : last + 1]) and answer.probability is None and not answer.tags


def test_an_encoder_chooses_as_computed_by_hand(tmp_path: Path) -> None:
    predictor = of_kind(tmp_path, "choice")
    row = {"question": "the film was", "choice1": "good", "choice2": "very bad"}
    (answer,) = predictor([row])
    scores = torch.cat([logits(predictor, "the film was", choice) for choice in ("good", "very bad")])
    assert answer.label == ("good", "very bad")[int(scores.argmax())]
    assert answer.probability == pytest.approx(float(scores.softmax(0).max()), abs=1e-5)
    assert predictor([predictor.row("the film was", choices=["good", "very bad"])]) == [answer]
    # A file may have the choices as a list, as in training, or in columns.
    listed = {"question": "the film was", "choices": ["good", "very bad"]}
    for content in (listed, row):
        path = write_jsonl(tmp_path / "rows.jsonl", [content])
        assert predictor(predictor.read(path)) == [answer]
    path = write_jsonl(tmp_path / "rows.jsonl", [{**listed, "choices": ["a", "b", "c"]}])
    with pytest.raises(sp.SoftPromptError, match=r"rows\.jsonl: line 1: 3 choices; the task has 2"):
        predictor.read(path)


def test_choices_that_every_row_brings_itself(tmp_path: Path) -> None:
    uneven = [KINDS["choice"], {"question": "a film", "choices": ["good", "bad", "fine"], "label": 0}] * 4
    data = Data(train=str(write_jsonl(tmp_path / "uneven.jsonl", uneven)), kind="choice")
    path, _ = Workbench(model_folder("bert"), data).run(
        sp.HeadOnlyConfig(), TrainConfig(max_steps=1), root=tmp_path / "runs"
    )
    predictor = sp.Predictor(path)
    rows = predictor.read(tmp_path / "uneven.jsonl")
    assert [answer.label in row["choices"] for row, answer in zip(rows, predictor(rows), strict=True)] == [True] * 8
    with pytest.raises(sp.SoftPromptError, match=r"chooses: give the choices too \(--choice\)"):
        predictor(["the film"])


def test_a_task_with_three_fields(tmp_path: Path) -> None:
    lines = [{"first": "a film", "second": "the plot", "word": "film", "label": at % 2} for at in range(8)]
    write_jsonl(tmp_path / "senses.jsonl", lines)
    (tmp_path / "senses.yaml").write_text(
        "fields: [first, second, word]\nlabels: [no, yes]\nreading: ['{word} : {first}', '{word} : {second}']\n"
        "train: senses.jsonl\n"
    )
    path, _ = Workbench(model_folder("bert"), Data(task=str(tmp_path / "senses.yaml"))).run(
        sp.HeadOnlyConfig(), TrainConfig(max_steps=1), root=tmp_path / "runs"
    )
    predictor = sp.Predictor(path)
    row = predictor.row(fields={"first": "a film", "second": "the plot", "word": "film"})
    (answer,) = predictor([row])
    scores = logits(predictor, "film : a film", "film : the plot")
    assert answer.label == ("no", "yes")[int(scores.argmax())]
    assert answer.probability == pytest.approx(float(scores.softmax(0).max()), abs=1e-5)
    assert [one.label for one in predictor(predictor.read(tmp_path / "senses.jsonl"))] == [answer.label] * 8
    write_jsonl(tmp_path / "renamed.jsonl", [{"s1": "a film", "s2": "the plot", "lemma": "film"}])
    renamed = predictor.read(tmp_path / "renamed.jsonl", "s1", "s2", {"word": "lemma"})
    assert predictor(renamed) == [answer]
    with pytest.raises(sp.SoftPromptError, match=r"reads 3 texts \(first, second, word\), not 2: give each"):
        predictor([("a film", "the plot")])
    with pytest.raises(sp.SoftPromptError, match=r"renamed\.jsonl: line 1: no column 'first'"):
        predictor.read(tmp_path / "renamed.jsonl")
    with pytest.raises(sp.SoftPromptError, match="no field 'wrd': did you mean 'word'"):
        predictor.row("a", "b", {"wrd": "c"})


def test_a_language_model_answers_every_kind_it_can(tmp_path: Path) -> None:
    span = of_kind(tmp_path, "span", "t5")
    row = ("first film", "the film was good")
    (answer,) = span([row])
    with torch.no_grad():
        ids = span.tokenizer("question: first film context: the film was good", return_tensors="pt")
        written = span.model.generate(**ids, max_new_tokens=32, do_sample=False)[0]
    assert answer.label == span.tokenizer.decode(written, skip_special_tokens=True).strip()
    choice = of_kind(tmp_path, "choice", "t5", label_words=("first", "second"))
    (answer,) = choice([{"question": "the film was", "choice1": "good", "choice2": "very bad"}])
    assert answer.label in ("good", "very bad") and 0.5 <= (answer.probability or 0) <= 1
    score = of_kind(tmp_path, "regression", "t5", label_words=("0", "1", "2"))
    assert score(["the film"])[0].label in ("0", "1", "2")
    with pytest.raises(sp.SoftPromptError, match="labels every word, which takes an encoder"):
        of_kind(tmp_path, "tagging", "t5")


def test_tags_for_people() -> None:
    words = ["John", "Smith", "and", "Ann", "left", "Rome"]
    assert (
        marked(words, ["B-PER", "I-PER", "O", "B-PER", "O", "B-LOC"])
        == "[John Smith PER] and [Ann PER] left [Rome LOC]"
    )
    assert marked(words[:2], ["B-PER", "B-PER"]) == "[John PER] [Smith PER]"
    assert marked(words[:2], ["I-PER", "I-LOC"]) == "[John PER] [Smith LOC]"
    assert marked(words[:2], ["NN", "VB"]) == "John/NN Smith/VB"


def test_raw_rows_of_a_task_are_prepared_as_in_training(tmp_path: Path) -> None:
    """COPA's model reads a premise with "because" or "so", which is no column."""
    row = {"premise": "the film", "choice1": "good", "choice2": "bad", "question": "cause"}
    folder = tmp_path / "data" / "super_glue" / "copa"
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        write_jsonl(folder / f"{split}.jsonl", [{**row, "label": index % 2, "idx": index} for index in range(4)])
    bench = Workbench(model_folder("bert"), Data(task="super_glue/copa", data_dir=str(tmp_path / "data")))
    path, _ = bench.run(sp.PrefixTuningConfig(num_virtual_tokens=2), TrainConfig(max_steps=1), root=tmp_path / "runs")
    predictor = sp.Predictor(path)
    assert "joiner" in predictor.fields
    wanted = predictor([dict(bench.task.validation[0].fields)])
    assert predictor([row]) == predictor([predictor.row(fields=row)]) == wanted
    assert predictor(predictor.read(write_jsonl(tmp_path / "raw.jsonl", [row]))) == wanted


def test_labels_of_tokens_without_a_task_are_refused(tmp_path: Path) -> None:
    model = sp.attach(load_backbone(model_folder("bert"), tokens=True)[1])
    model.add_prompt("p", sp.PrefixTuningConfig(num_virtual_tokens=2), labels=["O", "B-X", "I-X"], seed=0)
    model.save_prompt("p", tmp_path / "p")
    with pytest.raises(sp.SoftPromptError, match="does not say what its labels of tokens are for"):
        sp.Predictor(tmp_path / "p")
