"""`softprompts methods`."""

from __future__ import annotations

from saved import Cli


def test_methods_lists_each_method_with_its_settings_in_80_columns(cli: Cli) -> None:
    out = cli.fine("methods").out
    for name in ("prompt-tuning", "prefix-tuning", "superpos", "ept", "multi-mask", "selective-prefix", "head-only"):
        assert f"│ {name} " in out
    assert "num_masks" in out and "folded" not in out
    assert max(map(len, out.splitlines())) <= 80
