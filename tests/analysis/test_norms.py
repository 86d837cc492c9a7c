"""How large prompts are, how far they have moved, and how much attention a plain prefix gets."""

from __future__ import annotations

import csv

import numpy as np
import pytest

import softprompts as sp
from softprompts.analysis import attention_maps, figures, norms_of, open_prompts, sample_of
from softprompts.analysis.saved import DoesNotApplyError
from tests.analysis.reading import Train, raw

PREFIX = sp.PrefixTuningConfig(num_virtual_tokens=3)


def test_norms_of_keys_and_values_and_their_change(train: Train) -> None:
    run = train(PREFIX)
    (saved,) = open_prompts([run])
    norms, why = norms_of(saved)
    assert [each.part for each in norms] == ["keys", "values"] and not why
    # The table (l, 2*S*w): of each site keys, then values.
    sites = len(saved.sites)
    table = raw(run)["method.prefix"].reshape(3, sites, 2, -1)
    start = saved.untrained.state_dict()["prefix"].double().numpy().reshape(3, sites, 2, -1)
    for place, each in enumerate(norms):
        lengths = np.linalg.norm(table[:, :, place], axis=-1).T
        assert np.allclose(each.trained, lengths, rtol=1e-5) and each.change is not None
        added, before = table[:, :, place] - start[:, :, place], start[:, :, place]
        moved = np.linalg.norm(added, axis=-1).T / np.linalg.norm(before, axis=-1).T
        assert np.allclose(each.change, moved, rtol=1e-4) and each.change.min() > 0.01
    (picture,) = figures("norms", [saved])
    lines = list(csv.reader(picture.csv.splitlines()))
    assert len(lines) == 1 + 2 * sites * 3 and lines[1][:3] == ["keys", saved.sites[0], "0"]
    assert float(lines[1][3]) == pytest.approx(float(norms[0].trained[0, 0]), rel=1e-5)


def test_norms_of_tokens_and_of_a_prompt_of_each_row(train: Train) -> None:
    (saved,) = open_prompts([train(sp.PromptTuningConfig(num_virtual_tokens=3))])
    (tokens,), _ = norms_of(saved)
    assert tokens.part == "tokens" and tokens.trained.shape == (1, 3)
    (saved,) = open_prompts([train(sp.MultiMaskConfig(num_virtual_tokens=2, num_masks=2))])
    gated, _ = norms_of(saved, 4)
    assert [each.part for each in gated] == ["keys", "values"]


def test_the_attention_mass_on_a_plain_prefix(train: Train) -> None:
    (saved,) = open_prompts([train(PREFIX)])
    (picture,) = figures("attention", [saved], rows=4)
    seen = attention_maps(saved, sample_of(saved, 4))
    assert seen.after.sum(1).min() > 0.05 and seen.after.sum(1).max() < 1
    assert np.array_equal(seen.before, seen.after)
    assert f"takes {100 * seen.after.sum(1).mean():.1f} % of all attention" in picture.caption
    assert "mask" not in picture.caption and len(picture.figure.axes) == 2  # the map and its colour bar


def test_what_has_no_such_numbers(train: Train) -> None:
    masked, tokens, head = open_prompts(
        [
            train(sp.SelectivePrefixConfig(num_virtual_tokens=3, alpha=2.0, init_std=1.0)),
            train(sp.PromptTuningConfig(num_virtual_tokens=3)),
            train(sp.HeadOnlyConfig()),
        ]
    )
    for saved, what, says in (
        (masked, "attention", "drawn as 'selective'"),
        (tokens, "attention", "no prefix to attend to"),
        (head, "norms", "neither tokens nor a prefix"),
    ):
        with pytest.raises(DoesNotApplyError, match=says):
            figures(what, [saved])
