"""``softprompts export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from softprompts.commands.terminal import err, out
from softprompts.errors import SoftPromptError, nearest

FORMS = ("embeddings", "model", "peft", "folded")


def export(
    source: Annotated[str, typer.Argument(metavar="RUN_OR_PROMPT", help="Run folder, prompt folder or hub id.")],
    to: Annotated[
        str,
        typer.Option(
            help="embeddings (for servers that take these), model (a directory for plain transformers), peft (an "
            "adapter), or folded (a prompt of inference size)."
        ),
    ],
    folder: Annotated[str, typer.Option("--out", "-o", help="The new folder.")],
) -> None:
    """Write a trained prompt in a form that others can use."""
    from softprompts.backbones.backbone import quiet
    from softprompts.backbones.packaged import resolve_model
    from softprompts.model.load import load
    from softprompts.storage.files import require_new_folder
    from softprompts.storage.hub import quiet_hub
    from softprompts.storage.saved_prompt import prompt_folder, read_config

    if to not in FORMS:
        raise SoftPromptError(f"--to {to}: {nearest(to, FORMS)}")
    target = require_new_folder(folder)
    with err.status("loading the model"):
        place = prompt_folder(source)
        backbone = resolve_model(str(read_config(place)[0]["backbone"].get("name") or ""))
        with quiet(), quiet_hub(backbone) as offline:
            # Weights with a prompt in them are written in full precision, whatever it was trained on.
            plain = {"quantize": None} if to == "model" else {}
            model = load(place, local_files_only=offline, **plain)
    with err.status("writing"):
        _write(model, model.active_prompt, to, target)
    out.print(f"{to}: {target} ({', '.join(sorted(file.name for file in target.iterdir()))})", soft_wrap=True)


def _write(model: Any, name: str, to: str, target: Path) -> None:
    if to == "embeddings":
        model.save_embeddings(name, target)
    elif to == "model":
        model.materialize(name, target)
    elif to == "folded":
        model.fold(name)
        model.save_prompt(name, target)
    else:
        model.save_peft(name, target)
