"""Prompts that come and go while rows are answered, and names that lead nowhere else."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import softprompts as sp
from softprompts.serving.errors import RequestError
from softprompts.serving.prompt_store import PromptStore
from softprompts.storage.saved_prompt import CONFIG_FILE, TENSOR_FILE
from tests.serving.servers import Later, Running, held, running, save, service_of, wait_until

METHOD = sp.PrefixTuningConfig(num_virtual_tokens=2)
TEXT = "the film was good"


def label(server: Running, name: str) -> Any:
    return server.post("/v1/predict", {"prompt": name, "inputs": [TEXT]})["answers"][0]["probabilities"]


def test_prompts_are_loaded_again_and_forgotten(tmp_path: Path) -> None:
    save("bert", tmp_path, "a", "two", METHOD, 0)
    with running(service_of("bert", tmp_path)) as server:
        first = label(server, "a")
        assert server.ask("PUT", "/v1/prompts/a")[1] == {"name": "a", "status": "unchanged"}
        assert server.ask("PUT", "/v1/prompts/b")[0] == 404
        save("bert", tmp_path, "b", "two", METHOD, 1)
        assert server.ask("POST", "/v1/prompts/b")[1] == {"name": "b", "status": "loaded"}
        second = label(server, "b")
        assert second != first
        # Other numbers under the same name.
        shutil.rmtree(tmp_path / "a")
        shutil.copytree(tmp_path / "b", tmp_path / "a")
        assert label(server, "a") == first
        assert server.ask("PUT", "/v1/prompts/a")[1] == {"name": "a", "status": "reloaded"}
        assert label(server, "a") == pytest.approx(second)
        assert server.ask("DELETE", "/v1/prompts/a")[1] == {"name": "a", "status": "unloaded"}
        assert server.ask("DELETE", "/v1/prompts/a")[0] == 404
        assert server.ask("POST", "/v1/predict", {"prompt": "a", "inputs": [TEXT]})[0] == 404
        assert [one["name"] for one in server.ask("GET", "/v1/prompts")[1]["prompts"]] == ["b"]
        told = server.ask("GET", "/v1/prompts/b")[1]
        assert told["method"] == "prefix-tuning" and told["labels"] == ["negative", "positive"]
        (model,) = server.service.engine.models.values()
        wait_until(lambda: len(model.prompts) == 1)  # the others are out of memory too


def test_rows_under_way_end_with_the_prompt_they_began_with(tmp_path: Path) -> None:
    save("bert", tmp_path, "a", "two", METHOD, 0)
    save("bert", tmp_path / "new", "a", "two", METHOD, 1)
    with running(service_of("bert", tmp_path)) as server:
        before = label(server, "a")
        with held(server.service):
            early = Later(server, "POST", "/v1/predict", {"prompt": "a", "inputs": [TEXT]})
            wait_until(lambda: server.service.waiting == 1 and not server.service.to_encode)
            for file in (TENSOR_FILE, CONFIG_FILE):
                os.replace(tmp_path / "new" / "a" / file, tmp_path / "a" / file)
            change = Later(server, "PUT", "/v1/prompts/a")
            wait_until(lambda: server.service._batcher._calls)
        assert change.result()[1]["status"] == "reloaded"
        after = label(server, "a")
        assert early.result()[1]["answers"][0]["probabilities"] == pytest.approx(before) != pytest.approx(after)
        with held(server.service):
            early = Later(server, "POST", "/v1/predict", {"prompt": "a", "inputs": [TEXT]})
            wait_until(lambda: server.service.waiting == 1)
            assert server.ask("DELETE", "/v1/prompts/a")[0] == 200
        assert early.result()[1]["answers"][0]["probabilities"] == pytest.approx(after)
        (model,) = server.service.engine.models.values()
        wait_until(lambda: not len(model.prompts))


@pytest.mark.parametrize("damage", ["cut", "config", "form", "missing", "pickle"])
def test_a_damaged_prompt_is_left_out_and_the_old_one_stays(tmp_path: Path, damage: str) -> None:
    good = save("bert", tmp_path, "good", "two", METHOD)
    poor = save("bert", tmp_path, "poor", "two", METHOD)
    tensors, config = poor / TENSOR_FILE, poor / CONFIG_FILE
    if damage == "cut":
        tensors.write_bytes(tensors.read_bytes()[:-10])
    elif damage == "config":
        config.write_text("{")
    elif damage == "form":
        config.write_text(config.read_text().replace('"kind": "classification"', '"kind": ["x"]'))
    else:
        tensors.unlink()
        if damage == "pickle":
            (poor / "softprompt.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(sp.SoftPromptError, match="prompt 'poor': "):
        service_of("bert", tmp_path)
    service = service_of("bert", tmp_path, strict=False)
    assert list(service.prompts) == ["good"] and list(service.left_out) == ["poor"]
    with running(service) as server:
        before = label(server, "good")
        for file in (TENSOR_FILE, CONFIG_FILE):
            if (poor / file).exists():
                shutil.copy(poor / file, good / file)
            else:
                (good / file).unlink()
        status, content, _ = server.ask("PUT", "/v1/prompts/good")
        assert status == 409 and "\n" not in content["error"] and str(tmp_path) not in content["error"]
        assert label(server, "good") == before


# --- names ------------------------------------------------------------------------------------------------------------

OPENED: list[str] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and OPENED is not None and isinstance(arguments[0], str | bytes):
        OPENED.append(os.fsdecode(arguments[0]))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server whose folder has secrets beside it, and links to them in it."""
    root = tmp_path_factory.mktemp("guarded")
    folder = root / "prompts"
    save("bert", folder, "a", "two", METHOD)
    secret = save("bert", root, "secret", "two", METHOD)
    (folder / "link").symlink_to(secret)
    (folder / "ring").symlink_to(folder / "ring")
    (folder / "here").symlink_to(folder)
    (folder / "fine").symlink_to(folder / "a")
    for name, file in (("config", CONFIG_FILE), ("tensors", TENSOR_FILE)):
        shutil.copytree(folder / "a", folder / name)
        (folder / name / file).unlink()
        (folder / name / file).symlink_to(secret / file)
    (folder / "run").mkdir()
    (folder / "run" / "prompt").symlink_to(secret)
    (folder / "file").write_text("x")
    sys.addaudithook(_watch)
    service = service_of("bert", folder, strict=False)
    assert set(service.prompts) == {"a", "fine"}
    with running(service) as server:
        yield server, folder, secret


def opened_outside(folder: Path, function: Any) -> list[str]:
    """Files beside the folder that were opened meanwhile."""
    global OPENED
    OPENED = []
    try:
        function()
        real = [os.path.realpath(path) for path in OPENED]
    finally:
        OPENED = None
    return [path for path in real if path.startswith(str(folder.parent) + os.sep) and not path.startswith(str(folder))]


NAMES = ["a", "link", "ring", "here", "config", "tensors", "run", "file", "secret", "prompts", ".", "..", "fine"]
PARTS = st.sampled_from([*NAMES, "/", "\\", "%2e%2e", "%2f", "\x00", "\n", "~", "C:", "//", "..;", "．．", "a.", ""])
ANY_NAME = st.one_of(st.lists(PARTS, min_size=1, max_size=6).map("".join), st.text(max_size=30))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=ANY_NAME)
def test_no_name_leads_out_of_the_folder(guarded: Any, name: str) -> None:
    server, folder, _ = guarded
    store: PromptStore = server.service.store

    def find() -> None:
        with contextlib.suppress(RequestError):
            found = store.folder(name)
            assert found.is_relative_to(folder) and (found / CONFIG_FILE).is_file()

    assert opened_outside(folder, find) == []

    def ask() -> None:
        quoted = urllib.parse.quote(name.encode("utf-8", "surrogatepass"), safe="")
        for path in (quoted, urllib.parse.quote(quoted, safe="")):
            status, content, _ = server.ask("PUT", f"/v1/prompts/{path}")
            assert status in (200, 404, 405, 409, 422), content
            assert status != 200 or content["name"] in ("a", "fine")

    assert opened_outside(folder, ask) == []


def test_the_watch_sees_what_is_opened(guarded: Any) -> None:
    _, folder, secret = guarded
    assert opened_outside(folder, lambda: (secret / CONFIG_FILE).read_text()) == [str(secret / CONFIG_FILE)]


@pytest.mark.parametrize("name", ["link", "config", "tensors", "run"])
def test_links_that_lead_out_are_refused(guarded: Any, name: str) -> None:
    server = guarded[0]
    with pytest.raises(RequestError, match="leads out of the prompts folder by a link") as refused:
        server.service.store.folder(name)
    assert refused.value.status == 409
    assert server.ask("PUT", f"/v1/prompts/{name}")[0] == 409
    for other in ("here", "file", "nothing"):
        with pytest.raises(RequestError) as refused:
            server.service.store.folder(other)
        assert refused.value.status == 404


def test_a_folder_that_is_none_or_a_single_prompt(tmp_path: Path) -> None:
    with pytest.raises(sp.SoftPromptError, match="no such folder"):
        PromptStore(tmp_path / "x")
    with pytest.raises(sp.SoftPromptError, match="is itself a saved prompt"):
        PromptStore(save("bert", tmp_path, "a", "two", METHOD))
