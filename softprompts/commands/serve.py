"""``softprompts serve``."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompts.commands.options import Options, with_imports, with_options
from softprompts.commands.terminal import err, out
from softprompts.errors import SoftPromptError, nearest
from softprompts.serving.settings import ServerSettings

if TYPE_CHECKING:
    from softprompts.serving.prompt_store import PromptStore

_NEEDED = ("fastapi", "uvicorn", "prometheus_client")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_DTYPES = ("auto", "float32", "bfloat16", "float16")
API_KEY = "SOFTPROMPTS_API_KEY"


def _limits(
    *,
    max_wait_ms: Annotated[
        float, typer.Option(min=0, max=1000, help="How long a busy model waits for more rows.")
    ] = 1000 * ServerSettings.max_wait,
    **values: Any,
) -> ServerSettings:
    return ServerSettings(max_wait=max_wait_ms / 1000, **values)


_LIMITS = Options(ServerSettings, without=("max_wait", "max_choices", "api_key", "local"), build=_limits)


@with_imports
@with_options
def serve(
    *,
    prompts: Annotated[str, typer.Option("--prompts", "-p", help="Folder of saved prompts or runs, one in each.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Alias, folder or hub id; default: the one that the prompts name."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    limits: Annotated[ServerSettings, _LIMITS],
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; default: the GPU if there is one.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Do not start where a prompt cannot be loaded.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that comes with the model.")
    ] = False,
) -> None:
    """Serve many prompts on one frozen model over HTTP, with a page to try them."""
    if any(importlib.util.find_spec(name) is None for name in _NEEDED):
        raise SoftPromptError("serving needs more packages: pip install fastapi uvicorn prometheus-client")
    if dtype not in _DTYPES:
        raise SoftPromptError(f"--dtype {dtype}: {nearest(dtype, _DTYPES)}")
    import torch

    from softprompts.serving.engine import Engine
    from softprompts.serving.prompt_store import PromptStore
    from softprompts.serving.server import run
    from softprompts.serving.service import Service

    if device is not None:
        _check_device(device)
    store = PromptStore(prompts)
    key = os.environ.get(API_KEY, "").strip()
    name = model or _named(store)
    settings = replace(limits, api_key=key, local=not key and host in _LOOPBACK)
    with err.status("loading the model and its prompts"):
        weights_dtype = None if dtype == "auto" else getattr(torch, dtype)
        engine = Engine(name, weights_dtype, device, trust_remote_code)
        service = Service(engine, store, settings)
        service.load_all(strict)
    for prompt, reason in service.left_out.items():
        err.print(f"left out {prompt}: {reason}", style="yellow", soft_wrap=True)

    def tell(port: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        count = f"{len(service.prompts)} {'prompt' if len(service.prompts) == 1 else 'prompts'}"
        out.print(f"{count} on {engine.model_name}: http://{shown}:{port}", soft_wrap=True)
        if not settings.api_key and host not in _LOOPBACK:
            err.print(f"anyone who reaches {host} may ask: set {API_KEY} to a key", style="yellow", soft_wrap=True)

    run(service, host, port, tell)


def _named(store: PromptStore) -> str:
    """The model that all prompts of a folder name."""
    models = list(dict.fromkeys(store.backbones()))
    if not models:
        raise SoftPromptError(f"no prompt in {store.root} names a model: give it with --model")
    if len(models) > 1:
        raise SoftPromptError(f"the prompts name {len(models)} models ({', '.join(models)}): choose one with --model")
    return models[0]


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except Exception as error:  # each kind of device has errors of its own
        reason = str(error).strip().partition("\n")[0]
        raise SoftPromptError(f"--device {device} cannot be used ({reason[:160]})") from error
