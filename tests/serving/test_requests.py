"""What a server answers to requests that are wrong, too large, too many or too slow."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import softprompts as sp
from tests.serving.servers import Later, Running, held, running, save, service_of, wait_until

ROW = {"prompt": "films", "inputs": ["the film was good"]}


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("predict", {"prompt": "films", "inputs": ["good", " "]}, 422, "inputs[1]: an empty text cannot be labelled"),
        ("predict", {"prompt": "films", "inputs": [["a", "b"]]}, 422, "inputs[0]: 'films' reads single texts (text)"),
        ("predict", {"prompt": "pairs", "inputs": ["a"]}, 422, "inputs[0]: 'pairs' reads pairs (first, second), not 1"),
        ("predict", {"prompt": "films", "inputs": []}, 422, "inputs: List should have at least 1 item"),
        ("predict", {"prompt": "films", "inputs": [{"txt": "a"}]}, 422, "inputs[0].txt: Extra inputs"),
        (
            "predict",
            {"prompt": "films", "inputs": [{"text": 1}]},
            422,
            "inputs[0].text: Input should be a valid string",
        ),
        ("predict", {"prompt": "films", "inputs": ["a"] * 257}, 422, "257 rows; a request has at most 256"),
        ("predict", {"prompt": "films", "inputs": ["a" * 100_001]}, 422, "a text of 100,001 characters"),
        ("predict", {"prompt": "films", "inputs": [{"words": ["a"]}]}, 422, "inputs[0]: 'films' does not label words"),
        ("predict", {"prompt": "words", "inputs": [{"words": [" "]}]}, 422, "inputs[0]: an empty text"),
        ("predict", {"inputs": ["a"]}, 422, "say which of the 3 prompts"),
        ("predict", {"prompt": "other", "inputs": ["a"]}, 404, "there is no prompt 'other' loaded"),
        ("predict", {"prompt": "\x00\n", "inputs": ["a"]}, 404, "there is no prompt '\\x00\\n' loaded"),
        ("predict", {"prompt": "films", "inputs": ["\ud800"]}, 422, "a text has half a character"),
        ("predict", b"{", 422, "the body is not JSON"),
        ("predict", b"\xff", 422, "the body is not JSON"),
        ("predict", b"[" * 100_000, 422, "the body is not JSON"),
        ("generate", {"prompt": "films", "inputs": ["a"]}, 422, "the model is an encoder, which writes no text"),
        ("generate", b'{"inputs": ["a"], "temperature": NaN}', 422, "temperature"),
        ("generate", {"inputs": ["a"], "max_new_tokens": 10**30}, 422, "max_new_tokens"),
        (
            "score",
            {"inputs": [{"text": "a", "continuations": ["b"]}], "prompt": "films"},
            422,
            "the model is an encoder",
        ),
        ("score", {"inputs": [{"text": "a", "continuations": ["b"] * 101}], "prompt": "films"}, 422, "101 choices"),
        (
            "predict",
            {"prompt": "films", "inputs": [{"text": "a", "choices": ["b"] * 90}] * 3},
            422,
            "270 rows, each choice",
        ),
        ("nothing", {}, 404, "Not Found"),
    ],
)
def test_a_wrong_request_is_told_in_one_line(
    films: Path, shared: Running, path: str, body: Any, status: int, error: str
) -> None:
    found, content, _ = shared.ask("POST", f"/v1/{path}", body)
    assert found == status and set(content) == {"error"}, content
    assert content["error"].startswith(error) and "\n" not in content["error"]
    assert "Traceback" not in content["error"] and str(films) not in content["error"]
    assert shared.post("/v1/predict", ROW)["answers"][0]["prompt"] == "films"


@pytest.fixture(scope="module")
def shared(films: Path) -> Iterator[Running]:
    with running(service_of("bert", films)) as made:
        yield made


def test_long_rows_are_cut_and_it_is_told(shared: Running) -> None:
    answer = shared.post("/v1/predict", {"prompt": "films", "inputs": ["good", "film " * 100]})
    assert answer["cut"] == 1 and [row.get("cut") for row in answer["answers"]] == [None, True]


def test_a_word_that_no_token_stands_for_has_a_tag_too(shared: Running) -> None:
    (answer,) = shared.post("/v1/predict", {"prompt": "words", "inputs": [{"words": ["\u200b", "film"]}]})["answers"]
    assert len(answer["tags"]) == 2


def test_other_methods_and_the_schema(shared: Running) -> None:
    status, content, headers = shared.ask("GET", "/v1/predict")
    assert status == 405 and content == {"error": "Method Not Allowed"} and headers["allow"] == "POST"
    status, schema, _ = shared.ask("GET", "/openapi.json")
    assert status == 200 and {"/v1/predict", "/v1/prompts/{name}", "/v1/generate"} <= set(schema["paths"])
    for operation in schema["paths"]["/v1/predict"].values():
        assert {"401", "413", "422", "429", "504"} <= set(operation["responses"])
        problem = operation["responses"]["422"]["content"]["application/json"]["schema"]
        assert problem == {"$ref": "#/components/schemas/Problem"}
    example = schema["components"]["schemas"]["PredictRequest"]["examples"][0]
    assert set(example) == {"prompt", "inputs"}


def test_a_body_has_a_limit_with_and_without_a_length(films: Path) -> None:
    with running(service_of("bert", films, max_body=1000)) as server:
        assert server.ask("POST", "/v1/predict", ROW)[0] == 200
        large = json.dumps({"prompt": "films", "inputs": ["a" * 2000]}).encode()
        for body, more in ((large, {}), (iter([large[:900], large[900:]]), {"encode_chunked": True})):
            headers = {"Transfer-Encoding": "chunked"} if more else {}
            status, content, _ = server.ask("POST", "/v1/predict", body, headers, **more)
            assert (status, content) == (413, {"error": "the body has more than 1,000 bytes"})
        # One that would never end is not waited for.
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            client.sendall(b"400\r\n" + b"a" * 1024 + b"\r\n")
            assert b" 413 " in client.recv(1000)


def test_a_body_that_does_not_come_is_given_up(films: Path) -> None:
    with (
        running(service_of("bert", films, timeout=0.3)) as server,
        socket.create_connection(("127.0.0.1", server.port), 30) as client,
    ):
        client.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        assert b" 408 " in client.recv(1000)


def test_a_key_is_asked_for(films: Path) -> None:
    with running(service_of("bert", films, api_key="söcret")) as server:
        key = "söcret".encode().decode("latin-1")
        wrong = ({"Authorization": "Bearer wrong"}, {"Authorization": key}, {"X-API-Key": "x"})
        for headers in ({}, *wrong, {"Host": "x/healthz?"}):
            for method, path in (("GET", "/v1/prompts"), ("POST", "/v1/predict"), ("GET", "/metrics"), ("GET", "/x")):
                status, content, found = server.ask(method, path, ROW, headers)
                assert status == 401 and "API key" in content["error"] and found["www-authenticate"] == "Bearer"
        for headers in ({"Authorization": f"Bearer {key}"}, {"X-API-Key": key}):
            assert server.ask("POST", "/v1/predict", ROW, headers)[0] == 200
        for path in ("/", "/playground.js", "/healthz", "/readyz", "/docs", "/openapi.json"):
            assert server.ask("GET", path)[0] == 200
        document = server.ask("GET", "/openapi.json")[1]
        schemes = document["components"]["securitySchemes"]
        assert schemes == {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        for path, operations in document["paths"].items():
            for operation in operations.values():
                needed = None if path in ("/healthz", "/readyz") else [{"bearer": []}, {"header": []}]
                assert operation.get("security") == needed


def test_too_many_rows_are_refused(films: Path) -> None:
    with running(service_of("bert", films, queue=3)) as server:
        with held(server.service):
            first = Later(server, "POST", "/v1/predict", {"prompt": "films", "inputs": ["a", "b"]})
            wait_until(lambda: server.service.waiting == 2)
            status, content, headers = server.ask("POST", "/v1/predict", {"prompt": "films", "inputs": ["a", "b"]})
            assert status == 429 and headers["retry-after"] == "1" and content["error"].startswith("2 rows wait")
        assert first.result()[0] == 200
        # A single request may be larger than the queue: it could never be served else.
        assert server.ask("POST", "/v1/predict", {"prompt": "films", "inputs": ["a"] * 5})[0] == 200


def test_a_request_that_takes_too_long_is_given_up_and_does_not_run(films: Path) -> None:
    with running(service_of("bert", films, timeout=0.2)) as server:
        with held(server.service):
            status, content, _ = server.ask("POST", "/v1/predict", ROW)
            assert (status, content) == (504, {"error": "no answer within 0.2 seconds"})
        wait_until(lambda: server.service.waiting == 0)
        assert server.service.metrics.registry.get_sample_value("softprompts_batch_rows_count") == 0


def test_rows_of_a_client_that_hangs_up_do_not_run(server: Running) -> None:
    with held(server.service):
        body = json.dumps(ROW).encode()
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            client.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            wait_until(lambda: server.service.waiting == 1)
        wait_until(lambda: server.service.requests == 0)
    wait_until(lambda: server.service.waiting == 0)
    assert server.service.metrics.registry.get_sample_value("softprompts_batch_rows_count") == 0
    assert 'status="499"' in server.ask("GET", "/metrics")[1].decode()


def test_a_server_that_goes_down_finishes_what_is_under_way_and_takes_no_more(films: Path) -> None:
    with running(service_of("bert", films)) as server:
        with held(server.service):
            first = Later(server, "POST", "/v1/predict", ROW)
            wait_until(lambda: server.service.waiting == 1)
            server.server.handle_exit(15, None)
            status, content, headers = server.ask("POST", "/v1/predict", ROW)
            assert (status, content) == (503, {"error": "the server is going down"})
            assert headers["connection"] == "close"
            assert server.ask("GET", "/readyz")[0] == 503 and server.ask("GET", "/healthz")[0] == 200
        status, content, _ = first.result()
        assert status == 200 and content["answers"][0]["label"]
        server.thread.join(60)
        assert not server.thread.is_alive()


def test_metrics_count(server: Running) -> None:
    for _ in range(3):
        server.post("/v1/predict", ROW)
    server.ask("POST", "/v1/predict", b"{")
    server.ask("GET", "/no/such/path/at/all")
    status, content, headers = server.ask("GET", "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain")
    lines = content.decode().splitlines()
    assert 'softprompts_requests_total{endpoint="/v1/predict",status="200"} 3.0' in lines
    assert 'softprompts_requests_total{endpoint="/v1/predict",status="422"} 1.0' in lines
    assert 'softprompts_requests_total{endpoint="other",status="404"} 1.0' in lines
    assert "softprompts_batch_rows_sum 3.0" in lines and "softprompts_prompts 3.0" in lines
    assert "softprompts_queue_rows 0.0" in lines


def test_a_prompt_of_another_model_is_refused(films: Path, tmp_path: Path) -> None:
    save("t5", tmp_path, "foreign", "two", sp.PrefixTuningConfig(num_virtual_tokens=2))
    save("bert", tmp_path, "own", "two", sp.PrefixTuningConfig(num_virtual_tokens=2))
    service = service_of("bert", tmp_path, strict=False)
    assert list(service.prompts) == ["own"] and "another backbone" in service.left_out["foreign"]
    with pytest.raises(sp.SoftPromptError, match="prompt 'foreign': .*another backbone"):
        service.load_all(strict=True)
    with running(service) as server:
        status, content, _ = server.ask("PUT", "/v1/prompts/foreign")
        assert status == 409 and "another backbone" in content["error"]
        listed = server.ask("GET", "/v1/prompts")[1]["prompts"]
        assert [(one["name"], one["loaded"]) for one in listed] == [("own", True), ("foreign", False)]
