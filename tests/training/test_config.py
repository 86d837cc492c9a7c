import json

import pytest

from softprompts import SoftPromptError
from softprompts.training import TrainConfig


def test_round_trip_through_json() -> None:
    for head in (None, "main", 0.1):
        config = TrainConfig(max_steps=7, learning_rates={"router": 1e-3}, warmup_ratio=0.1, head_learning_rate=head)
        assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_ids_are_older_than_the_heads_rate() -> None:
    # It is left out where the head has the rate that it always had.
    for given in ({}, {"learning_rates": {"prefix": 0.1}}, {"learning_rate": 0.1, "learning_rates": {"head": 0.2}}):
        assert "head_learning_rate" not in TrainConfig(**given).to_dict()
    assert TrainConfig(learning_rate=0.1).to_dict()["head_learning_rate"] is None
    for rate in ("main", 0.1):
        assert TrainConfig(head_learning_rate=rate).to_dict()["head_learning_rate"] == rate


def test_runs_of_former_versions_still_load() -> None:
    assert TrainConfig.from_dict({"epochs": 2, "compile": True}) == TrainConfig(epochs=2)
    with pytest.raises(SoftPromptError, match="training has no setting 'compile'"):
        TrainConfig(compile=True)


def test_a_run_that_groups_rows_by_length_has_the_id_that_it_had_before_one_could_choose() -> None:
    grouped, shuffled = TrainConfig(max_steps=7), TrainConfig(max_steps=7, group_by_length=False)
    assert "group_by_length" not in grouped.to_dict()
    assert shuffled.to_dict() == {**grouped.to_dict(), "group_by_length": False}
    assert TrainConfig.from_dict(shuffled.to_dict()) == shuffled != TrainConfig.from_dict(grouped.to_dict())


def test_unknown_field_names_the_nearest() -> None:
    with pytest.raises(SoftPromptError, match="no setting 'learning_rte'; did you mean 'learning_rate'"):
        TrainConfig.from_dict({"learning_rte": 1})


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_steps": 0}, "max_steps"),
        ({"epochs": 1.5}, "epochs"),
        ({"batch_size": True}, "batch_size"),
        ({"eval_batch_size": -1}, "eval_batch_size"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps"),
        ({"optimizer": "sgd"}, "optimizer must be one of adamw, adafactor"),
        ({"schedule": "cosin"}, "schedule"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"head_learning_rate": 0}, "head_learning_rate must be a number above 0 or 'main', not 0"),
        ({"head_learning_rate": True}, "head_learning_rate must be a number above 0 or 'main'"),
        ({"head_learning_rate": "fast"}, "head_learning_rate must be a number above 0 or 'main', not 'fast'"),
        ({"learning_rates": 0.1}, "learning_rates"),
        ({"learning_rates": {"head": -1}}, "learning_rates.head"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"warmup_ratio": 1.1}, "warmup_ratio"),
        ({"warmup_steps": 1, "warmup_ratio": 0.1}, "not both"),
        ({"max_grad_norm": 0}, "max_grad_norm"),
        ({"eval_every": 0}, "eval_every"),
        ({"patience": 0}, "patience"),
        ({"seed": -1}, "seed"),
        ({"bf16": None}, "bf16"),
        ({"backbone_dropout": 1}, "backbone_dropout"),
    ],
)
def test_bad_values_are_refused_in_one_line(fields: dict, named: str) -> None:
    with pytest.raises(SoftPromptError, match=named) as error:
        TrainConfig(**fields)
    assert "\n" not in str(error.value)


def test_warmup() -> None:
    assert TrainConfig(warmup_steps=7).warmup(100) == 7
    assert TrainConfig(warmup_ratio=0.06).warmup(101) == 7
    assert TrainConfig().warmup(100) == 0
