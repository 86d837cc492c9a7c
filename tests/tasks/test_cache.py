from __future__ import annotations

import errno
import gc
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
from tokenizers import NormalizedString, PreTokenizedString, Tokenizer, models, normalizers, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from softprompts.errors import SoftPromptError
from softprompts.tasks import cache
from softprompts.tasks.cache import cached, code_fingerprint, key_name, tokenizer_fingerprint, trim
from softprompts.tasks.kinds.encoded import Encoded

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_cache_of_rows() -> None:
    """Here, there is one."""


FEW = Encoded([{"input_ids": [5, 6, 70000], "label": 1}, {"input_ids": [7], "label": 0}], 3, [0, 0], {"text": 3})


class Maker:
    def __init__(self, made: Any = FEW) -> None:
        self.made, self.calls = made, 0

    def __call__(self) -> Any:
        self.calls += 1
        return self.made


def same(left: Any, right: Any) -> bool:
    """Equal in value and type, all the way down; not-a-number equals itself, and 0.0 is not -0.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    if isinstance(left, float):
        return repr(left) == repr(right)
    return left == right


def round_trip(features: list[dict[str, Any]], folder: Path, truncated: int = 0, owners: Any = None) -> None:
    made = Encoded(features, truncated, owners, {"text": truncated} if truncated else {})
    key = {"case": repr([features, truncated]), "number": len(list(folder.iterdir()))}
    assert cached(key, lambda: made, folder=folder) is made
    maker = Maker()
    again = cached(key, maker, folder=folder)
    assert maker.calls == 0 and type(again) is Encoded
    assert same(again.features, features) and same(again.truncated, truncated) and same(again.owners, owners)
    assert same(again.cut, made.cut)


def column(chance: random.Random) -> Callable[[], Any]:
    least, most = chance.choice([(0, 1), (-100, 30), (-5, 255), (0, 65535), (-1, 70000), (-(2**63), 2**63 - 1)])

    def number() -> int:
        return chance.choice([least, most, chance.randint(least, most)])

    def numbers() -> list[int]:
        return [number() for _ in range(chance.randrange(6))]

    texts = ["", "a", "Ünïcode ✓ 𝛼", "line\nbreak \0", "\ud800 alone", "x" * 300]
    floats = [0.0, -0.0, 0.1, math.pi, 1e300, math.inf, -math.inf, math.nan]
    return chance.choice(
        [
            number,
            numbers,
            lambda: [numbers() for _ in range(chance.randrange(4))],
            lambda: [{"input_ids": numbers(), "token_type_ids": numbers()} for _ in range(chance.randrange(4))],
            lambda: chance.choice(floats),
            lambda: chance.choice(texts),
            lambda: chance.choice([True, False, None, 1, 1.0, "1", [], [1], [[]], [True], {"a": [1, {"b": None}]}]),
        ]
    )


def test_random_rows_come_back_equal(tmp_path: Path) -> None:
    for seed in range(150):
        chance = random.Random(f"rows {seed}")
        columns = {
            name: column(chance) for name in ("input_ids", "labels", "label", "windows", "")[: chance.randrange(6)]
        }
        always = chance.random() < 0.5
        features = [
            {name: make() for name, make in columns.items() if always or chance.random() < 0.7}
            for _ in range(chance.choice([0, 1, 2, 17]))
        ]
        owners = chance.choice([None, [index // 2 for index in range(len(features))]])
        round_trip(features, tmp_path, chance.randrange(3), owners)


def test_rows_of_a_hit_can_be_changed_apart(tmp_path: Path) -> None:
    answer = [1, 2]
    made = Encoded([{"labels": answer}, {"labels": answer}], 0)
    cached({}, lambda: made, folder=tmp_path)
    again = cached({}, Maker(), folder=tmp_path)
    again.features[0]["labels"].append(3)
    assert again.features[1]["labels"] == answer


def test_the_collector_is_left_as_it_was(tmp_path: Path) -> None:
    cached({}, lambda: FEW, folder=tmp_path)
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            cached({}, Maker(), folder=tmp_path)
            assert gc.isenabled() == enabled
        finally:
            gc.enable()


def test_keys(tmp_path: Path) -> None:
    assert key_name({"a": 1, "b": [1, 2]}) == key_name({"b": [1, 2], "a": 1})
    assert len({key_name(key) for key in ({}, {"a": 1}, {"a": "1"}, {"a": [1]}, {"b": 1}, {"a": None})}) == 6
    for bad in ({"a": object()}, {"a": math.nan}, {"a": {1, 2}}):
        with pytest.raises(SoftPromptError, match="plain JSON values"):
            cached(bad, Maker(), folder=tmp_path)
    maker = Maker()
    for key in ({"a": 1}, {"a": 2}, {"a": 1}):
        cached(key, maker, folder=tmp_path)
    assert maker.calls == 2 and len(list(tmp_path.iterdir())) == 2


def test_a_new_file_format_finds_nothing_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = Maker()
    cached({}, maker, folder=tmp_path)
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    cached({}, maker, folder=tmp_path)
    assert maker.calls == 2


def check_made_anew(path: Path) -> None:
    maker = Maker()
    assert cached({}, maker, folder=path.parent) == FEW and maker.calls == 1
    assert cached({}, maker, folder=path.parent) == FEW and maker.calls == 1


def test_damaged_files_are_made_anew(tmp_path: Path) -> None:
    cached({}, lambda: FEW, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    for size in (0, 1, 7, 8, 9, 20, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        check_made_anew(path)
    for damage in (content + b"\0", b"not at all", os.urandom(4096), content[:8] + b"\xff" * (len(content) - 8)):
        path.write_bytes(damage)
        check_made_anew(path)
    assert path.read_bytes() == content


def test_a_changed_byte_never_gives_other_rows(tmp_path: Path) -> None:
    cached({}, lambda: FEW, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    for place, byte in enumerate(content):
        path.write_bytes(content[:place] + bytes([byte ^ 0x11]) + content[place + 1 :])
        assert cache._read(path, key_name({})) is None


def test_foreign_files_are_made_anew(tmp_path: Path) -> None:
    path = tmp_path / f"{key_name({})}.json"
    cached({"other": 1}, lambda: Encoded([{"input_ids": [1]}], 0), folder=tmp_path)
    (other,) = tmp_path.iterdir()
    other.rename(path)
    check_made_anew(path)
    for text in (b"{}", b"[]", b'{"features": [], "truncated": 0, "other": 1}'):  # whole, but no rows
        path.write_bytes(cache._checksum(key_name({}), text) + b"\n" + text)
        check_made_anew(path)


def test_no_place_to_write_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    maker = Maker()
    for _ in range(2):
        assert cached({}, maker, folder=tmp_path / "file" / "below") == FEW
    assert maker.calls == 2
    (tmp_path / "rows" / f"{key_name({})}.json").mkdir(parents=True)  # cannot be replaced by a file
    assert cached({}, maker, folder=tmp_path / "rows") == FEW
    assert [path.is_dir() for path in (tmp_path / "rows").iterdir()] == [True]

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert cached({"full": 1}, maker, folder=tmp_path / "full") == FEW
    assert list((tmp_path / "full").iterdir()) == []


@pytest.mark.parametrize("value", [np.int64(3), [np.int64(3)], {(1,): 2}, b"x", torch.zeros(2)])
def test_what_json_has_no_word_for_is_not_kept(tmp_path: Path, value: Any) -> None:
    for made in (Encoded([{"mine": value}], 0), Encoded([], value)):
        with pytest.warns(UserWarning, match="not kept for the next run: "):
            assert cached({}, Maker(made), folder=tmp_path) is made
    assert list(tmp_path.iterdir()) == []


def test_errors_of_the_maker_are_its_own(tmp_path: Path) -> None:
    def broken() -> Encoded:
        raise SoftPromptError("max_length is 2")

    with pytest.raises(SoftPromptError, match="max_length is 2"):
        cached({}, broken, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_several_processes_write_the_same_key(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib\n"
        "from softprompts.tasks.cache import cached\n"
        "from softprompts.tasks.kinds.encoded import Encoded\n"
        "made = Encoded([{'input_ids': list(range(200 * index, 200 * index + 150))} for index in range(200)], 0)\n"
        "folder, ready = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])\n"
        "(ready / sys.argv[3]).touch()\n"
        "while len(list(ready.iterdir())) < 2:\n"
        "    time.sleep(0.001)\n"
        "for turn in range(60):\n"
        "    assert cached({'turn': turn % 3}, lambda: made, folder=folder) == made\n"
        "    if turn % 2:\n"
        "        for path in folder.glob('*.json'):\n"
        "            path.unlink(missing_ok=True)\n"
    )
    (tmp_path / "ready").mkdir()
    arguments = [sys.executable, "-c", code, str(tmp_path / "rows"), str(tmp_path / "ready")]
    started = [warm.Warm([*arguments, name]) for name in ("one", "two")]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert [path.name for path in (tmp_path / "rows").iterdir() if path.suffix != ".json"] == []


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_files_unused_for_longest_go(tmp_path: Path) -> None:
    maker = Maker(Encoded([{"input_ids": [index] * 50} for index in range(20)], 0))
    names = [f"{key_name({'key': index})}.json" for index in range(4)]
    for index in range(3):
        cached({"key": index}, maker, folder=tmp_path)
        os.utime(tmp_path / names[index], (1000 + index, 1000 + index))
    size = (tmp_path / names[0]).stat().st_size
    (tmp_path / "mine.json").write_bytes(b"x" * 10 * size)
    cached({"key": 0}, maker, folder=tmp_path)  # used: the one with key 1 is the oldest now
    cached({"key": 3}, maker, folder=tmp_path, limit=3 * size + 100)
    assert entries(tmp_path) == {names[0], names[2], names[3], "mine.json"}
    assert maker.calls == 4
    trim(tmp_path, 2 * size + 100)
    assert entries(tmp_path) == {names[0], names[3], "mine.json"}
    trim(tmp_path, 0)
    assert entries(tmp_path) == {"mine.json"}


def test_what_is_larger_than_the_limit_is_not_written(tmp_path: Path) -> None:
    cached({"small": 1}, Maker(), folder=tmp_path)
    before = entries(tmp_path)
    limit = next(tmp_path.iterdir()).stat().st_size + 10
    made = Encoded([{"input_ids": list(range(5000))}], 0)
    assert cached({}, Maker(made), folder=tmp_path, limit=limit) is made
    assert entries(tmp_path) == before


def test_files_of_the_first_format_go_when_room_is_needed(tmp_path: Path) -> None:
    old = tmp_path / f"{'0a' * 32}.safetensors"
    old.write_bytes(b"x" * 5000)
    cached({}, Maker(), folder=tmp_path, limit=4000)
    assert entries(tmp_path) == {f"{key_name({})}.json"}


def test_half_written_files_are_swept_up_after_a_day(tmp_path: Path) -> None:
    old, new = (tmp_path / f".{key_name({})}.json.{number}.0a.tmp" for number in (1, 2))
    for path in (old, new):
        path.write_bytes(b"x")
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (long_ago, long_ago))
    cached({}, Maker(), folder=tmp_path)
    assert entries(tmp_path) == {new.name, f"{key_name({})}.json"}


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTPROMPTS_CACHE", str(tmp_path / "given"))
    maker = Maker()
    for _ in range(2):
        assert cached({}, maker) == FEW
    assert maker.calls == 1 and entries(tmp_path / "given" / "rows") == {f"{key_name({})}.json"}
    monkeypatch.delenv("SOFTPROMPTS_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert cache.cache_folder() == tmp_path / "home" / ".cache" / "softprompts" / "rows"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert cached({}, maker) == FEW and maker.calls == 2


@pytest.mark.parametrize("value", ["", "off", " OFF "])
def test_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SOFTPROMPTS_CACHE", value)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    maker = Maker()
    for _ in range(2):
        assert cached({}, maker) is FEW
    assert maker.calls == 2 and entries(tmp_path) == set()


def word_tokenizer(*more: str, **special: str) -> PreTrainedTokenizerFast:
    words = ["[PAD]", "[UNK]", "a", "b", *more]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]", **special)


def test_fingerprint_of_a_fast_tokenizer(tmp_path: Path) -> None:
    plain = word_tokenizer("c")
    wanted = tokenizer_fingerprint(plain)
    assert tokenizer_fingerprint(word_tokenizer("c")) == wanted
    used = word_tokenizer("c")
    used(["a b c", "a"], truncation=True, max_length=2, padding=True)
    settings = json.loads(used.backend_tokenizer.to_str())
    assert settings["truncation"] and settings["padding"] and tokenizer_fingerprint(used) == wanted
    plain.save_pretrained(tmp_path)
    once, again = (PreTrainedTokenizerFast.from_pretrained(tmp_path) for _ in range(2))
    assert tokenizer_fingerprint(once) == tokenizer_fingerprint(again)
    lower = word_tokenizer("c")
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    left = word_tokenizer("c", truncation_side="left")
    named = word_tokenizer("c", eos_token="c")
    others = [word_tokenizer("d"), word_tokenizer("c", "d"), word_tokenizer(), lower, left, named, ByT5Tokenizer()]
    assert len({wanted, *map(tokenizer_fingerprint, others)}) == len(others) + 1


def test_fingerprint_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rules, calls = cache._rules, []
    monkeypatch.setattr(cache, "_rules", lambda tokenizer: calls.append(tokenizer) or rules(tokenizer))
    tokenizer = word_tokenizer()
    first = tokenizer_fingerprint(tokenizer)
    assert tokenizer_fingerprint(tokenizer) == first and len(calls) == 1
    tokenizer.add_tokens(["new"])
    added = tokenizer_fingerprint(tokenizer)
    tokenizer.eos_token = "b"
    assert len({first, added, tokenizer_fingerprint(tokenizer)}) == 3 and len(calls) == 3
    calls.clear()


def test_fingerprints_keep_no_tokenizer_alive() -> None:
    tokenizer = word_tokenizer()
    tokenizer_fingerprint(tokenizer)
    known = len(cache._fingerprints)
    del tokenizer
    gc.collect()
    assert len(cache._fingerprints) < known


def test_fingerprint_of_a_slow_tokenizer() -> None:
    wanted = tokenizer_fingerprint(ByT5Tokenizer())
    assert tokenizer_fingerprint(ByT5Tokenizer(name_or_path="/somewhere/else")) == wanted
    fewer = ByT5Tokenizer(extra_ids=5)
    more = ByT5Tokenizer()
    more.add_tokens(["new"])
    assert len({wanted, tokenizer_fingerprint(fewer), tokenizer_fingerprint(more)}) == 3


def test_fingerprint_of_slow_merges() -> None:
    def merged(*pairs: tuple[str, str]) -> ByT5Tokenizer:
        tokenizer = ByT5Tokenizer()
        tokenizer.bpe_ranks = {pair: rank for rank, pair in enumerate(pairs)}
        return tokenizer

    pairs = [("a", "b"), ("b", "c")]
    assert tokenizer_fingerprint(merged(*pairs)) == tokenizer_fingerprint(merged(*pairs))
    assert tokenizer_fingerprint(merged(*pairs)) != tokenizer_fingerprint(merged(*pairs[::-1]))


def test_rules_written_in_python_are_never_found_again() -> None:
    class Letters:
        def pre_tokenize(self, text: PreTokenizedString) -> None:
            text.split(self.letters)

        def letters(self, index: int, text: NormalizedString) -> list[NormalizedString]:
            return [text[place : place + 1] for place in range(len(str(text)))]

    def lettered() -> PreTrainedTokenizerFast:
        tokenizer = word_tokenizer()
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(Letters())
        return tokenizer

    one, two = lettered(), lettered()
    assert one("ab")["input_ids"] == [2, 3]
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(one) != tokenizer_fingerprint(two)


def test_code_fingerprint(tmp_path: Path) -> None:
    here, cache_file, mine = Path(__file__), Path(cache.__file__), tmp_path / "mine.py"
    assert code_fingerprint([here]) == code_fingerprint([here]) != code_fingerprint([here, cache_file])
    fingerprints = {code_fingerprint([mine])}
    for text in ("x = 1", "x = 2"):
        mine.write_text(text)
        fingerprints.add(code_fingerprint([mine]))
    assert len(fingerprints) == 3
