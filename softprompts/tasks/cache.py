"""Tokenised rows on disk, found again by what they were made from, so that a second run need not tokenise.

A file is named by a hash of the key, holds the rows as JSON behind a checksum, and is written whole or not at all.
Nothing about the cache is ever an error: a file that cannot be read, whatever the reason, is made anew, and where none
can be written there is none.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import re
import secrets
import time
import warnings
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase

from softprompts.errors import SoftPromptError
from softprompts.storage.files import default_cache_dir, write_atomic
from softprompts.tasks.kinds.encoded import Encoded

LIMIT = 2 * 1024**3
FORMAT = 2

_VARIABLE = "SOFTPROMPTS_CACHE"
_NAME = re.compile(r"[0-9a-f]{64}\.(json|safetensors)")  # format 1 wrote safetensors
_LEFT_OVER = re.compile(r"\.[0-9a-f]{64}\.(json|safetensors)\..*\.tmp")
_LEFT_OVER_SECONDS = 24 * 3600


def cache_folder() -> Path | None:
    """Where tokenised rows are kept: "rows" in `default_cache_dir`.

    None, and no cache, where ``SOFTPROMPTS_CACHE`` is empty or "off", or there is no home folder.
    """
    if os.environ.get(_VARIABLE, "on").strip().lower() in ("", "off"):
        return None
    try:
        return default_cache_dir() / "rows"
    except RuntimeError:  # no home folder
        return None


def cached(
    key: Mapping[str, Any], make: Callable[[], Encoded], *, folder: Path | None = None, limit: int = LIMIT
) -> Encoded:
    """Returns what ``make()`` gives, or on a hit an equal copy of what it gave before.

    Args:
        key: all that decides the result, as JSON values: `digest` of the rows, `tokenizer_fingerprint`, the template,
            the kind of model, ``max_length``, and `code_fingerprint` of what makes them.
        make: makes the rows, called on a miss.
        folder: where files are kept; None: `cache_folder`.
        limit: most bytes of the folder; the files unused for longest are removed when there is more.
    """
    name = key_name(key)
    folder = cache_folder() if folder is None else folder
    if folder is None:
        return make()
    path = folder / f"{name}.json"
    encoded = _read(path, name)
    if encoded is not None:
        return encoded
    encoded = make()
    try:
        text = json.dumps(vars(encoded), separators=(",", ":")).encode()
    except TypeError as error:
        warnings.warn(f"tokenised rows are not kept for the next run: {error}", stacklevel=2)
        return encoded
    if len(text) <= limit:
        with contextlib.suppress(OSError):
            write_atomic(path, _checksum(name, text) + b"\n" + text)
            trim(folder, limit)
    return encoded


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


def trim(folder: Path, limit: int = LIMIT) -> None:
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
            os.unlink(folder / name)
        total -= size


def _read(path: Path, name: str) -> Encoded | None:
    try:
        checksum, _, text = path.read_bytes().partition(b"\n")
        if checksum != _checksum(name, text):
            return None
        with _collector_paused():
            encoded = Encoded(**json.loads(text))
    except Exception:  # there is no file, or something is wrong with it: the rows are made anew and written over it
        return None
    with contextlib.suppress(OSError):  # a cache that can only be read serves all the same
        os.utime(path)
    return encoded


def _checksum(name: str, text: bytes) -> bytes:
    """CRC-32 of the name and the text; with the name, a renamed file is not taken for another."""
    return f"{zlib.crc32(text, zlib.crc32(name.encode())):08x}".encode()


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Pauses garbage collection, which takes more than half of the time while millions of numbers are made."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


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
    known_stamp, fingerprint = _fingerprints.get(tokenizer, ("", ""))
    if known_stamp != stamp:
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
            text: str = tokenizer.backend_tokenizer.to_str()
        except Exception:  # what the library raises about rules written in Python
            return secrets.token_bytes(32)
        # Version, truncation and padding come first, and calls change the last two.
        return (text.partition('"added_tokens":')[2] or text).encode("utf-8", "surrogatepass")
    places = ("name_or_path", "is_local", "local_files_only")
    settings = tokenizer.init_kwargs.items()
    kept = {name: value for name, value in settings if not name.endswith("_file") and name not in places}
    parts = [tokenizer.get_vocab(), tokenizer.get_added_vocab(), kept]
    if hasattr(tokenizer, "bpe_ranks"):
        parts.append(sorted((list(pair), rank) for pair, rank in tokenizer.bpe_ranks.items()))
    vocabulary = json.dumps(parts, sort_keys=True, default=repr).encode()
    pieces = getattr(tokenizer, "sp_model", None)
    return vocabulary if pieces is None else vocabulary + pieces.serialized_model_proto()


def code_fingerprint(files: Iterable[Path]) -> str:
    """sha256 of source files: part of a key, so that changed code does not find what the old code made."""
    total = hashlib.sha256()
    for file in files:
        total.update(file.name.encode())
        with contextlib.suppress(OSError):
            total.update(file.read_bytes())
    return total.hexdigest()
