"""Models in GGUF files: a tiny one is written, then loaded, tuned, and found again by the prompt that was saved."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from saved import Cli, rows, write_csv

import softprompts as sp
from softprompts.backbones import gguf
from softprompts.errors import SoftPromptError
from tests.commands.running import refuse, result

pytest.importorskip("gguf")
_WIDTH, _HEADS, _INNER, _LAYERS = 32, 2, 64, 1


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of one layer, in 4 bits where rows are long enough, with a byte-level tokenizer."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    letters = sorted({*"abcdefghijklmnopqrstuvwxyz:.0123456789", "Ġ", "Ċ"})
    tokens = ["<unk>", "<s>", "</s>", *letters, "Ġg", "oo", "Ġgoo"]
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(_LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(_WIDTH)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ g", "o o", "Ġg oo"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m.role + ': ' + m.content + '</s>' }}{% endfor %}")
    torch.manual_seed(0)

    def add(name: str, *shape: int, packed: bool = True) -> None:
        values = (torch.randn(*shape) * 0.3).numpy() if packed else torch.ones(*shape).numpy()
        kind = GGMLQuantizationType.Q4_0
        if packed:
            writer.add_tensor(f"{name}.weight", quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", values)

    add("token_embd", len(tokens), _WIDTH)
    add("output_norm", _WIDTH, packed=False)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        add(f"blk.0.{name}", _WIDTH, _WIDTH)
    for name, shape in (("ffn_gate", (_INNER, _WIDTH)), ("ffn_up", (_INNER, _WIDTH)), ("ffn_down", (_WIDTH, _INNER))):
        add(f"blk.0.{name}", *shape)
    for name in ("attn_norm", "ffn_norm"):
        add(f"blk.0.{name}", _WIDTH, packed=False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_is_trained_on_and_found_again(
    cli: Cli, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    data = write_csv(tmp_path / "data.csv", rows())
    run = tmp_path / "run"
    cli.fine("train", "-m", "tiny.gguf", "--data", data, "--steps", "2", "--method", "prefix-tuning", "--folder", run)
    saved = sp.load(run)
    assert saved.config._name_or_path == str(file) and saved.dtype == torch.float32
    plain: Any = torch.nn.Linear
    assert all(type(module) is not plain or module.weight.dtype == torch.float32 for module in saved.modules())
    monkeypatch.chdir(tmp_path)  # the file is found from anywhere
    predictor = sp.Predictor(run)
    assert predictor("the film was good").label in ("negative", "positive")
    assert predictor.tokenizer.chat_template and result(run)["model"] == "tiny.gguf"
    moved = tmp_path / "moved.gguf"
    moved.write_bytes(file.read_bytes())
    there = sp.Predictor(run, moved)("the film was good")
    assert there == predictor("the film was good")
    cli.fine("export", run, "--to", "peft", "--out", tmp_path / "peft")


def test_what_cannot_be_read_is_refused(cli: Cli, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_csv(tmp_path / "data.csv", rows())
    refuse(cli, "no such model './none.gguf'", "train", "-m", "./none.gguf", "--data", data)
    (tmp_path / "bad.gguf").write_bytes(b"no model")
    refuse(cli, "the model 'bad.gguf' cannot be loaded from its file", "train", "-m", "bad.gguf", "--data", data)
    refuse(cli, "quantised in the file: leave out --quantize", "train", "-m", file, "--data", data, "--quantize", "nf4")
    assert gguf.located("some/model") == ("some/model", {}) and gguf.located(str(tmp_path)) == (str(tmp_path), {})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SoftPromptError, match="of the extra 'gguf': pip install gguf"):
        gguf.located(str(file))
