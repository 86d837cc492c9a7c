"""What a user changes in a model that is attached already: kernels are mapped to ours, other modules are refused.

Looked at before every forward, by comparing a few objects. Embeddings need no look: hooks ask the model for them.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from softprompts.attention import kernels, prefix
from softprompts.errors import SoftPromptError
from softprompts.injection.state import State

_OURS = prefix.implementation("")


def record(state: State) -> None:
    """Notes which modules have to stay: attention sites, heads, changed modules, and all around them."""
    model = state.backbone.model
    changed = {path for prompt in state.prompts.values() for path in prompt.method.changes}
    modules = [site.module for site in state.backbone.sites] + list(state.backbone.heads.values())
    modules += [module for part, module in state.backbone.parts if part.path in changed]
    state.needed, state.similar = modules, _similar(state)
    paths = {module: name for name, module in model.named_modules(remove_duplicate=False)}
    names = {paths[module] for module in modules if module in paths}
    edges = {".".join(steps[: i + 1]) for name in names for steps in [name.split(".")] for i in range(len(steps))}
    state.edges = []
    for path in sorted(edges):
        holder, _, name = path.rpartition(".")
        parent = model.get_submodule(holder)
        state.edges.append((parent._modules, name, parent._modules[name], len(parent._modules)))


def follow(state: State) -> None:
    """Maps kernels that were set since the last forward to those with prefixes.

    Raises:
        SoftPromptError: the new kernel takes no prefixes, or a module that prompts go through was replaced.
    """
    for place, (config, _) in enumerate(state.attention):
        name = config._attn_implementation
        if state.backbone.sites and not str(name).startswith(_OURS):
            _follow_kernel(state, place, config, name)
    for children, name, module, count in state.edges:
        if children.get(name) is not module or len(children) != count:
            _require_modules(state)
            record(state)
            return


def _follow_kernel(state: State, place: int, config: Any, name: str) -> None:
    if not kernels.takes_prefixes(name):
        raise SoftPromptError(
            f"attn_implementation='{name}' was set after attach, and takes no prefixes: set one of "
            f"{', '.join(kernels.ATTENTION)}"
        )
    state.backbone.only_keys = kernels.only_keys(name)
    config._attn_implementation_internal = prefix.implementation(name)  # of this config, and not of those in it
    state.attention[place] = (config, name)


def _require_modules(state: State) -> None:
    """Refuses a model that lacks a needed module by now, or has attention modules that were not there."""
    reachable = set(state.backbone.model.modules())
    if not reachable.issuperset(state.needed) or _similar(state) != state.similar:
        raise SoftPromptError(
            f"layers or heads of {state.model_class.__name__} were replaced, added or removed after attach, where "
            "prompts do not reach: detach the model, change it, and attach again"
        )


def _similar(state: State) -> int:
    kinds: set[type[nn.Module]] = {type(site.module) for site in state.backbone.sites}
    return sum(type(module) in kinds for module in state.backbone.model.modules())
