import dataclasses
from importlib import resources
from pathlib import Path

import pytest
import slips as slips_of_papers
from published_page import page
from saved import Cli
from slips import KINDS, slips

from softprompts.bench.column_names import AVERAGE
from softprompts.bench.published import Printed, PublishedTable, published, published_tables, recomputed_average
from softprompts.bench.reprint import reprint
from softprompts.errors import SoftPromptError
from tests.bench.markup import check_latex, read

DOCS = Path(__file__).parents[2] / "docs"


def test_numbers_are_those_of_the_papers() -> None:
    best = published("multi-mask/table-1")
    assert best.value("SMoP (l=5, k=4)", "CB") == (94.6, 1.8)
    assert best.fact("LoRA (r=8)", "% trainable") == "0.3954"
    lengths = published("multi-mask/table-2")
    assert lengths.value("Multi-mask (l=20, k=2)", "BoolQ") == (78.85, 0.21)
    assert lengths.value("Prefix Tuning (l=10)", "MultiRC") == (79.5, None)
    assert lengths.fact("SMoP (l=5, k=20)", "total prompt length") == "100"
    assert published("multi-mask/table-4").value("SMoP (l=5)", "CB") == (74.1, None)
    assert published("superpos/table-1").value("Residual PT, dropout (T5v1.1-base)", "STS-B:rho") == (81.7, None)
    assert published("superpos/table-1").value("ATTEMPT, dropout (T5v1.1-base)", "QQP:F1") is None
    assert published("superpos/table-3").value("Residual PT (T5-base)", "CB:mean") == (79.2, None)
    assert published("selective-prefix/table-2").value("FT (BERT-base)", "CoNLL03") is None
    assert published("ept/datasets").value("SST-2", "train") == (66349.0, None)


def test_tables_have_the_shape_of_the_papers() -> None:
    shapes = {name: (len(published(name).rows), len(published(name).columns)) for name in published_tables()}
    assert shapes == {
        "multi-mask/table-1": (7, 7),
        "multi-mask/table-2": (25, 7),
        "multi-mask/table-3": (6, 7),
        "multi-mask/table-4": (6, 7),
        "multi-mask/datasets": (6, 3),
        "ept/datasets": (15, 3),
        "ept/prose": (9, 1),
        "selective-prefix/table-1": (9, 6),
        "selective-prefix/table-2": (6, 2),
        "selective-prefix/table-3": (4, 5),
        "selective-prefix/released": (3, 9),
        "superpos/table-1": (18, 19),
        "superpos/table-2": (7, 2),
        "superpos/table-3": (7, 21),
    }


def test_every_file_belongs_to_a_table_and_every_number_can_be_read() -> None:
    folder = resources.files("softprompts.bench").joinpath("published")
    files = {item.name for item in folder.iterdir()}
    assert files == {f"{name.replace('/', '_')}.csv" for name in published_tables()} | {"tables.yaml"}
    for name in published_tables():
        table = published(name)
        for row in table.rows:
            for column in table.columns:
                table.value(row, column)
                assert table.printed(row, column).printed_as in ("", "best", "second", "invalid labels")
            for fact in table.facts:
                assert table.fact(row, fact)
        for row in (*table.reference, *table.same_rows):
            assert row in table.rows
        assert table.companion is None or published(table.companion).rows == table.rows


def test_garbled_prints_are_corrected_and_kept() -> None:
    table, row = published("multi-mask/table-1"), "Multi-mask (l=10, k=4)"
    assert table.value(row, "RTE") == published("multi-mask/table-2").value(row, "RTE") == (77.26, 0.8)
    assert (table.printed(row, "RTE").value, table.printed(row, "RTE").std) == ("77.2", "6.0")


def test_unknown_names_have_a_near_one() -> None:
    with pytest.raises(
        SoftPromptError, match="no published table 'multimask/table-1'; did you mean 'multi-mask/table-1'"
    ):
        published("multimask/table-1")
    table = published("multi-mask/table-1")
    with pytest.raises(SoftPromptError, match="no row 'SMoP'.*"):
        table.value("SMoP", "CB")
    with pytest.raises(SoftPromptError, match=r"no column 'Multi'; did you mean 'MultiRC'"):
        table.value("LoRA (r=8)", "Multi")
    with pytest.raises(SoftPromptError, match="no fact"):
        table.fact("LoRA (r=8)", "masks")


def test_a_row_is_found_by_its_model() -> None:
    table = published("selective-prefix/table-1")
    assert table.row_of("PT-2", "BERT-large") == "PT-2 (BERT-large)"
    assert table.row_of("PT-2 ({model})", "BERT-large") == "PT-2 (BERT-large)"
    assert table.row_of("PT-2 (BERT-base)", "BERT-large") == "PT-2 (BERT-base)"
    assert published("multi-mask/table-1").row_of("LoRA (r=8)", "T5-base") == "LoRA (r=8)"
    # A model that the paper does not have has no numbers, and is no mistake.
    assert table.row_of("PT-2", "MiniLM") is None and table.row_of("PT-2 ({model})", "MiniLM") is None
    assert table.row_of("PT-2") is None
    with pytest.raises(SoftPromptError, match="no row 'PT-3'"):
        table.row_of("PT-3", "MiniLM")
    with pytest.raises(SoftPromptError, match="no row 'LoRA'"):  # in brackets is its rank, no model
        published("multi-mask/table-1").row_of("LoRA", "T5-base")


def with_average(printed: str, *scores: str) -> PublishedTable:
    cells = {("a", f"T{i}"): Printed(score) for i, score in enumerate(scores)} | {("a", AVERAGE): Printed(printed)}
    columns = tuple(column for _, column in cells)
    return PublishedTable("made/t", "made", "Table", "t", "s", columns, ("a",), cells, {})


@pytest.mark.parametrize(
    ("printed", "scores", "is_off"),
    [
        ("70.1", ("70.1", "70.1"), False),
        ("70.2", ("70.1", "70.1"), False),  # 70.149.. each and a mean of 70.15 is printed so
        ("70.3", ("70.1", "70.1"), True),
        ("70.15", ("70.10", "70.20"), False),
        ("70.16", ("70.10", "70.20"), False),
        ("70.17", ("70.10", "70.20"), True),
        ("70", ("70.4", "70.5"), False),
        ("70.5", ("-", "70.5"), False),
    ],
)
def test_an_average_is_off_beyond_all_rounding(printed: str, scores: tuple[str, ...], is_off: bool) -> None:
    assert bool(slips_of_papers._averages(with_average(printed, *scores))) == is_off


def test_two_metrics_of_a_task_count_once() -> None:
    table, row = published("superpos/table-1"), "SuperPos PT, no dropout (T5v1.1-base)"
    singles = [89.8, 81.0, 94.2, 56.5, 70.4, 62.0, 67.6, 74.0]
    pairs = [(81.9, 86.3), (88.6, 88.5), (89.7, 85.5), (72.9, 24.9), (78.3, 82.1)]
    mean = recomputed_average(table, row)
    assert mean is not None and mean[0] == pytest.approx((sum(singles) + sum(sum(pair) / 2 for pair in pairs)) / 13)
    assert recomputed_average(table, "ATTEMPT, dropout (T5v1.1-base)") is None


def found(kind: str) -> list[str]:
    return [f"{slip.where}: {slip.text}" for slip in slips() if slip.kind == kind]


def test_the_known_slips_are_found() -> None:
    averages = found("average")
    assert [text.split(":")[0] for text in averages] == [
        "Table 2, Fine-tuning",
        "Table 2, P-tuning (l=5)",
        "Table 2, Multi-mask (l=5, k=4)",
        "Table 2, Multi-mask (l=10, k=1)",
        "Table 2, Multi-mask (l=20, k=2)",
        "Table 2",
    ]
    assert averages[-1].endswith("recomputed ones Multi-mask (l=20, k=1) and Multi-mask (l=20, k=2)")
    assert "Table 1 and Table 3, PT-2 (BERT-base): WSC 65.4 and 63.5" in found("two tables")
    assert any("Fine-tuning: standard deviation of CB 1.8 and 0.8" in text for text in found("two tables"))
    assert any("65.2 is in bold, 3 rows are better" in text for text in found("marks"))
    assert any("1.27 %; 1.23 is the mean of the 6 tasks' own" in text for text in found("claim"))
    assert any("0.77 % and 0.58 points" in text for text in found("claim"))
    assert {slip.kind for slip in slips()} == set(KINDS)


def test_what_agrees_is_not_listed() -> None:
    assert not [slip for slip in slips() if slip.paper == "SuperPos"]
    assert not any("1.97" in text or "3.14" in text or "1.4%" in text for text in found("claim"))


def test_a_slip_made_on_purpose_is_found() -> None:
    table = published("superpos/table-3")
    row = "SuperPos PT (T5v1.1-base)"
    wrong = dataclasses.replace(table, cells={**table.cells, (row, AVERAGE): Printed("75.5")})
    assert [slip.where for slip in slips_of_papers._averages(wrong)] == [f"Table 3, {row}"]
    (again,) = slips_of_papers._two_tables(published("superpos/table-1"), wrong)
    assert again.text == "Average 75.8 and 75.5"


def test_every_table_can_be_drawn() -> None:
    for name in published_tables():
        table = reprint(published(name))
        assert len(table.lines) == len(published(name).rows)
        rows = check_latex(table.latex())
        assert len({len(row) for row in rows}) == 1 and len(rows) == len(table.lines) + 1
        assert len([row for row in read(table.html()).rows if len(row) > 1]) == len(table.lines) + 1


def test_numbers_are_drawn_as_they_are_printed() -> None:
    text = reprint(published("multi-mask/table-2")).markdown()
    assert "| 78.75<sub>0.1</sub> | 93.94<sub>2.4</sub> | 60.2<sub>3.3</sub> |" in text
    assert "**77.56**<sub>0.6</sub>" in text and "**77.56**<sub>1.3</sub>" in text
    assert "75.97! (75.28<sub>1.3</sub>)" in text


def test_page_is_up_to_date() -> None:
    assert (DOCS / "published.md").read_text(encoding="utf-8") == page()


def test_the_command_shows_one_table_or_all(cli: Cli) -> None:
    one = cli.fine("bench", "published", "multi-mask/table-4").out
    assert "Multi-mask Prefix Tuning, Table 4" in one and "44.06" in one and "EPT" not in one
    every = cli.fine("bench", "published").out
    assert [published(name).shows in every for name in published_tables()] == [True] * len(published_tables())
    assert every == "\n\n".join(reprint(published(name)).markdown() for name in published_tables())
