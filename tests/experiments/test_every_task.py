"""Every task on the kinds of backbone it is used with: rows are loaded, put to a model, trained on and scored.

The rows are the first of the real ones. Models are the packaged encoder and small random ones. What a perfect and a
constant predictor score is known beforehand.
"""

from __future__ import annotations

import functools
import gzip
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

import softprompts as sp
from softprompts.backbones.packaged import DEFAULT_MODEL, resolve_model
from softprompts.errors import SoftPromptError
from softprompts.experiments.workbench import Workbench
from softprompts.tasks import Task, encode_examples, marker
from softprompts.tasks.answers import normalise, score_string
from softprompts.tasks.catalog import SPECS
from softprompts.tasks.data import Data
from softprompts.tasks.encode import Encoded
from softprompts.tasks.kinds import KINDS
from softprompts.training import TrainConfig
from softprompts.training.prediction import Prediction
from tests.experiments.test_every_method import model_name

ROWS = 60  # of each split at most
STEPS = 5
LENGTH = 32  # tokens of a row that is trained on
LONG = 384  # of one that is only encoded
MODELS = ("encoder", "encoder-decoder", "decoder")

# Tasks, their templates and how a language model answers; None: as declared.
Case = tuple[str, str | None, str | None]
PLAIN: list[Case] = [(name, None, None) for name in SPECS]
OTHERS: dict[str, list[Case]] = {
    "encoder": [
        ("super_glue/wic", "ptuning-0", None),
        ("super_glue/wsc", "ptuning-1", None),
        ("super_glue/wsc", "residual-referent", None),
        ("super_glue/record", "ptuning", None),
    ],
    "encoder-decoder": [
        ("super_glue/wsc", "residual-referent", None),
        ("super_glue/record", "dept", None),
        ("super_glue/record", "residual", None),
        ("super_glue/multirc", "smop", "generate"),
        ("glue/stsb", "attempt", "generate"),
    ],
    "decoder": [("super_glue/cb", "residual", "generate"), ("glue/mrpc", "dept", "generate")],
}


def cases(*kinds: str) -> list[Any]:
    found = []
    for kind in kinds:
        for name, template, answering in PLAIN + OTHERS[kind]:
            if kind == "encoder" or SPECS[name].form.kind != "tagging":
                words = [kind, name, *filter(None, (template, answering))]
                found.append(pytest.param(kind, name, template, answering, id=" ".join(words)))
    return found


@pytest.fixture(scope="module")
def some_rows(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    """A folder with the first rows of every task."""
    folder = tmp_path_factory.mktemp("data")
    for name in SPECS:
        for path in sorted((shared_data / name).glob("*.jsonl*")):
            open_text = gzip.open if path.suffix == ".gz" else open
            with open_text(path, "rt", encoding="utf-8") as lines:
                (folder / name).mkdir(parents=True, exist_ok=True)
                file = folder / name / f"{path.name.split('.')[0]}.jsonl"
                file.write_text("".join(itertools.islice(lines, ROWS)), encoding="utf-8")
    return folder


def data_of(folder: Path, name: str, template: str | None, answering: str | None, **more: Any) -> Data:
    if not (folder / name).is_dir():
        pytest.skip(f"no local copy of {name}")
    return Data(task=name, data_dir=str(folder), template=template, answering=answering, **more)


# Training


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Callable[[str, Data], Workbench]:
    """A model of some kind with a task; models are loaded once."""
    loaded: dict[Any, Workbench] = {}

    @functools.cache
    def folder(kind: str) -> str:
        return model_name(kind, tmp_path_factory.mktemp(kind), shared_data / "t5-tokenizer")

    def get(kind: str, data: Data) -> Workbench:
        key = kind, kind == "encoder" and KINDS[data.load().kind].tokens
        if key in loaded:
            return loaded[key].on(data)
        try:
            loaded[key] = Workbench(folder(kind), data, max_length=LENGTH)
        except SoftPromptError as error:
            pytest.skip(str(error))
        return loaded[key]

    return get


def train_and_score(bench: Workbench, method: sp.MethodConfig, folder: Path) -> None:
    training = TrainConfig(max_steps=STEPS, batch_size=2, eval_every=STEPS)
    _, result = bench.run(method, training, folder=folder / "run", progress=False)
    task, [name] = bench.task, list(bench.model.prompts)
    try:
        assert result["steps"] == STEPS and result["eval_rows"] == len(task.validation)
        assert tuple(result["metrics"]) == task.metrics
        assert all(-1 <= score <= 1 for score in result["metrics"].values())
        # The prompt of the best step is on the model again, and scores the same.
        assert bench.score([name]) == [pytest.approx(result["metrics"], abs=1e-6)]
        trained = bench.model.prompts[name]
        bench.model.add_prompt("start", method, num_labels=trained.num_labels, seed=0)
        start = dict(bench.model.prompts["start"].named_parameters())
        assert any(not torch.equal(tensor, start[key]) for key, tensor in trained.named_parameters())
    finally:
        for each in list(bench.model.prompts):
            bench.model.forget_prompt(each)


@pytest.mark.parametrize(("kind", "name", "template", "answering"), cases(*MODELS))
def test_a_prefix_trains(
    kind: str, name: str, template: str | None, answering: str | None, some_rows: Path, bench: Any, tmp_path: Path
) -> None:
    limits = {"max_train": 16, "max_validation": 4}
    made = bench(kind, data_of(some_rows, name, template, answering, **limits))
    train_and_score(made, sp.PrefixTuningConfig(num_virtual_tokens=4), tmp_path)


@pytest.mark.parametrize(
    ("kind", "name", "method"),
    [
        ("encoder", "squad/squad", sp.LoraConfig(rank=2)),
        ("encoder", "super_glue/copa", sp.PromptTuningConfig(num_virtual_tokens=4)),
        ("encoder", "ner/conll2004", sp.PromptTuningConfig(num_virtual_tokens=4)),
        ("encoder-decoder", "super_glue/record", sp.PromptTuningConfig(num_virtual_tokens=4)),
        ("decoder", "squad/squad", sp.PromptTuningConfig(num_virtual_tokens=4)),
    ],
)
def test_other_methods_train(
    kind: str, name: str, method: sp.MethodConfig, some_rows: Path, bench: Any, tmp_path: Path
) -> None:
    made = bench(kind, data_of(some_rows, name, None, None, max_train=16, max_validation=4))
    train_and_score(made, method, tmp_path)


@pytest.mark.parametrize("kind", ["encoder-decoder", "decoder"])
@pytest.mark.parametrize("name", ["ner/conll2003", "ner/conll2004"])
def test_a_language_model_tags_nothing(kind: str, name: str, some_rows: Path, bench: Any) -> None:
    with pytest.raises(SoftPromptError, match=f"'{name}' labels every word, which takes an encoder") as caught:
        bench(kind, data_of(some_rows, "super_glue/cb", None, None)).on(data_of(some_rows, name, None, None))
    assert "\n" not in str(caught.value)


# Predictors of which the score is known


@pytest.fixture(scope="module")
def tokenizers(shared_data: Path) -> Callable[[str], Any]:
    @functools.cache
    def get(kind: str) -> Any:
        if kind == "encoder":
            try:
                return tf.AutoTokenizer.from_pretrained(resolve_model(DEFAULT_MODEL))
            except SoftPromptError as error:
                pytest.skip(str(error))
        return tf.AutoTokenizer.from_pretrained(shared_data / "t5-tokenizer")

    return get


class Marked:
    """The validation rows of a task as a model gets them, and the scores of predictions for them."""

    def __init__(self, task: Task, tokenizer: Any, kind: str):
        self.task, self.tokenizer, self.rows = task, tokenizer, task.validation
        self.encoded: Encoded = encode_examples(self.rows, task, tokenizer, kind, LONG)
        self.mark = marker(task, self.rows, self.encoded, tokenizer, kind)

    def of_scores(self, scores: list[torch.Tensor]) -> dict[str, float]:
        """Of what a head or the likelihood of words gives, read as `predict` does."""
        first = self.encoded.features[0]
        if "places" in first:
            labels: list[Any] = [row.argmax(1).tolist() for row in scores]
        elif "choices" in first:
            labels = [int(row[:, 0].argmax()) for row in scores]
        elif scores[0].shape[1] == 1:
            labels = [float(row[0, 0]) for row in scores]
        else:
            labels = [int(row[0].argmax()) for row in scores]
        return self.mark(Prediction(labels, None, scores))

    def of_texts(self, texts: list[str]) -> dict[str, float]:
        """Of what a language model has written."""
        return self.mark(Prediction([], None, tokens=[self.tokenizer(text).input_ids for text in texts]))


def one_hot(index: int, count: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor([index]), count).double()


def right_scores(feature: dict[str, Any], task: Task) -> torch.Tensor:
    """What a perfect head gives for a row of the model."""
    if task.kind == "regression":
        return torch.tensor([[feature["label"]]], dtype=torch.float64)
    if task.kind == "choice":
        return one_hot(feature["label"], len(feature["choices"])).T
    if task.kind == "tagging":
        return torch.cat([one_hot(feature["labels"][place], len(task.label_names)) for place in feature["places"]])
    if task.kind == "span":
        scores = torch.zeros(len(feature["places"]), 2, dtype=torch.float64)
        if feature["span"] != [0, 0]:  # of a window that has the answer
            for side, place in enumerate(feature["span"]):
                scores[feature["places"].index(place), side] = 1
        return scores
    return one_hot(feature["label"], 2 if task.kind == "ranking" else len(task.label_names))


def load(folder: Path, name: str, template: str | None, answering: str | None) -> Task:
    return data_of(folder, name, template, answering).load()


@pytest.mark.parametrize(("kind", "name", "template", "answering"), cases("encoder"))
def test_a_perfect_encoder(
    kind: str, name: str, template: str | None, answering: str | None, some_rows: Path, tokenizers: Any
) -> None:
    task = load(some_rows, name, template, answering)
    rows = Marked(task, tokenizers(kind), kind)
    found = rows.of_scores([right_scores(feature, task) for feature in rows.encoded.features])
    assert found == dict.fromkeys(task.metrics, pytest.approx(1.0))


def words_of(task: Task) -> list[str]:
    """What a perfect language model writes, from the labels alone."""
    form = task.form
    if form.kind == "regression":
        return [score_string(row.label, snap=len(form.words) == 26) for row in task.validation]
    if form.kind in ("classification", "choice"):
        return [form.words[row.label] for row in task.validation]
    return [row.answers[-1] for row in task.validation]


def perfect(task: Task) -> dict[str, Any]:
    """Of a score in words the correlation is that of rounded scores with the real ones."""
    known = dict.fromkeys(task.metrics, pytest.approx(1.0))
    if "pearson" in known:
        labels = [row.label for row in task.validation]
        correlation = np.corrcoef(labels, [float(word) for word in words_of(task)])[0, 1]
        assert correlation > 0.99
        known["pearson"] = pytest.approx(correlation)
    if "spearman" in known:
        known["spearman"] = pytest.approx(1.0, abs=0.01)
    return known


TEMPLATES = [
    pytest.param(name, template, id=" ".join(filter(None, (name, template))))
    for name, spec in SPECS.items()
    for template in (None, *spec.templates)
    if spec.form.kind != "tagging"
]


@pytest.mark.parametrize("answering", ["rank", "generate"])
@pytest.mark.parametrize(("name", "template"), TEMPLATES)
def test_a_perfect_language_model(
    name: str, template: str | None, answering: str, some_rows: Path, tokenizers: Any
) -> None:
    task = load(some_rows, name, template, answering)
    rows = Marked(task, tokenizers("decoder"), "encoder-decoder")
    if answering == "generate" or not task.form.closed:
        assert rows.of_texts(words_of(task)) == perfect(task)
        # The answers that are trained on are as good.
        answers = [[token for token in row["labels"] if token >= 0] for row in rows.encoded.features]
        assert rows.mark(Prediction([], None, tokens=answers)) == perfect(task)
    else:
        places = [task.form.words.index(word) for word in words_of(task)]
        assert rows.of_scores([one_hot(place, len(task.form.words)) for place in places]) == perfect(task)


def constant_class(task: Task, label: int) -> dict[str, Any]:
    """The metrics of always the same class, from the counts of labels."""
    labels = [row.label for row in task.validation]
    counts = Counter(labels)
    share = counts[label] / len(labels)
    groups = defaultdict(set)
    for row in task.validation:
        groups[row.group].add(row.label)
    positive = counts[1] / len(labels)
    f1 = 2 * positive / (1 + positive) if label == 1 else 0.0
    macro = 2 * share / (1 + share) / len({*counts, label})
    known = {
        "accuracy": share,
        "f1": f1,
        "f1a": f1,
        "macro_f1": macro,
        "string_macro_f1": macro,
        "matthews": 0.0,
        "question_em": sum(found == {label} for found in groups.values()) / len(groups),
    }
    return {
        name: pytest.approx(sum(known[part] for part in name.split("+")) / len(name.split("+")))
        for name in task.metrics
    }


CLASSES = [
    pytest.param(*case.values, id=case.id)
    for case in TEMPLATES
    if SPECS[case.values[0]].form.kind in ("classification", "choice") and case.values[1] != "residual-referent"
]


@pytest.mark.parametrize(("name", "template"), CLASSES)
def test_a_constant_class(name: str, template: str | None, some_rows: Path, tokenizers: Any) -> None:
    task = load(some_rows, name, template, "generate")
    words = task.form.words
    heads, texts = Marked(task, tokenizers("encoder"), "encoder"), Marked(task, tokenizers("decoder"), "decoder")
    for label, word in enumerate(words):
        known = constant_class(task, label)
        scores = one_hot(label, len(words))
        assert heads.of_scores([scores.T if task.kind == "choice" else scores] * len(task.validation)) == known
        assert texts.of_texts([word] * len(task.validation)) == known


def test_a_constant_score(some_rows: Path, tokenizers: Any) -> None:
    task = load(some_rows, "glue/stsb", None, "generate")
    known = {"pearson": 0.0, "spearman": 0.0}
    count = len(task.validation)
    assert Marked(task, tokenizers("encoder"), "encoder").of_scores([torch.tensor([[2.5]])] * count) == known
    assert Marked(task, tokenizers("decoder"), "decoder").of_texts(["2.6"] * count) == known


@pytest.mark.parametrize("template", [None, "ptuning"])
def test_always_the_first_candidate(template: str | None, some_rows: Path, tokenizers: Any) -> None:
    task = load(some_rows, "super_glue/record", template, None)
    rows = Marked(task, tokenizers("encoder"), "encoder")
    assert len(rows.encoded.features) == sum(len(row.names) for row in task.validation) > len(task.validation)
    right = [normalise(row.names[0]) in map(normalise, row.answers) for row in task.validation]
    found = rows.of_scores([torch.zeros(1, 2)] * len(rows.encoded.features))
    assert found["em"] == pytest.approx(sum(right) / len(right)) and 0 < found["em"] <= found["token_f1"] < 1


@pytest.mark.parametrize("name", ["squad/squad", "super_glue/record"])
def test_always_the_same_text(name: str, some_rows: Path, tokenizers: Any) -> None:
    task = load(some_rows, name, None, None)
    rows = Marked(task, tokenizers("decoder"), "decoder")
    [(text, _)] = Counter(answer for row in task.validation for answer in set(row.answers)).most_common(1)
    share = sum(normalise(text) in map(normalise, row.answers) for row in task.validation) / len(task.validation)
    found = rows.of_texts([text] * len(task.validation))
    assert found["em"] == pytest.approx(share) and 0 < share <= found["token_f1"] < 1
    assert rows.of_texts([""] * len(task.validation)) == {"em": 0.0, "token_f1": 0.0}


def test_always_the_first_word_of_a_context(some_rows: Path, tokenizers: Any) -> None:
    task = load(some_rows, "squad/squad", None, None)
    rows = Marked(task, tokenizers("encoder"), "encoder")
    found = rows.of_scores([torch.zeros(len(row["places"]), 2) for row in rows.encoded.features])
    first = [row.fields["context"].split()[0].lower() for row in task.validation]
    right = [word in map(str.lower, row.answers) for word, row in zip(first, task.validation, strict=True)]
    assert found["em"] == sum(right) / len(right)


@pytest.mark.parametrize("name", ["ner/conll2003", "ner/conll2004"])
def test_always_the_same_tag(name: str, some_rows: Path, tokenizers: Any) -> None:
    task = load(some_rows, name, None, None)
    rows, names = Marked(task, tokenizers("encoder"), "encoder"), task.label_names

    def always(tag: int) -> dict[str, float]:
        score = one_hot(tag, len(names))
        return rows.of_scores([score.expand(len(row["places"]), -1) for row in rows.encoded.features])

    assert always(0) == dict.fromkeys(task.metrics, 0.0)
    # Of every word an entity of its own: right are those of one word.
    tags = [[*(names[label] for label in row.label), "O"] for row in task.validation]
    words = sum(len(row) - 1 for row in tags)
    entities = sum(tag.startswith("B-") for row in tags for tag in row)
    tag = next(name for name in names if name.startswith("B-P"))
    inside = f"I-{tag[2:]}"
    right = sum(one == tag and after != inside for row in tags for one, after in itertools.pairwise(row))
    assert right > 0
    known = {
        "seqeval_f1": 2 * right / (words + entities),
        "seqeval_precision": right / words,
        "seqeval_recall": right / entities,
    }
    assert always(names.index(tag)) == pytest.approx(known)


# Answers that are no label


def written(some_rows: Path, tokenizers: Any, name: str, template: str, **form: Any) -> Iterator[Any]:
    data = data_of(some_rows, name, template, "generate", **form)
    return Marked(data.load(), tokenizers("decoder"), "encoder-decoder")


def test_an_invalid_answer_is_a_class_of_its_own_for_smop(some_rows: Path, tokenizers: Any) -> None:
    rows = written(some_rows, tokenizers, "super_glue/multirc", "smop")
    texts = words_of(rows.task)
    texts[0] = "perhaps"
    truth = Counter(words_of(rows.task))
    lost = words_of(rows.task)[0]
    # Of its own class one prediction is missing, the other's F1 is 1, that of "perhaps" is 0.
    share = 2 * (truth[lost] - 1) / (2 * truth[lost] - 1)
    assert rows.of_texts(texts) == {"string_macro_f1": pytest.approx((share + 1) / 3)}


def test_an_invalid_answer_is_the_opposite_for_dept(some_rows: Path, tokenizers: Any) -> None:
    rows = written(some_rows, tokenizers, "glue/mrpc", "dept")
    truth = words_of(rows.task)
    texts, place = list(truth), truth.index("0")
    texts[place] = "not sure"
    ones = truth.count("1")
    expected = {"f1": 2 * ones / (2 * ones + 1), "accuracy": 1 - 1 / len(truth)}
    assert rows.of_texts(texts) == pytest.approx(expected)


def test_an_invalid_answer_spoils_the_task_for_superpos(some_rows: Path, tokenizers: Any) -> None:
    rows = written(some_rows, tokenizers, "super_glue/boolq", "residual", invalid="zero")
    texts = words_of(rows.task)
    assert rows.of_texts(texts) == {"accuracy": 1.0}
    assert rows.of_texts(["maybe", *texts[1:]]) == {"accuracy": 0.0}


def test_a_score_that_is_none(some_rows: Path, tokenizers: Any) -> None:
    rows = written(some_rows, tokenizers, "glue/stsb", "dept")
    texts = words_of(rows.task)
    numbers = [float(text) for text in texts]
    texts[0], numbers[0] = "very", -1.0
    known = np.corrcoef(numbers, [row.label for row in rows.task.validation])[0, 1]
    assert rows.of_texts(texts)["pearson"] == pytest.approx(known) and math.isfinite(known)
