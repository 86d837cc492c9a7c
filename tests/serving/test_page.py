"""The playground in a real browser."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import CONTRASTS, Page

import softprompts as sp
from tests.serving.servers import METHODS, Running, running, save, service_of

NASTY = """<script>document.title = "got you"</script><img src=x onerror="document.title='got you'">"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder: Path = tmp_path_factory.mktemp("shown")
    pairs = [("prefix", "two"), ("prompt", "pair"), ("prompt", "tags"), ("lora", "score"), ("prompt", "choice")]
    for seed, (method, task) in enumerate(pairs):
        save("bert", folder, f"{method}-{task}", task, METHODS[method], seed)
    nasty = save("bert", folder, "nasty", "two", METHODS["prefix"])
    config = (nasty / "softprompt_config.json").read_text()
    assert '"negative"' in config
    (nasty / "softprompt_config.json").write_text(config.replace('"negative"', json.dumps(NASTY)))
    poor = save("bert", folder, "poor", "two", METHODS["prefix"])
    (poor / "softprompt.safetensors").write_bytes(b"x")
    service = service_of("bert", folder, strict=False)
    with running(service) as made:
        yield made


def address(server: Running) -> str:
    return f"http://127.0.0.1:{server.port}/"


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (360, "dark")])
def test_one_text_under_several_prompts(browser: Any, shown: Running, width: int, scheme: str) -> None:
    with Page(browser, address(shown), width=width, scheme=scheme) as opened:
        page = opened.page
        page.wait_for_selector("#prompts input")
        assert page.locator("#prompts input").count() == 6
        assert "poor is left out: " in page.inner_text("#prompts")
        page.get_by_label("Text", exact=True).fill("the film was good")
        page.get_by_role("button", name="All").click()
        page.get_by_label("Second text").fill("a bad plot")
        page.get_by_label("Choices").fill("good\nvery bad")
        page.get_by_role("button", name="Ask").click()
        page.wait_for_selector(".card")
        cards = {card.locator("h3").inner_text(): card for card in page.locator(".card").all()}
        assert len(cards) == 6
        body = {"prompt": "prefix-two", "inputs": ["the film was good"]}
        (answer,) = shown.post("/v1/predict", body)["answers"]
        card = cards["prefix-two"].inner_text()
        assert answer["label"] in card and f"{answer['probability']:.3f}" in card
        assert cards["prompt-tags"].locator("mark, .tags").count() and "good" in cards["prompt-choice"].inner_text()
        # What looks like markup is text.
        assert "<script>" in cards["nasty"].inner_text() and page.title() == "softprompts playground"
        assert page.locator("#results script, #results img").count() == 0
        page.get_by_label("Text", exact=True).fill(NASTY)
        page.get_by_label("Text", exact=True).press("Control+Enter")
        page.locator(".tags", has_text="<img").wait_for()
        assert page.title() == "softprompts playground" and page.locator("#results img").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") == width
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 40 and min(contrasts)[0] >= 4.5, min(contrasts)
        assert all(url.startswith((f"http://127.0.0.1:{shown.port}/", "data:")) for url in opened.asked)
        assert opened.said == []


def test_keys_alone_and_what_is_wrong(browser: Any, shown: Running) -> None:
    with Page(browser, address(shown)) as opened:
        page = opened.page
        page.wait_for_selector("#prompts input")
        for element in page.locator("textarea, input, select").all():
            assert element.evaluate("(element) => element.labels.length") == 1
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.get_by_role("button", name="None").focus()
        page.keyboard.press("Enter")
        assert page.get_by_role("button", name="Ask").is_disabled()
        page.get_by_role("checkbox", name="prefix-two").focus()
        page.keyboard.press("Space")
        page.get_by_role("button", name="Ask").focus()
        page.keyboard.press("Enter")
        page.locator("#problem:not(:empty)").wait_for()
        assert page.get_by_role("alert").inner_text() == "inputs[0]: an empty text cannot be labelled"
        before = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.get_by_role("button", name="Dark").click()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


def test_a_key_is_asked_for_on_the_page(browser: Any, films: Path) -> None:
    with running(service_of("bert", films, api_key="secret")) as server, Page(browser, address(server)) as opened:
        page = opened.page
        page.get_by_label("API key").fill("secret")
        page.get_by_role("button", name="Use it").click()
        page.wait_for_selector("#prompts input")
        page.get_by_label("Text", exact=True).fill("good")
        page.get_by_role("button", name="None").click()
        page.get_by_role("checkbox", name="films").check()
        page.get_by_role("button", name="Ask").click()
        page.wait_for_selector(".card .label")
        curl = page.inner_text("#curl")
        assert '-H "Authorization: Bearer $SOFTPROMPTS_API_KEY"' in curl and "secret" not in curl


def test_a_language_model_writes_on_the_page(browser: Any, tmp_path: Path) -> None:
    save("llama", tmp_path, "writer", "writes", sp.PrefixTuningConfig(num_virtual_tokens=2))
    with running(service_of("llama", tmp_path)) as server, Page(browser, address(server)) as opened:
        page = opened.page
        page.wait_for_selector("#prompts input")
        page.get_by_label("Text", exact=True).fill("film")
        page.get_by_label("Second text").fill("the film was good")
        page.get_by_label("Tokens").fill("3")
        page.get_by_label("Temperature").fill("0.5")
        page.get_by_role("button", name="Generate").click()
        page.wait_for_selector(".card .label")
        assert page.inner_text("#problem") == ""
        assert '"max_new_tokens":3,"temperature":0.5}' in page.inner_text("#curl")
        page.get_by_label("Temperature").fill("-1")
        asked = len(opened.asked)
        page.get_by_role("button", name="Generate").click()
        assert len(opened.asked) == asked and page.evaluate("document.activeElement.id") == "temperature"


def test_what_a_prompt_tells_what_was_cut_and_the_same_with_curl(browser: Any, tmp_path: Path) -> None:
    folder = save("bert", tmp_path, "tickets", "two", METHODS["prefix"])
    config = json.loads((folder / "softprompt_config.json").read_text())
    config["metadata"]["data"] = {"label": "queue", "text": "body"}
    (folder / "softprompt_config.json").write_text(json.dumps(config))
    with running(service_of("bert", tmp_path)) as server, Page(browser, address(server), width=390) as opened:
        page = opened.page
        page.wait_for_selector("#prompts input")
        assert "column “queue”: negative, positive" in page.inner_text("#prompts")
        assert not page.get_by_role("button", name="Generate").is_visible()
        page.get_by_label("Text", exact=True).fill("it's good")
        page.get_by_role("button", name="Ask").click()
        page.wait_for_selector(".card")
        assert page.locator(".cut").count() == 0 and "queue" in page.inner_text(".card")
        words = shlex.split(page.inner_text("#curl"))
        assert words[:2] == ["curl", f"{address(server)}v1/predict"] and words[2:5:2] == ["-H", "-d"]
        answers = server.post("/v1/predict", json.loads(words[5]))["answers"]
        assert answers[0]["label"] in page.inner_text(".card") and "cut" not in answers[0]
        page.get_by_label("Text", exact=True).fill("film " * 100)
        page.get_by_role("button", name="Ask").click()
        page.wait_for_selector(".card .cut")
        assert "Text cut: this prompt reads at most 24 tokens" in page.inner_text(".card")
        page.get_by_role("button", name="Copy as curl").click()
        page.locator("#copied:not(:empty)").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 390 and opened.said == []
