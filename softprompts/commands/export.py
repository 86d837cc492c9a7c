"""``softprompts export``."""

from __future__ import annotations

from typing import Annotated

import typer

from softprompts.commands.options import Place, Source, with_imports
from softprompts.commands.terminal import err, out
from softprompts.errors import SoftPromptError, nearest

# The forms, and the methods of a model that write them.
_WRITERS = {"embeddings": "save_embeddings", "model": "materialize", "peft": "save_peft", "folded": "save_prompt"}


@with_imports
def export(
    source: Source,
    to: Annotated[
        str,
        typer.Option(
            help="embeddings (for servers that take these), model (a directory for plain transformers), peft (an "
            "adapter), or folded (a prompt of inference size)."
        ),
    ],
    folder: Annotated[str, typer.Option("--out", "-o", help="The new folder.")],
    model: Place = None,
) -> None:
    """Write a trained prompt in a form that others can use."""
    from softprompts.backbones.backbone import quiet
    from softprompts.backbones.packaged import resolve_model
    from softprompts.model.load import load
    from softprompts.storage.files import require_new_folder
    from softprompts.storage.hub import quiet_hub
    from softprompts.storage.saved_prompt import prompt_folder, read_config

    if to not in _WRITERS:
        raise SoftPromptError(f"--to {to}: {nearest(to, _WRITERS)}")
    target = require_new_folder(folder)
    with err.status("loading the model"):
        place = prompt_folder(source)
        backbone = resolve_model(str(model or read_config(place)[0]["backbone"].get("name") or ""))
        with quiet(), quiet_hub(backbone) as offline:
            # Weights with a prompt in them are written in full precision, whatever it was trained on.
            plain = {"quantize": None} if to == "model" else {}
            loaded = load(place, model=model and backbone, local_files_only=offline, **plain)
    with err.status("writing"):
        if to == "folded":
            loaded.fold(loaded.active_prompt)
        getattr(loaded, _WRITERS[to])(loaded.active_prompt, target)
    out.print(f"{to}: {target} ({', '.join(sorted(file.name for file in target.iterdir()))})", soft_wrap=True)
