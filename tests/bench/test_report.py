"""A bench's page in a real browser: headless Chromium, without a network."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browsing import CONTRASTS, Page

from softprompts.bench import figures, report
from softprompts.bench.recipe_file import load_recipe
from softprompts.bench.report import write_report
from softprompts.errors import SoftPromptError
from softprompts.plotting import NO_MATPLOTLIB
from tests.bench.findings_on_disk import findings_of, recipe_of

NASTY = """<script>document.title = "got you"</script> <b class="got">& "it's" $x$ {{ 7 * 7 }}"""


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bench of six methods, three tasks and three seeds, with a few runs missing."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("quick")
    findings = findings_of(
        folder / "runs",
        recipe_of(),
        ended=lambda cell: not (cell.task == "Tweets" and cell.row.method == "superpos"),
        failed={"0123456789ab": "SoftPromptError: out of memory <at> step 3"},
    )
    return write_report(findings, folder / "report")[0]


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_opens_offline_without_complaint_and_is_readable(browser: Any, quick: Path, scheme: str, width: int) -> None:
    with Page(browser, quick, width=width, scheme=scheme) as opened:
        assert opened.said == [] and opened.asked == [quick.as_uri()]
        assert (
            opened.page.locator("figure svg").count()
            == opened.page.locator("figure [role=img][aria-label]").count()
            == 3
        )
        opened.page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
        # The page does not scroll sideways; what is too wide does, in a box.
        assert opened.page.evaluate("document.documentElement.scrollWidth") == width
        contrasts = opened.page.evaluate(CONTRASTS)
        assert len(contrasts) > 300
        assert min(contrasts)[0] >= 4.5, min(contrasts)
        background = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}[scheme]


def test_on_a_phone_wide_parts_scroll_and_text_in_figures_stays_legible(browser: Any, quick: Path) -> None:
    with Page(browser, quick, width=360) as opened:
        boxes = opened.page.evaluate(
            "[...document.querySelectorAll('.scroll')].map(box => [box.clientWidth, box.scrollWidth, box.tabIndex])"
        )
        assert len(boxes) >= 6 and all(seen <= 360 and tab == 0 for seen, _, tab in boxes)
        assert sum(whole > seen for seen, whole, _ in boxes) >= 4
        sizes = opened.page.evaluate(
            "[...document.querySelectorAll('figure svg text')].map(text => text.getBoundingClientRect().height)"
        )
        assert min(sizes) >= 8


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_switch_turns_colours_round(browser: Any, quick: Path, scheme: str) -> None:
    other = {"light": "dark", "dark": "light"}[scheme]
    ink = "getComputedStyle(document.querySelector('figure svg text')).fill"
    with Page(browser, quick, scheme=scheme) as opened:
        button, before = opened.page.locator("#theme"), opened.page.evaluate(ink)
        assert button.text_content() == f"{other.capitalize()} colours"
        button.focus()
        opened.page.keyboard.press("Enter")
        assert button.text_content() == f"{scheme.capitalize()} colours"
        assert opened.page.evaluate(ink) != before
        assert min(opened.page.evaluate(CONTRASTS))[0] >= 4.5
        button.click()
        assert opened.page.evaluate(ink) == before and opened.said == []


def test_tables_are_sorted_by_their_heads(browser: Any, quick: Path) -> None:
    rows, cell = "#tables tbody tr:not(.group) > th", "#tables tbody tr:not(.group) > td:nth-child({})"
    with Page(browser, quick) as opened:
        original = opened.names(rows)
        head = opened.page.locator("#tables thead th").filter(has_text="Tweets")
        heads = opened.page.locator("#tables thead th").all_text_contents()
        place = 1 + next(place for place, text in enumerate(heads) if text.startswith("Tweets"))

        def values() -> list[str]:
            found = opened.page.locator(cell.format(place)).all()
            return [one.get_attribute("data-value") for one in found]

        best_first = sorted(filter(None, values()), key=float, reverse=True)
        assert len(best_first) == 5 and "" in values()  # the runs that are missing
        assert head.get_attribute("aria-sort") is None
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "descending" and values() == [*best_first, ""]
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == "ascending" and values() == [*reversed(best_first), ""]
        head.locator("button").press("Space")
        assert head.get_attribute("aria-sort") is None and opened.names(rows) == original
        name = opened.page.locator("#tables thead th").first
        name.locator("button").click()
        assert name.get_attribute("aria-sort") == "ascending" and opened.names(rows) == sorted(original)
        # One table's order is not another's.
        seeds = opened.page.locator("#runs thead th").filter(has_text="seed")
        assert seeds.get_attribute("aria-sort") is None
        assert all(opened.names("thead button")) or opened.page.locator("thead button:not([aria-label])").count()
        assert opened.page.evaluate(
            "[...document.querySelectorAll('thead button')].every(b => b.textContent.trim() || b.ariaLabel)"
        )


def test_groups_are_sorted_within_themselves(browser: Any, tmp_path: Path) -> None:
    models = {"First": "all-minilm-l6-v2", "Second": "all-minilm-l6-v2"}
    findings = findings_of(tmp_path / "runs", recipe_of(models=models, figures=[]))
    path = write_report(findings, tmp_path / "report")[0]
    with Page(browser, path) as opened:
        opened.page.locator("#tables thead th").filter(has_text="Films").locator("button").click()
        names = opened.names("#tables tbody tr > th:first-child")
        labels = [row.label for row in findings.recipe.rows]
        assert names == ["First", *reversed(labels), "Second", *reversed(labels)]  # made-up scores rise with the row


def test_costs_are_sorted_from_the_lowest(browser: Any, tmp_path: Path) -> None:
    recipe = recipe_of(measure="cost", figures=[{"kind": "cost"}])
    path = write_report(findings_of(tmp_path / "runs", recipe), tmp_path / "report", figures=[])[0]
    with Page(browser, path) as opened:
        head = opened.page.locator("#tables table").first.locator("thead th").filter(has_text="Films")
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "ascending" and opened.said == []
        assert "s/100 steps" in opened.page.locator("#runs thead").text_content()
        assert opened.page.locator("#significance").count() == 0


def test_on_paper_it_is_light_and_without_buttons(browser: Any, quick: Path) -> None:
    with Page(browser, quick, scheme="dark") as opened:
        opened.page.emulate_media(media="print")
        assert opened.page.evaluate("getComputedStyle(document.body).color") == "rgb(31, 35, 40)"
        assert not opened.page.locator("nav").is_visible() and not opened.page.locator("#theme").is_visible()
        assert opened.page.evaluate(
            "[...document.querySelectorAll('.scroll')].every(box => getComputedStyle(box).overflowX === 'visible')"
        )


def test_whatever_users_write_is_text(browser: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [{"name": NASTY, "method": "lora", "group": NASTY}, {"name": "_other", "method": "bitfit", "baseline": True}]
    figures_wanted = [{"kind": "curves", "title": NASTY}, {"kind": "parameters"}, {"kind": "cost"}]
    recipe = recipe_of(
        title=NASTY, about=NASTY, models={NASTY: "all-minilm-l6-v2"}, tasks={NASTY: "reviews"}, rows=rows,
        seeds=[0, 1], figures=figures_wanted,
    )  # fmt: skip
    findings = findings_of(tmp_path / "runs", recipe, failed={NASTY: NASTY})
    path = write_report(findings, tmp_path / "report")[0]
    with Page(browser, path) as opened:
        assert opened.said == [] and opened.asked == [path.as_uri()]
        # The page's title is put in order by the browser, as every title is.
        assert opened.page.title() == " ".join(NASTY.split())
        assert opened.page.locator(".got").count() == 0 and opened.page.locator("script").count() == 1
        assert (
            opened.page.locator("h1").text_content() == NASTY and "49" not in opened.page.locator("h1").text_content()
        )
        assert NASTY in opened.names("#runs td.words")
        assert opened.page.locator("svg text", has_text='& "it').count() >= 1


def test_what_a_page_may_load_is_nothing(browser: Any, quick: Path, tmp_path: Path) -> None:
    """The policy holds: of elements that are put in, none is loaded and no script is run."""
    text = quick.read_text().replace(
        "</main>", '<script>document.title = "x"</script><img src="https://a.test/"></main>'
    )
    (tmp_path / "changed.html").write_text(text)
    with Page(browser, tmp_path / "changed.html") as opened:
        assert opened.page.title() != "x" and len(opened.said) == 2
        assert all("Content Security Policy" in one for one in opened.said)
        assert opened.asked == [
            (tmp_path / "changed.html").as_uri(),
            "https://a.test/",
            "csp",
        ]  # refused, not unreached


class Attributes(HTMLParser):
    """All attributes and tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [(tag, name, value or "") for name, value in attrs]


def test_everything_is_inside_and_every_link_leads_somewhere(quick: Path) -> None:
    found = Attributes(quick.read_text()).found
    for tag, name, value in found:
        if name in ("src", "href", "xlink:href"):
            assert not re.match(r"(?:[a-z]+:)?//", value), (tag, name, value)
            if value.startswith("#"):
                assert ("id", value[1:]) in {(name, one) for _, name, one in found}
            elif not value.startswith("data:"):
                assert (quick.parent / value).exists(), value
    ids = [value for _, name, value in found if name == "id"]
    assert len(ids) == len(set(ids))


def test_what_the_page_says(quick: Path) -> None:
    text = quick.read_text()
    assert "51 of 54 runs done" in text and "1 failed" in text and "2 without a result" in text
    assert "out of memory &lt;at&gt; step 3" in text
    assert "softprompts bench run quick --scale tiny" in text
    assert "softprompts 0.1.0, torch 2.13.0+cpu, transformers 5.23.0" in text
    assert "Scores are on test rows" in text and "No published numbers belong to this recipe" in text
    assert "Up to 6 runs shared each pass" in text


def test_the_header_tells_what_ran_and_not_what_the_paper_did(tmp_path: Path) -> None:
    recipe = load_recipe("multi-mask/table-1", scale="small").model_copy(update={"figures": ()})
    text = write_report(findings_of(tmp_path / "runs", recipe), tmp_path / "report")[0].read_text()
    head = text.partition("<main>")[0]
    assert "Here, at scale small: 7 rows, 2 tasks, 3 seeds, on MiniLM." in head
    assert '<span class="soft">In the paper: </span>Six SuperGLUE tasks on T5-base' in head
    assert "max steps 150" in head and "epochs" not in head  # the paper's 50 epochs do not count where steps are given
    assert "learning rate by row (5 values)" in head and "backbone dropout off" in head
    assert "CB 800, 200, 400; SST-2 800, 200, 400" in head
    quick = write_report(findings_of(tmp_path / "own", recipe_of(figures=[])), tmp_path / "own")[0].read_text()
    assert "In the paper" not in quick and "epochs 10, batch size 32, optimizer adamw, inputs of 256 tokens" in quick


def test_on_a_phone_names_stay_while_the_table_scrolls(browser: Any, quick: Path) -> None:
    with Page(browser, quick, width=390) as opened:
        lefts = opened.page.evaluate(
            """() => {
              const box = document.querySelector("#tables .scroll");
              box.scrollLeft = 150;
              const parts = [box, ...box.querySelectorAll("tr > th:first-child")];
              return parts.map((part) => part.getBoundingClientRect().left);
            }"""
        )
        assert len(lefts) == 8 and len(set(lefts)) == 1  # the head's first cell as well


def test_files_and_that_they_are_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    findings = findings_of(tmp_path / "runs", recipe_of(seeds=[0, 1]))
    written = write_report(findings, tmp_path / "report")
    names = [path.relative_to(tmp_path / "report").as_posix() for path in written]
    kinds = [f"figures/{name}.{end}" for name in ("curves", "parameters", "cost") for end in ("png", "svg", "csv")]
    assert names == ["report.html", *kinds]
    before = {path: path.read_bytes() for path in written}
    assert write_report(findings, tmp_path / "report") == written
    assert {path: path.read_bytes() for path in written} == before


def test_published_numbers_of_another_setting_are_told_apart(tmp_path: Path) -> None:
    rows = [{"name": "Fine-tuning", "method": "full", "published": "Fine-tuning"}, {"name": "LoRA", "method": "lora"}]
    tasks = {"BoolQ": "super_glue/boolq", "CB": "super_glue/cb"}
    changes = {"rows": rows, "tasks": tasks, "figures": [], "published": "multi-mask/table-1"}
    findings = findings_of(tmp_path / "runs", recipe_of(**changes))
    text = write_report(findings, tmp_path / "report")[0].read_text()
    assert "†" in text and "no difference to them says that one method is better" in text
    same = replace(findings, recipe=findings.recipe.model_copy(update={"same_setting": True}))
    text = write_report(same, tmp_path / "report")[0].read_text()
    assert "†" not in text and "of the same setting" in text


def test_a_bench_that_has_just_begun_has_a_page(browser: Any, tmp_path: Path) -> None:
    findings = findings_of(tmp_path / "runs", recipe_of(), ended=lambda cell: False)
    path = write_report(findings, tmp_path / "report")[0]
    with Page(browser, path, width=360) as opened:
        assert opened.said == [] and opened.page.evaluate("document.documentElement.scrollWidth") == 360
        text = opened.page.locator("body").text_content()
        assert "0 of 54 runs done" in text and "No run has ended yet" in text
        assert text.count("no run has a result yet") == 3


def test_without_matplotlib_there_are_tables_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (figures, report):
        monkeypatch.setattr(module, "have_matplotlib", lambda: False)
    findings = findings_of(tmp_path / "runs", recipe_of())
    written = write_report(findings, tmp_path / "report")
    assert [path.name for path in written] == ["report.html", "curves.csv", "parameters.csv", "cost.csv"]
    text = written[0].read_text()
    assert NO_MATPLOTLIB.replace("'", "&#39;") in text and "<svg" not in text and '<table class="results"' in text


def test_a_file_in_the_way_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "report").write_text("mine")
    with pytest.raises(SoftPromptError, match="is a file; name a folder for the report"):
        write_report(findings_of(tmp_path / "runs", recipe_of(seeds=[0])), tmp_path / "report", figures=[])
