"""Uploads prompts to the model hub, each with its card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi

from softprompts.errors import SoftPromptError, first_line
from softprompts.injection.prompt import require
from softprompts.model.card import card, index_card
from softprompts.model.saving import serialize
from softprompts.storage.run_folder import is_done, load_result
from softprompts.storage.runs import located
from softprompts.storage.saved_prompt import TENSOR_FILE, files_of, prompt_folder, read

_Prompts = Mapping[str, tuple[dict[str, Any], bytes]]  # the config and the tensors of each, by its name


def push(model: Any, repo_id: str, name: str | None, license: str | None, **options: Any) -> str:
    """Uploads prompts of an attached model; see `PromptModel.push_to_hub`."""
    names = list(model.prompts) if name is None else [name]
    if not names:
        raise SoftPromptError("there is no prompt to upload")
    stated = {} if license is None else {"license": license}
    prompts = {each: serialize(model, each, require(model.prompts, each).metadata | stated) for each in names}
    return _upload(prompts, repo_id, **options)


def push_saved(source: str | Path, repo_id: str, license: str | None = None, **options: Any) -> str:
    """Uploads a saved prompt without loading its backbone; that of a finished run with its test scores.

    Args:
        source: run folder or prompt folder.
        repo_id: see `PromptModel.push_to_hub`, like the rest.
        license: likewise.
        **options: likewise; ``private``, ``commit_message``, ``token``, ``revision``, ``create_pr``.

    Raises:
        SoftPromptError: nothing usable there, or the hub refused.
    """
    folder = prompt_folder(source := located(source))
    config, _ = read(folder)
    config["metadata"] = (config.get("metadata") or {}) | ({} if license is None else {"license": license})
    if is_done(source):
        config["metadata"]["test_metrics"] = load_result(source).get("test_metrics") or {}
    name = str(config.get("name") or "prompt")
    return _upload({name: (config, (folder / TENSOR_FILE).read_bytes())}, repo_id, **options)


def _upload(
    prompts: _Prompts, repo_id: str, private: bool | None = None, token: str | bool | None = None, **details: Any
) -> str:
    """Commits prompts to a repository: one into its root, several into a folder each. Returns the commit's address."""
    if not isinstance(repo_id, str) or repo_id.count("/") > 1:
        raise SoftPromptError(f"{repo_id} is no name of a hub repository: write user/name")
    alone, files = len(prompts) == 1, dict[str, bytes]()
    for name, (config, content) in prompts.items():
        text = card(config, repo_id, None if alone else name)
        files |= {file if alone else f"{name}/{file}": data for file, data in files_of(config, content, text).items()}
    if not alone:
        files["README.md"] = index_card({name: config for name, (config, _) in prompts.items()}, repo_id).encode()
    details["commit_message"] = details.get("commit_message") or f"Upload {', '.join(prompts)} with softprompts"
    try:
        api = HfApi(token=token)
        commit = api.create_commit(
            api.create_repo(repo_id, private=private, exist_ok=True).repo_id,
            [CommitOperationAdd(path, content) for path, content in files.items()],
            **details,
        )
    except Exception as error:  # the hub's client has a dozen kinds
        raise SoftPromptError(f"{repo_id}: the hub did not take it ({first_line(error)})") from error
    return str(commit.commit_url)
