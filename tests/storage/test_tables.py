from softprompts.storage.tables import escape, markdown_table


def test_a_table_has_names_to_the_left_and_numbers_to_the_right() -> None:
    assert markdown_table(["name", "a", "b"], [["x", "1", "2"], ["y", "3", "4"]], "lr").splitlines() == [
        "| name | a | b |",
        "|---|---:|---:|",
        "| x | 1 | 2 |",
        "| y | 3 | 4 |",
    ]
    assert markdown_table(["", ""], []) == "|  |  |\n|---|---|"


def test_bars_end_no_cell() -> None:
    assert markdown_table(["a|b"], [[escape("c|d")], ["e|f"]]).splitlines() == [
        r"| a\|b |",
        "|---|",
        r"| c\|d |",
        r"| e\|f |",
    ]


def test_texts_are_no_markup() -> None:
    assert escape("*a* [b](c) <d> & `e`_f\n") == r"\*a\* \[b\](c) &lt;d> &amp; \`e\`\_f "
