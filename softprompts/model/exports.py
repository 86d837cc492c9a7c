"""What a prompt can be exported as, found out without writing anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from softprompts.errors import SoftPromptError
from softprompts.injection.prompt import require
from softprompts.methods.about import PLAIN_FORMS
from softprompts.model.interop import embeddings, materialize, peft_writing

_CHECKS: dict[str, Callable[[Any, str], object]] = {
    "embeddings": embeddings.tokens_to_export,
    "model": materialize.check_materializable,
    "peft": peft_writing.check_peft,
}


def export_refusals(model: Any, name: str) -> dict[str, str | None]:
    """Why a prompt of an attached model cannot be exported: by each of `PLAIN_FORMS` the reason, None where it can.

    Whether a tokenizer takes a prompt's tokens, or a whole model comes to the same outputs, is found out by writing.

    Raises:
        SoftPromptError: unknown name.
    """
    require(model.prompts, name)
    return {form: _refusal(_CHECKS[form], model, name) for form in PLAIN_FORMS}


def _refusal(check: Callable[[Any, str], object], model: Any, name: str) -> str | None:
    try:
        check(model, name)
    except SoftPromptError as error:
        return str(error)
    return None


def exports_line(method: str, refusals: Mapping[str, str | None], hint: str = "") -> str:
    """A sentence on what a prompt can be exported as; ``hint`` ends it where there are forms that it cannot."""
    fine = [form for form, reason in refusals.items() if reason is None]
    others = [form for form in refusals if form not in fine]
    if not fine:
        return f"{method} cannot be exported here, it runs with this package only{hint}"
    return f"{method} exports as {', '.join(fine)}" + (f", not as {', '.join(others)}{hint}" if others else "")
