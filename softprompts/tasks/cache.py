"""Tokenised rows on disk, found again by what they were made from, so that a second run need not tokenise.

A file holds columns of numbers and texts (safetensors, with a description of the columns in its header), is named by a
hash of the key, and is written whole or not at all. Nothing about the cache is ever an error: a file that cannot be
read, whatever the reason, is made anew, and where none can be written there is none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import itertools
import json
import os
import re
import secrets
import time
import warnings
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import tokenizers
import transformers
from safetensors import safe_open
from safetensors.numpy import save as dump_arrays
from transformers import PreTrainedTokenizerBase

from softprompts.errors import SoftPromptError
from softprompts.storage.files import default_cache_dir, write_atomic

LIMIT = 2 * 1024**3
FORMAT = 1

_HEADER = "softprompts rows"
_VARIABLE = "SOFTPROMPTS_CACHE"
_FOLDER = "rows"
_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")
_LEFT_OVER = re.compile(r"\.[0-9a-f]{64}\.safetensors\..*\.tmp")
_LEFT_OVER_SECONDS = 24 * 3600
_DTYPES = (np.uint8, np.int8, np.uint16, np.int16, np.int32, np.int64)
_PLAIN = (bool, int, float, str, type(None))

E = TypeVar("E")
Arrays = dict[str, np.ndarray[Any, Any]]


def cache_folder() -> Path | None:
    """Where tokenised rows are kept: "rows" in `default_cache_dir`.

    Returns:
        None where ``SOFTPROMPTS_CACHE`` is empty or "off", or there is no home folder: there is no cache then.
    """
    if os.environ.get(_VARIABLE, "on").strip().lower() in ("", "off"):
        return None
    try:
        return default_cache_dir() / _FOLDER
    except RuntimeError:  # no home folder
        return None


def cached(
    key: Mapping[str, Any],
    make: Callable[[], E],
    form: type[E],
    *,
    folder: str | os.PathLike[str] | None = None,
    limit: int = LIMIT,
) -> E:
    """What ``make()`` gives, from the cache if it was made before.

    Args:
        key: all that decides the result, as JSON values: `digest` of the rows, `tokenizer_fingerprint`, the template,
            the kind of model, ``max_length``, and `code_fingerprint` of what makes them.
        make: makes the rows, called on a miss.
        form: the dataclass of the result. It has ``features``, a list of dicts (one a row), and maybe other fields.
            All of it must be plain: texts, numbers, True, False, None, and lists and dicts of these; columns of
            numbers, of texts, and of lists of ints or lists of lists of ints are stored best.
        folder: where files are kept; None: `cache_folder`.
        limit: most bytes of the folder; the files unused for longest are removed when there is more.

    Returns:
        On a hit an equal copy of what ``make()`` gave.

    Raises:
        SoftPromptError: the key holds something that JSON has no word for.
    """
    name = key_name(key)
    place = cache_folder() if folder is None else Path(folder)
    if place is None:
        return make()
    path = place / f"{name}.safetensors"
    result: Any = form
    fields = {field.name for field in dataclasses.fields(result)}
    found = _read(path, name)
    if found is not None and {"features", *found[1]} == fields:
        hit: E = result(features=found[0], **found[1])
        return hit
    made: Any = make()
    facts = {field: getattr(made, field) for field in sorted(fields - {"features"})}
    try:
        content = pack(made.features, facts, name)
    except TypeError as error:
        warnings.warn(f"tokenised rows are not kept for the next run: {error}", stacklevel=2)
        content = None
    if content is not None and len(content) <= limit:
        with contextlib.suppress(OSError):
            write_atomic(path, content)
            trim(place, limit)
    kept: E = made
    return kept


def key_name(key: Mapping[str, Any]) -> str:
    """sha256 of a key and of the file format; the order of the key's entries does not matter.

    Raises:
        SoftPromptError: the key holds something that JSON has no word for.
    """
    try:
        text = json.dumps({"format": FORMAT, "key": key}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SoftPromptError(f"the key of cached rows must be plain JSON values: {error}") from None
    return hashlib.sha256(text.encode()).hexdigest()


def trim(folder: str | os.PathLike[str], limit: int = LIMIT) -> None:
    """Removes the files unused for longest until no more than ``limit`` bytes are left; other files stay.

    What a crash left half written a day ago or earlier goes too.
    """
    files = []
    for entry in os.scandir(folder):
        with contextlib.suppress(OSError):  # another process may have removed it
            if _NAME.fullmatch(entry.name):
                status = entry.stat()
                files.append((status.st_mtime_ns, entry.name, status.st_size))
            elif _LEFT_OVER.fullmatch(entry.name) and time.time() - entry.stat().st_mtime > _LEFT_OVER_SECONDS:
                os.unlink(entry.path)
    total = sum(size for *_, size in files)
    for _, name, size in sorted(files):
        if total <= limit:
            break
        with contextlib.suppress(OSError):
            os.unlink(Path(folder) / name)
        total -= size


def pack(features: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], name: str) -> bytes:
    """Rows, and values beside them, as the bytes of a file that is known by ``name``.

    Raises:
        TypeError: a value is not plain, so that reading it back would give something else.
    """
    arrays: Arrays = {}
    layout = {
        "name": name,
        "rows": len(features),
        "features": _pack_rows(features, arrays, "features"),
        "facts": _pack_rows([facts], arrays, "facts"),
        "arrays": _checks(arrays),
    }
    text = json.dumps(layout)
    content: bytes = dump_arrays(arrays, {_HEADER: f"{zlib.crc32(text.encode())} {text}"})
    return content


def unpack(path: str | os.PathLike[str], name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The reverse of `pack`, from a file.

    Returns:
        The rows, and the values beside them.

    Raises:
        Exception: of many kinds, if the file is missing, damaged, not one of `pack` or known by another name.
    """
    with safe_open(path, framework="np") as file:
        check, text = file.metadata()[_HEADER].split(" ", 1)
        arrays: Arrays = {part: file.get_tensor(part) for part in file.keys()}  # noqa: SIM118  # it is no dict
    layout = json.loads(text)
    if int(check) != zlib.crc32(text.encode()) or layout["arrays"] != _checks(arrays) or layout["name"] != name:
        raise ValueError(f"{path} is damaged, or has another name")
    features = _unpack_rows(layout["rows"], layout["features"], arrays, "features")
    return features, _unpack_rows(1, layout["facts"], arrays, "facts")[0]


def _checks(arrays: Arrays) -> dict[str, list[int | str]]:
    return {part: [zlib.crc32(array.data), str(array.dtype), len(array)] for part, array in arrays.items()}


def _read(path: Path, name: str) -> tuple[list[dict[str, Any]], dict[str, Any]] | None:
    try:
        with _collector_paused():
            found = unpack(path, name)
    except Exception:  # there is none, or something is wrong with it: the rows are made anew and written over it
        return None
    with contextlib.suppress(OSError):  # a cache that can only be read serves all the same
        os.utime(path)
    return found


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Without it, two thirds of the time goes into looking for garbage among millions of numbers."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _pack_rows(rows: Sequence[Mapping[str, Any]], arrays: Arrays, prefix: str) -> list[dict[str, Any]]:
    columns: list[dict[str, Any]] = []
    for name in dict.fromkeys(itertools.chain.from_iterable(rows)):
        if type(name) is not str:
            raise TypeError(f"a column is named {name!r}, not by a text")
        there = [index for index, row in enumerate(rows) if name in row]
        try:
            kind, parts = _pack_column([rows[index][name] for index in there])
        except TypeError as error:
            raise TypeError(f"'{name}' {error}") from None
        if len(there) < len(rows):
            parts["there"] = _narrow(np.array(there, dtype=np.int64))
        for part, array in parts.items():
            arrays[f"{prefix}.{len(columns)}.{part}"] = array
        columns.append({"name": name, "kind": kind})
    return columns


def _unpack_rows(count: int, columns: Sequence[Mapping[str, Any]], arrays: Arrays, prefix: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    for index, column in enumerate(columns):
        start = f"{prefix}.{index}."
        parts = {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
        places = parts.pop("there").tolist() if "there" in parts else range(count)
        name = column["name"]
        for place, value in zip(places, _unpack_column(column["kind"], parts), strict=True):
            rows[place][name] = value
    return rows


def _pack_column(values: list[Any]) -> tuple[str, Arrays]:
    kinds = set(map(type, values))
    if kinds == {float}:
        return "float", {"values": np.array(values, dtype=np.float64)}
    if kinds == {str}:
        texts = [value.encode("utf-8", "surrogatepass") for value in values]
        return "text", {"values": _bytes(b"".join(texts)), "lengths": _lengths(texts)}
    with contextlib.suppress(OverflowError):  # ints beyond 64 bits are for JSON
        if kinds == {int}:
            return "int", {"values": _narrow(np.array(values, dtype=np.int64))}
        if kinds == {list}:
            flat = list(itertools.chain.from_iterable(values))
            inner = set(map(type, flat))
            if inner <= {int}:
                return "ints", {"values": _narrow(np.array(flat, dtype=np.int64)), "lengths": _lengths(values)}
            if inner == {list}:
                deepest = list(itertools.chain.from_iterable(flat))
                if set(map(type, deepest)) <= {int}:
                    numbers = _narrow(np.array(deepest, dtype=np.int64))
                    return "lists", {"values": numbers, "lengths": _lengths(values), "inner": _lengths(flat)}
    _check_plain(values)
    return "json", {"values": _bytes(json.dumps(values).encode())}


def _unpack_column(kind: str, parts: Arrays) -> list[Any]:
    values = parts["values"]
    if kind == "json":
        column: list[Any] = json.loads(values.tobytes())
        return column
    if kind == "text":
        return [text.decode("utf-8", "surrogatepass") for text in _cut(values.tobytes(), parts["lengths"])]
    if kind == "ints":
        return _cut_ints(values, parts["lengths"])
    if kind == "lists":
        return _cut(_cut_ints(values, parts["inner"]), parts["lengths"])
    if kind in ("int", "float"):
        return list(values.tolist())
    raise ValueError(f"unknown kind of column '{kind}'")


def _cut_ints(values: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any]) -> list[list[int]]:
    """Lists of Python ints.

    Each number is one object however often it comes, which takes a quarter of the room, and less time. Python itself
    does so with what fits into a byte.
    """
    least, most = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    if values.itemsize == 1 or most - least >= len(values):
        return [row.tolist() for row in _cut(values, lengths)]
    numbers = np.arange(least, most + 1, dtype=np.int64).astype(object)
    return [numbers[row].tolist() for row in _cut(values.astype(np.int64) - least, lengths)]


def _cut(whole: Any, lengths: np.ndarray[Any, Any]) -> list[Any]:
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    return [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _lengths(values: Sequence[Any]) -> np.ndarray[Any, Any]:
    return _narrow(np.array([len(value) for value in values], dtype=np.int64))


def _bytes(content: bytes) -> np.ndarray[Any, Any]:
    return np.frombuffer(content, dtype=np.uint8)


def _narrow(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    least, most = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    return values.astype(next(d for d in _DTYPES if np.iinfo(d).min <= least and most <= np.iinfo(d).max))


def _check_plain(value: Any) -> None:
    if type(value) is list:
        for item in value:
            _check_plain(item)
    elif type(value) is dict:
        for name, item in value.items():
            if type(name) is not str:
                raise TypeError(f"holds a dict with the key {name!r}, not a text")
            _check_plain(item)
    elif type(value) not in _PLAIN:
        raise TypeError(f"holds a {type(value).__name__}, not a plain value")


_fingerprints: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, tuple[str, str]] = weakref.WeakKeyDictionary()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of what decides the ids a tokenizer gives: its vocabulary and rules, class, and the libraries' versions.

    Padding, and the truncation of the last call, do not count. It is computed once for an object, and again when tokens
    were added or special tokens changed; rules that are changed in place later go unnoticed. A tokenizer with rules
    written in Python, which nothing can be known about, gets a fingerprint that no other object has.
    """
    state: dict[str, Any] = {
        "tokens": len(tokenizer),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "inputs": list(tokenizer.model_input_names),
        "side": tokenizer.truncation_side,
        "split": getattr(tokenizer, "split_special_tokens", None),
    }
    stamp = json.dumps(state, sort_keys=True)
    known = _fingerprints.get(tokenizer)
    if known is not None and known[0] == stamp:
        return known[1]
    total = hashlib.sha256(stamp.encode())
    total.update(f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}".encode())
    total.update(f"transformers {transformers.__version__} tokenizers {tokenizers.__version__}".encode())
    total.update(_rules(tokenizer))
    fingerprint = total.hexdigest()
    _fingerprints[tokenizer] = (stamp, fingerprint)
    return fingerprint


def _rules(tokenizer: PreTrainedTokenizerBase) -> bytes:
    if getattr(tokenizer, "is_fast", False):
        try:
            return _without_settings(tokenizer.backend_tokenizer.to_str()).encode("utf-8", "surrogatepass")
        except Exception:  # what the library raises about rules written in Python
            return secrets.token_bytes(32)
    settings = {
        name: value
        for name, value in tokenizer.init_kwargs.items()
        if not name.endswith("_file") and name not in ("name_or_path", "is_local", "local_files_only")
    }
    parts = [tokenizer.get_vocab(), tokenizer.get_added_vocab(), settings]
    if hasattr(tokenizer, "bpe_ranks"):
        parts.append(sorted((list(pair), rank) for pair, rank in tokenizer.bpe_ranks.items()))
    text = json.dumps(parts, sort_keys=True, default=repr).encode()
    pieces = getattr(tokenizer, "sp_model", None)
    return text + (b"" if pieces is None else pieces.serialized_model_proto())


def _without_settings(text: str) -> str:
    """Drops truncation and padding, which calls change, from the head of a tokenizer's JSON.

    To parse all of it would take ten times as long as everything else.
    """
    decoder, kept, at = json.JSONDecoder(), [], 1
    while text.startswith('"', at):
        name, end = decoder.raw_decode(text, at)
        if name not in ("version", "truncation", "padding"):
            break
        value, end = decoder.raw_decode(text, end + 1)
        if name == "version":
            kept.append(str(value))
        at = end + 1
    return "".join([*kept, text[at:]])


def code_fingerprint(*modules: ModuleType) -> str:
    """sha256 of the source of modules: part of a key, so that changed code does not find what the old code made."""
    total = hashlib.sha256()
    for module in modules:
        total.update(module.__name__.encode())
        if module.__file__ is not None:
            with contextlib.suppress(OSError):
                total.update(Path(module.__file__).read_bytes())
    return total.hexdigest()
