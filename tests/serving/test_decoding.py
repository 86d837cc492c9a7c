"""Text from tokens, up to a stop string."""

from __future__ import annotations

import pytest

from softprompts.serving.decoding import StoppedText, TokenDecoder


class _Bytes:
    """A tokenizer whose tokens are bytes, so that a character may take several."""

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        return bytes(tokens).decode("utf-8", "replace")


def written(text: str, stops: list[str]) -> tuple[list[str], StoppedText]:
    made = StoppedText(TokenDecoder(_Bytes()), stops)
    return [*(made.add(byte) for byte in text.encode()), made.end()], made


def test_characters_are_told_whole() -> None:
    text = TokenDecoder(_Bytes())
    parts = [text.add(byte) for byte in "aé€😀b".encode()]
    assert "".join(parts) == "aé€😀b" and [part for part in parts if part] == ["a", "é", "€", "😀", "b"]
    assert text.add(final=True) == ""
    text.add("é".encode()[0])
    assert text.add(final=True) == "\ufffd"


def test_a_text_goes_on_from_what_stands_before_it() -> None:
    text = TokenDecoder(_Bytes(), "é".encode()[:1])
    assert (
        text.add("é".encode()[1]) == ""
    )  # half of a character of the input and half of one's own: no text of one's own


@pytest.mark.parametrize(
    ("text", "stops", "wanted"),
    [
        ("one two three", [" two"], "one"),
        ("one two three", ["three", "two"], "one "),
        ("aab", ["ab"], "a"),
        ("aaab", ["aab"], "a"),
        ("abcabd", ["abd"], "abc"),
        ("preis 5€ und", ["€"], "preis 5"),
        ("xyz", ["x"], ""),
        ("abab", ["abc"], "abab"),
        ("plain", [], "plain"),
    ],
)
def test_a_text_ends_before_its_first_stop_string(text: str, stops: list[str], wanted: str) -> None:
    parts, made = written(text, stops)
    assert "".join(parts) == wanted and made.stopped == (wanted != text)
    assert made.length == len(wanted)


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    parts, made = written("a\n\nb", ["\n\n\n"])
    assert parts == ["a", "", "", "\n\nb", ""] and made.starts == [0, 1, 2, 3]
    assert written("a\n\n", ["\n\n\n"])[0] == ["a", "", "", "\n\n"]
