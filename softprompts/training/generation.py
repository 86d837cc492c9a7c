"""Text that a language model writes for rows, greedily or drawn at random."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from softprompts.tasks.batches import IGNORED, collate
from softprompts.validation import settings


@settings
class Sampling:
    """How tokens are chosen."""

    owner: ClassVar[str] = "sampling"

    temperature: Annotated[
        float, Field(ge=0, description="0: the likeliest token, always; above: drawn, the more evenly the higher.")
    ] = 0.0
    top_p: Annotated[
        float, Field(gt=0, le=1, description="Draw from the likeliest tokens that together have this probability.")
    ] = 1.0
    seed: Annotated[int, Field(ge=0, description="Of what is drawn.")] = 0

    def arguments(self) -> dict[str, Any]:
        """The arguments of transformers' ``generate``."""
        if not self.temperature:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}


def question_of(kind: str, feature: Mapping[str, Any]) -> dict[str, Any]:
    """A row's input alone: no label of any kind, and without the answer that a causal row may end in."""
    if "choices" in feature:
        if "targets" in feature:  # answers of a language model to one input
            return question_of(kind, feature["choices"][0])
        return {"choices": [question_of(kind, choice) for choice in feature["choices"]]}
    row = {name: list(feature[name]) for name in ("input_ids", "token_type_ids", "places") if name in feature}
    labels = feature.get("labels")
    if kind == "decoder" and isinstance(labels, list | tuple):
        # Only the answer's tokens at the end: a context may not be cut in the middle.
        length = max((i + 1 for i, label in enumerate(labels) if label == IGNORED), default=0)
        row = {name: values[:length] for name, values in row.items()}
    return row


def generated(
    model: Any,
    features: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    pad_id: int,
    new_tokens: int,
    sampling: Sampling,
    ends: Sequence[int] = (),
) -> list[list[int]]:
    """The ids that are generated for each row, up to its end of text or one of ``ends``."""
    decoder = model.backbone_kind == "decoder"
    rows = [question_of(model.backbone_kind, feature) for feature in features]
    batch = collate(rows, pad_id, "left" if decoder else "right")
    inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    end = model.generation_config.eos_token_id
    stops = sorted({*([end] if isinstance(end, int) else end or ()), *ends})
    sequences = model.generate(
        **inputs,
        prompt_names=list(names),
        max_new_tokens=new_tokens,
        num_beams=1,
        pad_token_id=pad_id,
        eos_token_id=stops or None,
        **sampling.arguments(),
    )
    ids = sequences[:, inputs["input_ids"].shape[1] if decoder else 1 :].tolist()
    return [list(itertools.takewhile(lambda token: token not in stops, row)) for row in ids]
