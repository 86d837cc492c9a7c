"""Checks a method as `softprompts check` does: on small random models of each kind, in float64, line by line.

Each check gives an `Outcome`. Those of sizes and gradients are `softprompts.methods.contract_check`; here are those
that need a model: whether what is saved is what was trained, whether a row is the same alone and among others.
"""

from __future__ import annotations

import copy
import functools
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from softprompts.errors import SoftPromptError, first_line
from softprompts.injection.prompt import seeded
from softprompts.methods.baselines.prefix_tuning import PrefixTuningConfig
from softprompts.methods.contract import Method, MethodConfig
from softprompts.methods.contract_check import gradient_fault, prompt_fault, settings_fault
from softprompts.model.attach import attach

_NAME, _OTHER = "checked", "other"
_LENGTHS = (7, 5, 4)  # tokens of the rows
_TOLERANCE = 1e-5  # of the largest value: in float64, but models turn positions to angles in float32
_IDS: dict[str, Any] = {"vocab_size": 120, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
# At the usual 0.02 models this small hardly look at their input.
_SIZES |= {"initializer_range": 0.3}
_T5: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_T5 |= {"decoder_start_token_id": 0, "dropout_rate": 0.0}


@dataclass(frozen=True)
class Outcome:
    """What a check found.

    Attributes:
        check: its name.
        holds: what holds of a method that passes.
        fault: what is wrong, and what to do; "" where nothing is.
        left_out: why there was nothing to check; "" where there was.
    """

    check: str
    holds: str
    fault: str = ""
    left_out: str = ""


@dataclass
class _Case:
    """A small model with the prompt, moved a little, so that zeros at the start hide nothing; and rows for it."""

    kind: str
    model: Any
    inputs: dict[str, Tensor]  # with labels

    @property
    def method(self) -> Method:
        """The method's module on the model."""
        module: Method = self.model.prompts[_NAME].method
        return module

    def logits(self, names: Any, rows: slice = slice(None), model: Any = None) -> list[Tensor]:
        """Of each row the logits at its real tokens, or those of its one decision or its answer."""
        mask = self.inputs["attention_mask"][rows]
        given = {key: value[rows] for key, value in self.inputs.items()}
        if len(mask) == 1:  # without padding, as it comes alone
            given = {
                key: value[:, mask[0].bool()] if value.shape == mask.shape else value for key, value in given.items()
            }
            mask = given["attention_mask"]
        with torch.no_grad():
            logits = (self.model if model is None else model)(**given, prompt_names=names).logits
        return [row[real.bool()] if self.kind == "decoder" else row for row, real in zip(logits, mask, strict=True)]


def check_method(config: MethodConfig) -> Iterator[Outcome]:
    """Runs all checks on a method.

    Args:
        config: the method with its settings.

    Yields:
        What each check found, in their order; what depends on a check that failed is left out.
    """
    yield _outcome("settings", "are saved and restored unchanged", lambda: settings_fault(config))
    cases: list[_Case] = []
    refused: dict[str, str] = {}  # by reason, the kinds of models that the method does not go with
    fault = ""
    for kind, make in _MODELS.items():
        try:
            cases.append(_case(kind, make(config), config))
        except SoftPromptError as error:
            refused[str(error)] = kind
        except Exception as error:
            fault = fault or f"on the {kind}: {_failed(error)}"
    fault = fault or ("" if cases else "; ".join(refused))
    on = ", ".join(case.kind for case in cases)
    on += "".join(f"; not on the {kind} ({reason})" for reason, kind in refused.items())
    yield Outcome("build", f"a prompt on the {on}; components() has every parameter once", fault)
    for name, holds, check in _CHECKS:
        if fault:
            yield Outcome(name, holds, left_out="what came before has failed")
            continue
        found = _outcome(name, holds, functools.partial(_first_fault, check, cases))
        fault = found.fault if check is _shapes else ""  # nothing else can be told then
        yield found


class _LeftOut(Exception):  # noqa: N818
    """There is nothing to check, for the reason that it says."""


def _outcome(name: str, holds: str, check: Callable[[], str | None]) -> Outcome:
    try:
        return Outcome(name, holds, check() or "")
    except _LeftOut as reason:
        return Outcome(name, holds, left_out=str(reason))
    except Exception as error:
        return Outcome(name, holds, _failed(error))


def _first_fault(check: Callable[[_Case], str | None], cases: list[_Case]) -> str | None:
    for case in cases:
        case.model.eval().zero_grad()
        if fault := check(case):
            return f"on the {case.kind}: {fault}" if len(cases) > 1 else fault
    return None


def _failed(error: Exception) -> str:
    """What was raised, with the last line of the user's own that it passed."""
    if isinstance(error, SoftPromptError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    libraries = (Path(str(sys.modules[name].__file__)).parent for name in ("softprompts", "torch", "transformers"))
    inside = tuple(f"{folder}{os.sep}" for folder in libraries)
    own = [frame for frame in frames if not frame.filename.startswith(inside)] or frames
    return f"{type(error).__name__}: {first_line(error)} ({Path(own[-1].filename).name}, line {own[-1].lineno})"


# --- models and rows --------------------------------------------------------------------------------------------------


def _positions(config: MethodConfig) -> int:
    return 32 + config.input_tokens + config.num_virtual_tokens


def _encoder(config: MethodConfig) -> Any:
    settings = transformers.BertConfig(**_IDS, **_SIZES, max_position_embeddings=_positions(config))
    settings.num_labels, settings.classifier_dropout = 3, 0.0
    return transformers.BertForSequenceClassification(settings)


def _decoder(config: MethodConfig) -> Any:
    room = _positions(config)
    settings = transformers.LlamaConfig(**_IDS, **_SIZES, num_key_value_heads=2, max_position_embeddings=room)
    return transformers.LlamaForCausalLM(settings)


def _encoder_decoder(config: MethodConfig) -> Any:
    settings = transformers.T5Config(**_IDS, **_T5)
    return transformers.T5ForConditionalGeneration(settings)


_MODELS = {"encoder": _encoder, "decoder": _decoder, "encoder-decoder": _encoder_decoder}


def _rows(kind: str) -> dict[str, Tensor]:
    """Rows of different lengths, those of a decoder padded on the left; with labels."""
    draw, width = torch.Generator().manual_seed(1), max(_LENGTHS)
    ids, mask = torch.zeros(len(_LENGTHS), width, dtype=torch.long), torch.zeros(len(_LENGTHS), width, dtype=torch.long)
    for row, length in enumerate(_LENGTHS):
        place = slice(width - length, width) if kind == "decoder" else slice(length)
        ids[row, place], mask[row, place] = torch.randint(5, 120, (length,), generator=draw), 1
    labels = {
        "encoder": torch.tensor([0, 2, 1]),
        "decoder": ids.masked_fill(mask == 0, -100),
        "encoder-decoder": torch.randint(5, 120, (len(_LENGTHS), 3), generator=draw),
    }[kind]
    if kind == "decoder":
        labels[:, :-2] = -100  # the answer, which a prompt must not see
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _case(kind: str, plain: Any, config: MethodConfig) -> _Case:
    with seeded(0):
        model = attach(plain.double().eval(), config, _NAME, seed=2, check=False)  # loading has a seed of its own
        model.add_prompt(_OTHER, PrefixTuningConfig(num_virtual_tokens=3), seed=1)
        model.prompts.double()
        for parameter in model.prompts.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return _Case(kind, model, _rows(kind))


# --- the checks -------------------------------------------------------------------------------------------------------


def _shapes(case: _Case) -> str | None:
    """Looks at what `forward` hands over in the pass of a batch."""
    seen: list[Any] = []
    with case.method.register_forward_hook(lambda module, given, output: seen.append(output)):
        logits = case.logits(_NAME)
    prompt, rows = case.model.prompts[_NAME], len(_LENGTHS)
    for soft in seen:
        if fault := prompt_fault(case.method, soft, rows, len(prompt.sites), *prompt.sizes):
            return fault
    return None if all(torch.isfinite(row).all() for row in logits) else "the outputs of the model are not finite"


def _gradients(case: _Case) -> str | None:
    if next(case.method.parameters(), None) is None:
        raise _LeftOut("it has no parameters")
    case.model.train()
    with seeded(0):
        loss = case.model(**case.inputs, prompt_names=_NAME).loss
    loss.backward()
    return gradient_fault(case.method, least=0.0)


def _repeatable(case: _Case) -> str | None:
    if _difference(case.logits(_NAME), case.logits(_NAME)):
        return "two passes over the same rows differ in eval mode: draw at random only where self.training is true"
    names = ("again-1", "again-2")
    for name in names:
        case.model.add_prompt(name, case.model.prompts[_NAME].config, seed=5)
    one, two = (dict(case.model.prompts[name].method.state_dict()) for name in names)
    for name in names:
        case.model.delete_prompt(name)
    differ = [key for key, value in one.items() if not torch.equal(value, two[key])]
    if differ:
        return f"'{differ[0]}' starts differently with the same seed: draw from torch's global random state alone"
    return None


def _saved(case: _Case) -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        case.model.save_prompt(_NAME, folder)
        case.model.load_prompt(folder, "loaded")
    try:
        loaded = case.model.prompts["loaded"]
        if loaded.config != case.model.prompts[_NAME].method.stored():
            return "the settings that were loaded are not those that were saved: see Method.stored"
        if _difference(case.logits("loaded"), case.logits(_NAME)):
            return (
                "a loaded prompt has other outputs than the one that was saved: what forward needs has to be a "
                "parameter, a buffer (register_buffer) or a setting"
            )
    finally:
        case.model.delete_prompt("loaded")
    return None


def _alone(case: _Case) -> str | None:
    together = case.logits(_NAME)
    for row in range(len(_LENGTHS)):
        if _difference(together[row : row + 1], case.logits(_NAME, slice(row, row + 1))) > _TOLERANCE:
            return (
                "a row alone has other outputs than in a batch with padding: use rows.mean(), rows.max() or rows.mask, "
                "and no statistics over the batch"
            )
    return None


def _mixed(case: _Case) -> str | None:
    names = (_NAME, _OTHER, None)
    mixed = case.logits(list(names))
    for row, name in enumerate(names):
        if _difference(mixed[row : row + 1], case.logits([name] * len(names))[row : row + 1]) > _TOLERANCE:
            whose = "its own rows" if name == _NAME else "rows of another prompt" if name else "rows without a prompt"
            return f"{whose} change in a batch where rows have different prompts"
    return None


def _told(case: _Case) -> str | None:
    """Looks whether what it tells of itself can be computed."""
    seen: list[Any] = []
    with case.method.register_forward_pre_hook(lambda module, given: seen.append(given)):
        case.logits(_NAME)
    rows = seen[0][0] if seen and seen[0] else None
    with torch.no_grad():
        for given in (None, rows):
            case.method.views(given)
            case.method.vitals(given)
    return None


def _folded(case: _Case) -> str | None:
    reason = case.method.cannot_fold()
    if reason is not None:
        raise _LeftOut(reason)
    folded = copy.deepcopy(case.model).fold(_NAME)
    if _difference(case.logits(_NAME, model=folded), case.logits(_NAME)) > _TOLERANCE:
        return "the folded prompt has other outputs: say in cannot_fold() why it has no plain form"
    return None


def _difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference of two lists of tensors, by the largest value; infinite where one is no number."""
    worst = 0.0
    for one, other in zip(ours, theirs, strict=True):
        if not (torch.isfinite(one).all() and torch.isfinite(other).all()):
            return float("inf")
        worst = max(worst, float((one - other).abs().max() / other.abs().max().clamp(min=1)))
    return worst


_CHECKS: tuple[tuple[str, str, Callable[[_Case], str | None]], ...] = (
    ("shapes", "forward returns what the config says, of the right shapes", _shapes),
    ("gradients", "a finite gradient that is not 0 reaches every parameter", _gradients),
    ("repeatable", "a seed gives the same prompt, and eval mode draws nothing", _repeatable),
    ("saved", "a loaded prompt has equal outputs", _saved),
    ("alone", "a row has equal outputs alone and in a padded batch", _alone),
    ("mixed batch", "rows with other prompts, or none, are left alone", _mixed),
    ("views, vitals", "can be computed", _told),
    ("folded", "the folded prompt has equal outputs", _folded),
)
