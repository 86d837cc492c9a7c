"""Makes docs/methods.md: what each method says of itself, and what it really trains on two backbones.

    python docs/tools/methods_page.py > docs/methods.md

A number of parameters is counted on a prompt made for the backbone's full size, on torch's meta device: shapes without
memory. Nothing is downloaded, and no weight is drawn.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from method_defaults import WIDTH, defaults_of

from softprompts.backbones.backbone import Backbone
from softprompts.commands.methods import GROUPS, what_it_is
from softprompts.errors import SoftPromptError
from softprompts.injection.prompt import Prompt
from softprompts.injection.state import state_of
from softprompts.methods.about import About
from softprompts.methods.compose import make_config
from softprompts.methods.contract import MethodConfig
from softprompts.methods.registry import methods
from softprompts.model.attach import attach
from softprompts.training import TrainConfig

BACKBONES = ("T5-base", "BERT-base")
# Words that `About.count` may use without saying what they are.
_SIZES = "one of l d S w L"
_OPERATIONS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}
_COMMAND = "python docs/tools/methods_page.py > docs/methods.md"


@dataclass(frozen=True)
class Count:
    """What a prompt trains.

    Attributes:
        trained: number of its parameters, without those of a task head.
        sizes: the ``l d S w L`` it was made for.
    """

    trained: int
    sizes: Mapping[str, int]


def known() -> dict[str, type[MethodConfig]]:
    """The methods of this package by name, without those that nobody asks for by name."""
    found = methods()
    return {
        name: config
        for name, config in sorted(found.items())
        if config.listed and config.__module__.startswith("softprompts.")
    }


def about(name: str) -> About:
    """What a method says of itself.

    Raises:
        SoftPromptError: nothing.
    """
    said = known()[name].about
    if said is None:
        raise SoftPromptError(f"{name}: the table of methods needs its class variable 'about'")
    return said


def example(name: str, **settings: Any) -> MethodConfig:
    """A config of a method: its defaults, what it cannot be made without, and some settings."""
    return make_config(name, **{**about(name).settings, **settings})


def count(config: MethodConfig, backbone: str) -> Count | None:
    """What a method trains on a backbone.

    Args:
        config: the method and its settings.
        backbone: one of `BACKBONES`.

    Returns:
        The count; None where the backbone has no site of those that the settings ask for.
    """
    state: Backbone = state_of(_model(backbone)).backbone
    if config.sites is not None and not set(config.sites) <= {site.kind for site in state.sites}:
        return None
    with prompt_of(config, backbone) as prompt:
        chosen = prompt.sites or range(len(state.sites))  # a formula with S and w may be of one that has no prefix
        site = state.sites[chosen[0]]
        return Count(
            sum(parameter.numel() for parameter in prompt.method.parameters() if parameter.requires_grad),
            {
                "l": config.num_virtual_tokens,
                "d": state.hidden_size,
                "S": len(chosen),
                "w": site.kv_heads * site.head_dim,
                "L": sum(site.kind.endswith(".self") for site in state.sites),
            },
        )


@contextlib.contextmanager
def prompt_of(config: MethodConfig, backbone: str) -> Iterator[Prompt]:
    """A prompt on one of `BACKBONES`, without numbers in it.

    Raises:
        SoftPromptError: the method does not fit the backbone.
    """
    model = _model(backbone)
    model.add_prompt("asked", config)
    try:
        yield model.prompts["asked"]
    finally:
        model.delete_prompt("asked")


def frozen(backbone: str) -> int:
    """Number of parameters of a backbone, its task head not counted."""
    named = _model(backbone).base_model.named_parameters()
    return sum(parameter.numel() for name, parameter in named if not name.startswith("prompts."))


@functools.cache
def _model(backbone: str) -> Any:
    """The backbone with its real sizes and no weights."""
    config: Any
    if backbone == "T5-base":
        config = transformers.T5Config()  # transformers' defaults are those of T5-small
        config.update({"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_decoder_layers": 12, "num_heads": 12})
        make: Any = transformers.T5ForConditionalGeneration
    else:
        config = transformers.BertConfig()  # and those of BERT-base, uncased
        config.update({"vocab_size": 28996})
        make = transformers.BertForSequenceClassification
    with torch.device("meta"):
        model = make(config)
    return attach(model)


# --- formulas -----------------------------------------------------------------------------------------------------


def arithmetic(formula: str) -> ast.expr | None:
    """A formula of sums and products as a syntax tree; None where it is words."""
    try:
        tree = ast.parse(formula, mode="eval").body
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        fine = isinstance(node, ast.Name | ast.expr_context | ast.operator)
        fine = fine or (isinstance(node, ast.Constant) and isinstance(node.value, int))
        if not (fine or (isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS)):
            return None
    return tree


def value(formula: str, config: MethodConfig, sizes: Mapping[str, int]) -> int | None:
    """What a formula of `About.count` comes to.

    Args:
        formula: the formula.
        config: the settings that its symbols stand for, or whose names are in it.
        sizes: ``l d S w L``.

    Returns:
        The number; None where the formula is words.

    Raises:
        SoftPromptError: a symbol is neither told nor a setting.
    """
    tree = arithmetic(formula)
    if tree is None:
        return None
    said = config.about.symbols if config.about is not None else {}

    def find(symbol: str) -> int:
        if symbol in sizes and symbol not in said:
            return sizes[symbol]
        told = said.get(symbol, symbol)
        for name in (told,) if isinstance(told, str) else told:
            if isinstance(got := getattr(config, name, None), int):
                return got
        raise SoftPromptError(
            f"{config.method}: '{symbol}' in the formula '{formula}' is neither {_SIZES} nor a setting that is a "
            "number: tell it in about.symbols"
        )

    def work(node: ast.expr) -> int:
        if isinstance(node, ast.BinOp):
            return int(_OPERATIONS[type(node.op)](work(node.left), work(node.right)))
        if isinstance(node, ast.Name):
            return find(node.id)
        assert isinstance(node, ast.Constant) and isinstance(node.value, int)
        return node.value

    return work(tree)


# --- the page -----------------------------------------------------------------------------------------------------


def table() -> str:
    """The page in Markdown: an overview, and a card for each method, in the groups of `softprompts methods`.

    Raises:
        SoftPromptError: a method says nothing of itself.
    """
    left = known()
    groups = []
    for title, belongs in GROUPS:
        names = [name for name, config in left.items() if belongs(config)]
        groups.append((title, names))
        left = {name: config for name, config in left.items() if name not in names}
    totals = " and ".join(f"{frozen(to):,} of {to}" for to in BACKBONES)
    run = TrainConfig()
    assert run.weight_decay is None and not run.warmup_steps and run.group_by_length
    clipping = "not clipped" if run.max_grad_norm is None else f"clipped to a norm of {run.max_grad_norm:g}"
    parts = [
        f"# Methods\n\nMade by `{_COMMAND}`; edit what `softprompts/methods/` says instead.",
        _rows(
            ["method", f"trained on {BACKBONES[0]}", "folds to"],
            [
                [f"[{_code(name)}](#{name})", _counted(name, {}, BACKBONES[0], share=False), _folds(name)]
                for _, names in groups
                for name in names
            ],
        ),
        "In equations and counts, `l` are virtual tokens; `d` the width of the input embeddings; `S` attention sites "
        "that take a prefix (36 on T5-base: encoder, decoder and cross-attention; 12 on BERT-base); `w` the width of a "
        "prefix key; `L` layers (24 and 12). Shares are of all parameters, in percent, the frozen "
        f"{totals} included; '-' where a backbone has no such attention site. Models with a task head train it beside "
        "the prompt: `d*C + C` numbers for `C` labels on BERT-base.",
        f"All methods train with {run.optimizer}, a {run.schedule} schedule without warm-up, gradients {clipping}, no "
        f"weight decay, and batches of {run.batch_size} rows of similar length. Papers and their code differ in all of "
        "these; recipes at scale `paper` set them "
        "([benchmarks.md](benchmarks.md#where-recipes-differ-from-the-papers)). "
        "A rate that is asked for is that of a method's main component, the first of its card, and moves the others "
        f"with it. Rates and starts are read off a prompt on a random T5 as wide as T5-base ({WIDTH}); ranges that "
        "depend on a width are for this one. A weight decay in a card is the component's own, which a run's does not "
        "reach. A task head, where the model has one, starts as the model makes it and trains at "
        f"{MethodConfig.head_learning_rate:g} where nothing else is said.",
    ]
    for title, names in groups:
        parts += [f"## {title}", *(part for name in names for part in _card(name))]
    return "\n\n".join(parts) + "\n"


def _card(name: str) -> Iterator[str]:
    """All that is said of a method."""
    said, config = about(name), example(name)
    defaults = defaults_of(config)
    yield f'<div class="method" markdown>\n\n### {name}'
    first = what_it_is(known()[name])
    yield f"{_prose(first[0].upper() + first[1:])}."
    yield f"```text\n{said.equation}\n```"
    facts = {
        "Trained": _prose(said.trained),
        "How many": _formula(said),
        "Acts on": _prose(defaults.acts_on),
        "Once per step": _prose(said.once),
        "For every row": _prose(said.per_row),
        "Folds to": _folds(name),
        "Paper": re.sub(r"https?://[^\s;,)]+", r"<\g<0>>", _prose(said.paper)),
        "Where we differ, and why": _prose(said.differs),
    }
    yield "\n".join(f"- **{what}:** {text}" for what, text in facts.items() if text)
    parts = [
        [_code(part.name), f"{part.learning_rate:g}", _decay(part.weight_decay), _prose(part.start)]
        for part in defaults.components
    ]
    if not parts or config.head_learning_rate != MethodConfig.head_learning_rate:
        parts.append([_code("head"), f"{config.head_learning_rate:g}", "-", "the model's initialisation"])
    yield _rows(["component", "rate", "weight decay", "starts from"], parts)
    counted = [[_settings(one), *(_counted(name, one, to) for to in BACKBONES)] for one in ({}, *said.sizes)]
    yield f"{_rows(['trained numbers', *BACKBONES], counted)}\n\n</div>"


def _folds(name: str) -> str:
    return _prose(about(name).folds_to or "nothing plain")


def _decay(weight_decay: float | None) -> str:
    return "-" if weight_decay is None else f"{weight_decay:g}"


def _counted(name: str, settings: Mapping[str, Any], backbone: str, share: bool = True) -> str:
    counted = count(example(name, **settings), backbone)
    if counted is None:
        return "-"
    percent = 100 * counted.trained / (frozen(backbone) + counted.trained)
    return f"{counted.trained:,}" + (f" ({percent:.4f})" if share else "")


def _formula(said: About) -> str:
    """The formula, and what its own symbols stand for."""
    text = _prose(said.count) if arithmetic(said.count) is None else _code(said.count)
    names = {symbol: name if isinstance(name, str) else name[0] for symbol, name in said.symbols.items()}
    if not names:
        return text
    return f"{text} with " + ", ".join(f"`{symbol}` = `{name}`" for symbol, name in names.items())


def _settings(settings: Mapping[str, Any]) -> str:
    def plain(setting: Any) -> str:
        return ",".join(setting) if isinstance(setting, tuple) else str(setting).lower()

    return ", ".join(_code(f"{name}={plain(setting)}") for name, setting in settings.items()) or "defaults"


def _prose(text: str) -> str:
    """Plain text as Markdown: what would be markup outside of backticks is escaped."""
    parts = text.split("`")
    return "`".join(part if index % 2 else re.sub(r"([*<~\\])", r"\\\1", part) for index, part in enumerate(parts))


def _code(text: str) -> str:
    return f"`{text}`"


def _rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; numbers to the right."""
    sides = ["---:" if column.endswith(BACKBONES) else "---" for column in columns]
    lines = [columns, sides, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    print(table(), end="")
