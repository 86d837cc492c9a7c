"""Asking the model hub without its libraries' noise, and without long waits where there is no way to it."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from softprompts.errors import SoftPromptError


def reachable() -> bool:
    """Whether it makes sense to ask the hub: its libraries would retry for half a minute before they give up."""
    from huggingface_hub import constants, is_offline_mode

    if is_offline_mode():
        return False
    if getproxies():
        return True  # a proxy finds the host's address, we cannot
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def asking(name: str | os.PathLike[str]) -> Iterator[bool]:
    """Silences the hub's messages about its retries.

    Args:
        name: a local folder or a hub id.

    Yields:
        What to pass as ``local_files_only``: True for a hub id when the hub is out of reach.
    """
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield not os.path.isdir(name) and not reachable()
    finally:
        logger.setLevel(level)


def push(
    model: Any,
    repo_id: str,
    name: str | None,
    private: bool | None,
    commit_message: str | None,
    token: str | bool | None,
    revision: str | None,
    create_pr: bool,
    license: str | None,
) -> str:
    """Uploads prompts of an attached model; see `PromptModel.push_to_hub`."""
    from softprompts.prompt import require
    from softprompts.saving import described

    names = list(model.prompts) if name is None else [name]
    if not names:
        raise SoftPromptError("there is no prompt to upload")
    found = {}
    for one in names:
        metadata = {**require(model.prompts, one).metadata, **({} if license is None else {"license": license})}
        found[one] = described(model, one, metadata)
    return _upload(found, repo_id, private, commit_message, token, revision, create_pr)


def push_saved(
    source: str | Path,
    repo_id: str,
    private: bool | None = None,
    commit_message: str | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    license: str | None = None,
) -> str:
    """Uploads a saved prompt, which needs no backbone; that of a finished run with its test scores.

    Args:
        source: run folder or prompt folder.
        repo_id: see `PromptModel.push_to_hub`, like the rest.
        private: likewise.
        commit_message: likewise.
        token: likewise.
        revision: likewise.
        license: likewise.

    Raises:
        SoftPromptError: nothing usable there, or the hub refused.
    """
    from softprompts.saving import TENSOR_FILE, prompt_folder, read
    from softprompts.training.runs import is_done, load_result

    place = prompt_folder(source)
    config, _ = read(place)
    more: dict[str, Any] = {} if license is None else {"license": license}
    if is_done(source):
        more["test_metrics"] = load_result(source).get("test_metrics") or {}
    config["metadata"] = {**(config.get("metadata") or {}), **more}
    found = {str(config.get("name") or "prompt"): (config, (place / TENSOR_FILE).read_bytes())}
    return _upload(found, repo_id, private, commit_message, token, revision, False)


def _upload(
    found: Mapping[str, tuple[dict[str, Any], bytes]],
    repo_id: str,
    private: bool | None,
    commit_message: str | None,
    token: str | bool | None,
    revision: str | None,
    create_pr: bool,
) -> str:
    """Commits prompts to a repository: one into its root, several into a folder each."""
    from huggingface_hub import CommitOperationAdd, HfApi

    from softprompts.card import card, index_card
    from softprompts.saving import files_of

    if not isinstance(repo_id, str) or repo_id.count("/") > 1:
        raise SoftPromptError(f"{repo_id} is no name of a hub repository: write user/name")
    alone, files = len(found) == 1, {}
    for name, (config, content) in found.items():
        text = card(config, repo_id, None if alone else name)
        for file, value in files_of(config, content, text).items():
            files[file if alone else f"{name}/{file}"] = value
    if not alone:
        files["README.md"] = index_card({name: config for name, (config, _) in found.items()}, repo_id).encode()
    try:
        api = HfApi(token=token)
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        done = api.create_commit(
            repo,
            [CommitOperationAdd(path, content) for path, content in files.items()],
            commit_message=commit_message or f"Upload {', '.join(found)} with softprompts",
            revision=revision,
            create_pr=create_pr,
        )
    except Exception as error:  # the hub's client has a dozen kinds
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise SoftPromptError(f"{repo_id}: the hub did not take it ({reason})") from error
    return str(done.commit_url)
