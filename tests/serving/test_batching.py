"""Rows of many prompts in the same passes: every answer equals that of the row alone."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import softprompts as sp
from softprompts.serving.engine import batches
from softprompts.serving.jobs import ScoringRow
from tests.serving.servers import (
    ENCODER_TASKS,
    FORMS,
    WORDS,
    WRITER_TASKS,
    ask_together,
    running,
    save,
    save_all,
    service_of,
)

pytest.importorskip("fastapi")


def text(draw: random.Random, most: int = 12) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, most)))


def row_for(task: str, draw: random.Random) -> Any:
    if task == "choice":
        return {"text": text(draw, 4), "choices": [text(draw, 5) for _ in range(draw.randint(2, 4))]}
    if len(FORMS[task].fields) == 2:
        return [text(draw), text(draw)]
    return text(draw)


def alone(predictor: sp.Predictor, row: Any) -> Any:
    if isinstance(row, dict):
        row = predictor.row(row["text"], choices=row["choices"])
    return predictor([tuple(row) if isinstance(row, list) else row])[0]


def compare(found: dict[str, Any], expected: Any) -> None:
    if expected.value is not None:
        assert found["value"] == pytest.approx(expected.value, abs=1e-5)
    else:
        assert found["label"] == expected.label
    assert found.get("tags", []) == list(expected.tags)
    assert found.get("probability") == pytest.approx(expected.probability, abs=1e-5)
    assert found.get("probabilities", {}) == pytest.approx(expected.probabilities, abs=1e-5)


@pytest.mark.parametrize(
    ("family", "tasks", "count"), [("bert", ENCODER_TASKS, 200), ("t5", WRITER_TASKS, 60), ("llama", WRITER_TASKS, 60)]
)
def test_clients_that_ask_at_once_get_the_answers_of_rows_alone(
    tmp_path: Path, family: str, tasks: tuple[str, ...], count: int
) -> None:
    names = save_all(family, tmp_path, tasks)
    draw = random.Random(0)
    asked = [draw.choice(names) for _ in range(count)]
    rows = [row_for(name.split("-")[1], draw) for name in asked]
    bodies = [("/v1/predict", {"prompt": name, "inputs": [row]}) for name, row in zip(asked, rows, strict=True)]
    service = service_of(family, tmp_path, max_batch=32)
    with running(service) as server:
        found = asyncio.run(ask_together(server.port, bodies, 16))
        # One request with rows of many prompts too.
        mixed = [
            {"prompt": name, **(row if isinstance(row, dict) else _named(row))}
            for name, row in zip(asked[:40], rows, strict=False)
        ]
        found.append(server.post("/v1/predict", {"inputs": mixed}))
    predictors = {name: sp.Predictor(tmp_path / name) for name in set(asked)}
    for name, row, answer in zip(asked, rows, found, strict=False):
        compare(answer["answers"][0], alone(predictors[name], row))
    for one, other in zip(found[-1]["answers"], found, strict=False):
        compare(one, alone(predictors[one["prompt"]], rows[found.index(other)]))
    sample = service.metrics.registry.get_sample_value
    assert sample("softprompts_batch_rows_count") < count  # they did share passes
    assert service.waiting == 0 and all(not one.in_flight for one in service.prompts.values())


def _named(row: Any) -> dict[str, str]:
    return {"text": row[0], "text_pair": row[1]} if isinstance(row, list) else {"text": row}


def test_heads_of_two_classes_share_the_frozen_weights(tmp_path: Path) -> None:
    save("bert", tmp_path, "a", "two", sp.PrefixTuningConfig(num_virtual_tokens=2))
    save("bert", tmp_path, "b", "tags", sp.PrefixTuningConfig(num_virtual_tokens=2))
    models = service_of("bert", tmp_path).engine.models
    one, other = (dict(model.base_model.named_parameters()) for model in models.values())
    shared = [name for name in one.keys() & other.keys() if one[name].data_ptr() == other[name].data_ptr()]
    assert len(models) == 2 and len(shared) == len(one.keys() & other.keys()) > 20


def test_continuations_are_scored_as_by_hand(tmp_path: Path) -> None:
    for family in ("llama", "t5"):
        folder = tmp_path / family
        save(family, folder, "p", "two", sp.PrefixTuningConfig(num_virtual_tokens=2))
        with running(service_of(family, folder)) as server:
            for end in (True, False):
                body = {"inputs": [{"text": "the film was", "continuations": ["good", "very bad", "bad"]}], "end": end}
                (found,) = server.post("/v1/score", body)["answers"]
                predictor = sp.Predictor(folder / "p")
                model, tokenizer = predictor.model, predictor.tokenizer
                for one in found["scores"]:
                    target = tokenizer(one["text"], add_special_tokens=False)["input_ids"] + [2] * end
                    assert one["tokens"] == len(target)
                    prompt = predictor.reader.encode(["the film was"]).encoded.features[0]["input_ids"]
                    with torch.no_grad():
                        if family == "t5":
                            given, labels = torch.tensor([prompt]), torch.tensor([target])
                            logits = model(input_ids=given, labels=labels).logits[0]
                        else:
                            ids = torch.tensor([prompt + target])
                            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
                    wanted = sum(logits.log_softmax(-1)[i, token] for i, token in enumerate(target))
                    assert one["log_likelihood"] == pytest.approx(float(wanted), abs=1e-4)
                assert found["best"] == max(found["scores"], key=lambda one: one["log_likelihood"])["text"]


def test_rows_that_do_not_fit_together_run_apart(tmp_path: Path) -> None:
    """A long input beside a long prompt would exceed the positions that each alone does not."""
    save("bert", tmp_path, "long", "two", sp.PromptTuningConfig(num_virtual_tokens=20))
    save("bert", tmp_path, "short", "two", sp.HeadOnlyConfig())
    with running(service_of("bert", tmp_path)) as server:
        long = " ".join(["film"] * 30)
        rows = [{"prompt": "short", "text": long}, {"prompt": "long", "text": "film plot"}]
        answers = server.post("/v1/predict", {"inputs": rows})["answers"]
    assert [one["prompt"] for one in answers] == ["short", "long"]


def test_passes_keep_to_their_limits() -> None:
    draw = random.Random(0)
    for _ in range(50):
        lines: list[Any] = [
            ScoringRow(
                SimpleNamespace(input_tokens=draw.choice([0, 5, 20])),  # type: ignore[arg-type]
                {"input_ids": [0] * draw.randint(1, 60)},
            )
            for _ in range(draw.randint(1, 90))
        ]
        made = list(batches(lines, 32, 600, 80))
        assert sorted(index for one in made for index in one) == list(range(len(lines)))
        for one in made:
            width = max(lines[i].width for i in one)
            longest = max(lines[i].prompt.input_tokens for i in one)
            assert len(one) <= 32 and width + longest <= 80
            assert len(one) == 1 or len(one) * (width + longest) <= 600


def test_a_row_that_fails_does_not_take_others_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save("bert", tmp_path, "good", "two", sp.HeadOnlyConfig())
    save("bert", tmp_path, "poor", "two", sp.PrefixTuningConfig(num_virtual_tokens=2))
    service = service_of("bert", tmp_path)
    service.prompts["poor"].module.head.classifier.weight.data.fill_(float("nan"))  # type: ignore[union-attr]
    with running(service) as server:
        status, content, _ = server.ask("POST", "/v1/predict", {"prompt": "poor", "inputs": ["film"]})
        assert (status, content) == (500, {"error": "'poor' gives scores that are not numbers"})
        assert server.post("/v1/predict", {"prompt": "good", "inputs": ["film"]})["answers"][0]["label"]
        method = service.prompts["poor"].module.method
        monkeypatch.setattr(method, "forward", lambda rows=None: 1 / 0)
        rows = [{"prompt": name, "text": "film"} for name in ("good", "poor")]
        status, content, _ = server.ask("POST", "/v1/predict", {"inputs": rows})
        assert status == 500 and content == {"error": "the model failed on a row of 'poor' (ZeroDivisionError)"}
        assert server.post("/v1/predict", {"prompt": "good", "inputs": ["film"]})["answers"][0]["label"]
