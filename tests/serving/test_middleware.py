"""What pages of other sites, and requests made to be expensive, cannot do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import softprompts as sp
from softprompts.serving import schemas
from softprompts.serving.server import run
from softprompts.storage.saved_prompt import CONFIG_FILE
from softprompts.training.prediction import score_rows
from tests.serving.servers import Running, running, save, service_of

ROW = {"prompt": "films", "inputs": ["the film was good"]}


@pytest.fixture(scope="module")
def local(films: Path) -> Iterator[Running]:
    with running(service_of("bert", films, local=True)) as made:
        yield made


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://127.0.0.1:PORT"}, 200),
        ({"Origin": "http://127.0.0.1:PORT", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "https://proxied.example", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:PORT"}, 403),
    ],
)
def test_pages_of_other_sites_may_not_ask(local: Running, headers: dict[str, str], status: int) -> None:
    sent = {name: value.replace("PORT", str(local.port)) for name, value in headers.items()}
    for path, body in (("/v1/predict", ROW), ("/v1/prompts/films", None)):
        found, content, _ = local.ask("POST", path, body, sent)
        assert found == status, content
    assert local.ask("GET", "/v1/prompts", headers=sent)[0] == 200  # a browser shows nobody the answer


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:9", "[::1]:9", "a.localhost"])
def test_names_of_this_machine_are_answered(local: Running, host: str) -> None:
    assert local.ask("GET", "/v1/prompts", headers={"Host": host})[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "x\tlocalhost"]
)
def test_a_name_that_was_led_to_this_machine_is_not(local: Running, server: Running, host: str) -> None:
    for method, path in (("GET", "/"), ("GET", "/v1/prompts"), ("DELETE", "/v1/prompts/films")):
        status, content, _ = local.ask(method, path, headers={"Host": host})
        assert status in (400, 403), content
    assert "films" in local.service.prompts
    if "\t" not in host:  # elsewhere names are the operator's
        assert server.ask("GET", "/v1/prompts", headers={"Host": host})[0] == 200


def test_of_many_wrong_inputs_the_first_is_told() -> None:
    for model, inputs in (
        (schemas.PredictRequest, [0] * 1000),
        (schemas.PredictRequest, [{"words": [0] * 1000, "choices": [0] * 1000}]),
        (schemas.PredictRequest, [[0] * 1000]),
        (schemas.GenerateRequest, [0] * 1000),
        (schemas.ScoreRequest, [0] * 1000),
        (schemas.ScoreRequest, [{"continuations": [0] * 1000}]),
    ):
        with pytest.raises(ValidationError) as caught:
            model.model_validate({"inputs": inputs})
        assert caught.value.error_count() < 10


def test_names_of_fields_are_short_and_whole(local: Running) -> None:
    for name, shown, error in (
        ("\ud800", "\\ufffd" * 3, "Input should be a valid string, unable to parse raw data as a unicode string"),
        ("n" * 101, "n" * 101, "String should have at most 100 characters"),
    ):
        body = {"prompt": "films", "inputs": [{"text": "a", "fields": {name: "b"}}]}
        status, content, _ = local.ask("POST", "/v1/predict", body)
        assert (status, content) == (422, {"error": f"inputs[0].fields.{shown}.[key]: {error}"})


def test_a_number_without_end_in_a_config_is_told(tmp_path: Path) -> None:
    folder = save("bert", tmp_path, "poor", "two", sp.PromptTuningConfig(num_virtual_tokens=2))
    config = json.loads((folder / CONFIG_FILE).read_text())
    config["metadata"]["max_length"] = float("inf")
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    service = service_of("bert", tmp_path, strict=False)
    assert not service.prompts and "damaged" in service.left_out["poor"]


def test_a_host_that_is_no_name_is_told(films: Path) -> None:
    with pytest.raises(sp.SoftPromptError, match=r"cannot listen at a\.\.b:0"):
        run(service_of("bert", films), "a..b", 0, lambda port: None)


@pytest.mark.parametrize("name", [5, ["x"], {"a": 1}])
def test_a_class_that_is_no_name_is_told(tmp_path: Path, name: object) -> None:
    folder = save("bert", tmp_path, "poor", "two", sp.PromptTuningConfig(num_virtual_tokens=2))
    config = json.loads((folder / CONFIG_FILE).read_text())
    config["backbone"]["class"] = name
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    service = service_of("bert", tmp_path, strict=False)
    assert not service.prompts and "was it edited" in service.left_out["poor"]


def test_a_folder_that_may_not_be_looked_into_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save("bert", tmp_path, "good", "two", sp.PromptTuningConfig(num_virtual_tokens=2))
    save("bert", tmp_path, "poor", "two", sp.PromptTuningConfig(num_virtual_tokens=2))
    is_file = Path.is_file

    def refused(path: Path) -> bool:
        if path.parent.name == "poor":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refused)
    service = service_of("bert", tmp_path, strict=False)
    assert list(service.prompts) == ["good"]
    assert service.left_out == {"poor": "the files of 'poor' cannot be read (Permission denied)"}
    with running(service) as server:
        status, content, _ = server.ask("PUT", "/v1/prompts/poor")
        assert (status, content) == (409, {"error": service.left_out["poor"]})


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_many_continuations_keep_to_the_size_of_a_pass(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(family, tmp_path, "p", "two", sp.PromptTuningConfig(num_virtual_tokens=2))
    counts: list[int] = []

    def noted(*arguments: Any, label_ids: Any, **more: Any) -> Any:
        counts.append(sum(map(len, label_ids)))
        return score_rows(*arguments, label_ids=label_ids, **more)

    monkeypatch.setattr("softprompts.serving.engine.score_rows", noted)
    texts = ["good", "bad", "very good", "a film", "plot", "nice", "awful"]
    body = {"inputs": [{"text": "the film was", "continuations": texts}, {"text": "film", "continuations": ["bad"]}]}
    found = []
    for limits in ({}, {"max_batch": 3}, {"max_tokens": 30}, {"max_tokens": 1}):
        counts.clear()
        with running(service_of(family, tmp_path, **limits)) as server:
            found.append(server.post("/v1/score", body)["answers"])
        assert sum(counts) == len(texts) + 1 and max(counts) <= {"max_batch": 3, "max_tokens": 4}.get(
            next(iter(limits), ""), 8
        )
    for other in found[1:]:
        for one, wanted in zip(other, found[0], strict=True):
            assert [score["log_likelihood"] for score in one["scores"]] == pytest.approx(
                [score["log_likelihood"] for score in wanted["scores"]], abs=1e-4
            )


def test_errors_tell_no_folders(local: Running) -> None:
    told = local.service.without_paths("x was trained on another backbone (/home/me/models/bert): use org/name, a/b")
    assert told == "x was trained on another backbone (bert): use org/name, a/b"
