"""``softprompts serve``."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompts.commands.options import Options, with_imports, with_options
from softprompts.commands.terminal import err, out
from softprompts.errors import SoftPromptError, nearest
from softprompts.serving.settings import ServerSettings

if TYPE_CHECKING:
    from softprompts.serving.prompt_store import PromptStore

_NEEDED = ("fastapi", "fastapi_offline", "uvicorn", "prometheus_client")
_ENGINES = ("local", "ray")
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
    engine: Annotated[
        str, typer.Option("--engine", help="local: one process; ray: replicas in a Ray cluster (RAY_ADDRESS).")
    ] = "local",
    replicas: Annotated[
        int | None, typer.Option("--replicas", min=1, help="Models with --engine ray, one a GPU or core; default: 1.")
    ] = None,
) -> None:
    """Serve many prompts on one frozen model over HTTP, with a page to try them."""
    if any(importlib.util.find_spec(name) is None for name in _NEEDED):
        raise SoftPromptError(
            "serving needs more packages: pip install fastapi fastapi-offline uvicorn prometheus-client"
        )
    if dtype not in _DTYPES:
        raise SoftPromptError(f"--dtype {dtype}: {nearest(dtype, _DTYPES)}")
    if engine not in _ENGINES:
        raise SoftPromptError(f"--engine {engine}: {nearest(engine, _ENGINES)}")
    if replicas is not None and engine != "ray":
        raise SoftPromptError("--replicas is for --engine ray; without it one process has one model")
    from softprompts.serving.engine import EngineOptions
    from softprompts.serving.prompt_store import PromptStore
    from softprompts.serving.server import run
    from softprompts.serving.service import open_service

    if device is not None and engine == "local":
        _check_device(device)
    store = PromptStore(prompts)
    if not (model or store.names()):
        raise SoftPromptError(f"--prompts {prompts} holds no prompts: name a folder with runs or saved prompts in it")
    key = os.environ.get(API_KEY, "").strip()
    name = model or _named(store)
    settings = replace(limits, api_key=key, local=not key and host in _LOOPBACK)
    options = EngineOptions(name, dtype, device, trust_remote_code)

    def tell(model: str, count: int, left_out: Mapping[str, str], port: int) -> None:
        for prompt, reason in left_out.items():
            err.print(f"left out {prompt}: {reason}", style="yellow", soft_wrap=True)
        shown = f"[{host}]" if ":" in host else host
        prompts = f"{count} {'prompt' if count == 1 else 'prompts'}"
        out.print(f"{prompts} on {model}: http://{shown}:{port}", soft_wrap=True)
        if not settings.api_key and host not in _LOOPBACK:
            err.print(f"anyone who reaches {host} may ask: set {API_KEY} to a key", style="yellow", soft_wrap=True)

    if engine == "ray":
        from softprompts.serving.replicas import run_replicas

        run_replicas(options, store.root, settings, strict, replicas or 1, host, port, tell)
        return
    with err.status("loading the model and its prompts"):
        service = open_service(options, store, settings, strict)
    run(service, host, port, lambda port: tell(service.engine.model_name, len(service.prompts), service.left_out, port))


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
