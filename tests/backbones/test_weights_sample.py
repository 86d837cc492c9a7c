"""Samples of weights tell models of one shape apart, in whatever precision they are read."""

from __future__ import annotations

import tiny
import torch

from softprompts.backbones.weights_sample import alike, sample_of


def test_samples() -> None:
    model = tiny.model("bert", torch.float32)
    table = model.get_input_embeddings().weight.detach()
    sample = sample_of(model)
    rows, columns = ([int((2 * i + 1) / 15 * (size - 1)) for i in range(8)] for size in table.shape)
    assert sample == [float(f"{table[r, c].item():.4g}") for r, c in zip(rows, columns, strict=True)]
    assert alike(sample, sample_of(model.to(torch.bfloat16))) and not alike(sample, sample[:-1])
    with torch.no_grad():
        table += 1e-4 * table.abs().max()
    assert alike(sample, sample_of(model))
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    assert not alike(sample, sample_of(model))
    assert sample_of(model.to("meta")) is None
