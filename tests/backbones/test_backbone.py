"""What is read from a frozen model's config and embeddings."""

from __future__ import annotations

import tiny
import torch

from softprompts.backbones.backbone import Backbone


def test_special_tokens_are_those_that_the_config_names() -> None:
    model = tiny.model("llama")
    model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id = None, 1, [2, 7]
    assert Backbone(model).special_ids == {1, 2, 7}


def test_rows_that_round_the_vocabulary_up_are_no_tokens() -> None:
    model = tiny.model("bert")
    tokens = model.config.vocab_size
    assert Backbone(model).num_tokens == Backbone(model).vocabulary_size == tokens
    model.resize_token_embeddings(tokens + 5)
    model.config.vocab_size = tokens
    backbone = Backbone(model)
    assert (backbone.num_tokens, backbone.vocabulary_size) == (tokens, tokens + 5)


def test_embeddings_heads_and_labels_are_the_models() -> None:
    model = tiny.model("bert")
    backbone = Backbone(model)
    ids = torch.tensor([3, 1, 3])
    assert torch.equal(backbone.embed(ids), model.get_input_embeddings().weight[ids])
    assert backbone.heads == {"classifier": model.classifier}
    assert backbone.labels == (model.config.num_labels, model.config.id2label, model.config.label2id)
