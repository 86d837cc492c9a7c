"""Pages that show the API, and bodies of other types."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from browsing import Page

from tests.serving.servers import Running, running, service_of


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_viewers_of_the_api_load_nothing_from_elsewhere(films: Path, path: str) -> None:
    with running(service_of("bert", films, api_key="secret")) as server:  # they need no key; what they ask does
        status, page, _ = server.ask("GET", path)
        assert status == 200
        loaded = re.findall(r"""(?:src|href)=["']([^"']+)""", page.decode())
        assert len(loaded) >= 2 and all(each.startswith("/docs-files/") for each in loaded), loaded
        for each in loaded:
            status, content, _ = server.ask("GET", each)
            assert status == 200 and len(content) > 1000, each
        assert not re.search(r"https?://", page.decode())
        assert server.ask("GET", "/docs-files/../v1/prompts")[0] in (401, 404)


def test_the_viewer_works_in_a_browser(browser: Any, server: Running) -> None:
    address = f"http://127.0.0.1:{server.port}/"
    with Page(browser, f"{address}docs") as opened:
        opened.page.wait_for_selector('[data-path="/v1/chat/completions"]')
        assert all(url.startswith((address, "data:")) for url in opened.asked), opened.asked


@pytest.mark.parametrize("path", ["predict", "score", "generate", "completions", "chat/completions"])
def test_a_body_that_is_not_said_to_be_json_is_refused(server: Running, path: str) -> None:
    body = b'{"prompt": "films", "inputs": ["good"]}'
    for media_type, said in (("", "which is missing"), ("text/plain", "not 'text/plain'")):
        status, content, _ = server.ask("POST", f"/v1/{path}", body, {"Content-Type": media_type})
        message = content["error"] if isinstance(content["error"], str) else content["error"]["message"]
        assert status == 415 and message == f"send JSON with the header 'Content-Type: application/json', {said}"
    status, content, _ = server.ask("POST", "/v1/predict", body, {"Content-Type": "application/json; charset=utf-8"})
    assert status == 200, content
