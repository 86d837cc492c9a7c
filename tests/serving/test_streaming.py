"""Text that is written, at once and as it comes."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import softprompts as sp
from softprompts.serving.sampling import Sampler
from tests.serving.servers import Later, Running, held, running, save, service_of, wait_until

TEXTS = ["the film was good", "a plot", "very very bad film", "first"]


@pytest.fixture(scope="module", params=["llama", "t5"])
def writer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Path]]:
    folder = tmp_path_factory.mktemp("writers")
    save(request.param, folder, "prefix", "two", sp.PrefixTuningConfig(num_virtual_tokens=3), 0)
    save(request.param, folder, "prompt", "two", sp.PromptTuningConfig(num_virtual_tokens=2), 1)
    save(request.param, folder, "lora", "two", sp.LoraConfig(rank=2), 2)
    with running(service_of(request.param, folder)) as made:
        yield made, folder


def written_alone(folder: Path, name: str, text: str, count: int) -> list[int]:
    """Greedy tokens, each from a whole pass."""
    predictor = sp.Predictor(folder / name)
    model, ids = predictor.model, predictor.reader.encode([text]).encoded.features[0]["input_ids"]
    found: list[int] = []
    with torch.no_grad():
        for _ in range(count):
            if predictor.kind == "decoder":
                logits = model(input_ids=torch.tensor([ids + found])).logits[0, -1]
            else:
                given = {"input_ids": torch.tensor([ids]), "decoder_input_ids": torch.tensor([[0, *found]])}
                logits = model(**given).logits[0, -1]
            token = int(logits.argmax())
            if token == predictor.tokenizer.eos_token_id:
                break
            found.append(token)
    return found


def events(server: Running, body: Any) -> list[tuple[str, Any]]:
    status, content, headers = server.ask("POST", "/v1/generate", {**body, "stream": True})
    assert status == 200 and headers["content-type"].startswith("text/event-stream"), content
    found = []
    for block in content.decode().split("\n\n")[:-1]:
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_rows_of_many_prompts_are_written_together_as_alone(writer: tuple[Running, Path]) -> None:
    server, folder = writer
    rows = [{"prompt": name, "text": text} for text in TEXTS for name in ("prefix", "prompt", "lora")]
    body = {"inputs": rows, "max_new_tokens": 7}
    answers = server.post("/v1/generate", body)["answers"]
    tokenizer = server.service.engine.tokenizer
    for row, answer in zip(rows, answers, strict=True):
        tokens = written_alone(folder, row["prompt"], row["text"], 7)
        assert answer["text"] == tokenizer.decode(tokens, skip_special_tokens=True)
        assert answer["tokens"] == len(tokens) and answer["finish"] == ("stop" if len(tokens) < 7 else "length")
    streamed = events(server, body)
    assert [data for name, data in streamed if name == "done"] == [
        {"index": index, **answer} for index, answer in enumerate(answers)
    ]
    for index, answer in enumerate(answers):
        parts = [data["text"] for name, data in streamed if name == "token" and data["index"] == index]
        assert "".join(parts).strip() == answer["text"].strip()
        assert len(parts) == len(answer["text"].split())  # a token is a word here


def test_draws_depend_on_their_seed_and_on_nothing_else(writer: tuple[Running, Path]) -> None:
    server, _ = writer
    body = {"prompt": "prefix", "inputs": ["the film"], "max_new_tokens": 12, "temperature": 3.0, "seed": 5}
    (alone,) = server.post("/v1/generate", body)["answers"]
    beside = server.post("/v1/generate", {**body, "inputs": ["the film", "a very bad plot", "film"]})["answers"]
    assert beside[0] == alone
    others = {server.post("/v1/generate", {**body, "seed": seed})["answers"][0]["text"] for seed in range(6, 12)}
    assert len(others | {alone["text"]}) > 2


def test_a_text_may_be_read_as_it_is(writer: tuple[Running, Path]) -> None:
    server, _ = writer
    body = {"prompt": "prefix", "inputs": ["the film"], "max_new_tokens": 3, "template": False}
    assert server.post("/v1/generate", body)["answers"][0]["tokens"] <= 3
    if server.service.engine.kind == "decoder":  # no table of positions in a T5
        status, content, _ = server.ask("POST", "/v1/generate", {**body, "inputs": ["film " * 60]})
        assert status == 422 and content["error"].startswith("inputs[0]: 60 tokens are too long")


def test_rows_are_scored_between_the_steps_of_a_text(writer: tuple[Running, Path]) -> None:
    server, _ = writer
    ask = {"prompt": "lora", "inputs": ["the film was good", "bad"]}
    wanted = server.post("/v1/predict", ask)["answers"]
    long = {"prompt": "prefix", "inputs": ["the film"], "max_new_tokens": 12, "temperature": 2.0, "seed": 1}
    plain = server.post("/v1/generate", long)
    with held(server.service) as go:
        writing = Later(server, "POST", "/v1/generate", long)
        wait_until(lambda: server.service._batcher._generation)
        between = []
        engine, score = server.service.engine, server.service.engine.score

        def noted(*arguments: Any) -> Any:
            between.append(not writing._found)
            return score(*arguments)

        engine.score = noted  # type: ignore[method-assign]
        asking = Later(server, "POST", "/v1/predict", ask)
        wait_until(lambda: server.service._batcher._scoring)
        go.set()
        answers = asking.result()[1]["answers"]
        assert writing.result()[1] == plain
    del engine.score
    assert between
    for one, other in zip(answers, wanted, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_a_text_that_nobody_waits_for_ends(writer: tuple[Running, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    server, _ = writer
    engine = server.service.engine
    rows: list[Any] = []
    left: list[int] = []
    generate = engine.generate

    def noted(found: Any, between_steps: Any) -> Any:
        rows.extend(found)

        def slow() -> None:
            between_steps()  # which tells the client of the first token
            wait_until(lambda: all(row.job.request.dropped for row in rows))
            left.append(len(rows[0].tokens))

        return generate(found, slow)

    monkeypatch.setattr(engine, "generate", noted)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    body = {"prompt": "prefix", "inputs": ["the film"], "max_new_tokens": 500, "stream": True, "template": False}
    if engine.kind == "decoder":
        body["max_new_tokens"] = 30
    connection.request("POST", "/v1/generate", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.close()
    connection.close()
    wait_until(lambda: server.service.waiting == 0, server.service.settings.timeout / 2)  # not by the limit on time
    assert len(rows) == 1 and left and len(rows[0].tokens) < 5


def test_an_unknown_prompt_of_a_stream_is_told_by_its_status(writer: tuple[Running, Path]) -> None:
    server, _ = writer
    for inputs, status in ((["  "], 422), ([], 422), (["a"] * 300, 422)):
        body = {"prompt": "prefix", "inputs": inputs, "stream": True}
        found, content, _ = server.ask("POST", "/v1/generate", body)
        assert found == status and set(content) == {"error"}


def test_a_sampler_draws_from_what_is_likely() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0, -1.0])
    chances = logits.softmax(-1)
    sampler = Sampler(1.0, 1.0, 0)
    drawn = torch.bincount(torch.tensor([sampler.draw(logits) for _ in range(4000)]), minlength=4) / 4000
    assert torch.allclose(drawn, chances, atol=0.03)
    sampler = Sampler(1.0, float(chances[1] + 0.01), 0)
    assert {sampler.draw(logits) for _ in range(200)} == {1, 2}
    sampler = Sampler(1e-6, 1.0, 0)
    assert {sampler.draw(logits) for _ in range(20)} == {1}
    assert Sampler(1.0, 1e-9, None).draw(logits) == 1
