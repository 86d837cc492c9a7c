"""Runs that two processes train together. Imported by test_processes.py, and run by it in each of two processes."""

from __future__ import annotations

import hashlib
import os
import random
import runpy
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import tiny

import softprompts as sp
from softprompts.training import Evaluation, Lane, Prediction, TrainConfig, train

toy = runpy.run_path(str(Path(__file__).parent / "conftest.py"))["Toy"]

Settings = dict[str, tuple[sp.MethodConfig, dict[str, Any]]]

BERT: Settings = {
    "masks": (
        sp.MultiMaskConfig(num_virtual_tokens=3, num_masks=2, router_dropout=0.0, l1_lambda=1e-2),
        {"batch_size": 7, "seed": 5, "eval_every": 3},
    ),
    # One batch in eight is a single row, of which one process gets none.
    "single": (tiny.METHODS["prefix-tuning"], {"batch_size": 6, "train": toy.train[:43]}),
    "lonely": (
        sp.MultiMaskConfig(num_virtual_tokens=2, num_masks=3, router_dropout=0.0),
        {"batch_size": 3, "gradient_accumulation_steps": 2, "train": toy.train[:43], "weight_decay": 0.1},
    ),
    "superpos": (tiny.METHODS["superpos"], {"batch_size": 6, "optimizer": "adafactor"}),
    "selective": (tiny.METHODS["selective-prefix"], {"batch_size": 5, "gradient_accumulation_steps": 2}),
    "head": (sp.HeadOnlyConfig(), {"batch_size": 8, "patience": 1, "eval_every": 2}),
}
DRAWING: Settings = {
    "noise": (
        sp.MultiMaskConfig(num_virtual_tokens=3, num_masks=2, router_noise=True),
        {"batch_size": 7, "seed": 5, "eval_every": 3},
    ),
    "dropout": (
        sp.MultiMaskConfig(num_virtual_tokens=3, num_masks=3, router_dropout=0.5),
        {"batch_size": 3, "gradient_accumulation_steps": 2, "train": toy.train[:43], "seed": 4},
    ),
    "consistent": (sp.AdaMixConfig(num_experts=3, bottleneck=3, consistency=1.0), {"batch_size": 5, "seed": 2}),
}
Built = tuple[Any, list[Lane]]


def bert(settings: Settings = BERT) -> Built:
    """Lanes of different methods, odd batches, accumulation, a share without rows."""
    model = toy.model(double=True)
    for i, (name, (config, _)) in enumerate(settings.items()):
        model.add_prompt(name, config, num_labels=2, seed=i)
    model.prompts.double()
    return model, [toy.lane(name, **{"epochs": 2, **fields}) for name, (_, fields) in settings.items()]


def alone() -> Built:
    """A single lane."""
    model = toy.model(double=True)
    model.add_prompt("masks", BERT["masks"][0], num_labels=2, seed=0)
    model.prompts.double()
    return model, [toy.lane("masks", batch_size=7, eval_batch_size=8, max_steps=8, seed=3)]


def head_dropout() -> Built:
    """RoBERTa's classification head has dropout in front of both of its layers."""
    draw = random.Random(3)
    rows = [
        {"input_ids": [draw.randrange(5, 60) for _ in range(draw.randrange(3, 9))], "label": draw.randrange(2)}
        for _ in range(24)
    ]
    model = sp.attach(tiny.model("roberta", classifier_dropout=0.5))
    lanes = []
    for i, name in enumerate(("prompt-tuning", "multi-mask")):
        model.add_prompt(name, tiny.METHODS[name], num_labels=2, seed=i)
        lanes.append(Lane(name, TrainConfig(batch_size=5, epochs=2, seed=i), rows, validation=Evaluation(rows)))
    model.prompts.double()
    return model, lanes


def t5() -> Built:
    """A language model scored by its answers' likelihoods; answers of different lengths."""
    draw = random.Random(1)
    answers = [[10, 2], [11, 12, 2]]
    rows = []
    for _ in range(21):
        label = draw.randrange(2)
        ids = [draw.randrange(15, 60) for _ in range(draw.randrange(2, 8))]
        rows.append({"input_ids": [*ids, 5 + label], "label": label, "labels": answers[label]})
    model = sp.attach(tiny.model("t5"))
    lanes = []
    for i, name in enumerate(("prompt-tuning", "selective-prefix", "masks")):
        model.add_prompt(name, BERT["masks"][0] if name == "masks" else tiny.METHODS[name], seed=i)
        fields = {"batch_size": 3, "gradient_accumulation_steps": 2} if name == "masks" else {"batch_size": 4}
        lanes.append(Lane(name, TrainConfig(epochs=2, **fields), rows, validation=Evaluation(rows, label_ids=answers)))
    model.prompts.double()
    return model, lanes


SCENARIOS: dict[str, Callable[[], Built]] = {"bert": bert, "alone": alone, "t5": t5}


def numbers(built: Built) -> dict[str, Any]:
    """What a run ends in: losses of all steps, results, prompts, and how many rows this process evaluated."""
    model, lanes = built
    losses: dict[str, list[float]] = {lane.name: [] for lane in lanes}

    def watch(lane: Lane) -> None:
        update = lane.update

        def noted(loss: float, norm: float) -> None:
            losses[lane.name].append(loss)
            update(loss, norm)

        lane.update = noted  # type: ignore[method-assign]

    for lane in lanes:
        watch(lane)
    seen = {"train": 0, "eval": 0}
    states: list[str] = []  # of torch's generator, as the prompts of the first lane find it in each training pass

    def count(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen["train" if torch.is_grad_enabled() else "eval"] += 1

    def note(module: Any, _: Any) -> None:
        if module.training:
            states.append(hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest())

    handles = [model.register_forward_pre_hook(count, with_kwargs=True)]
    handles.append(model.prompts[lanes[0].name].method.register_forward_pre_hook(note))
    results = train(model, lanes, pad_id=0)
    for handle in handles:
        handle.remove()
    return {
        "losses": losses,
        "results": {r.name: [r.stop_reason, r.steps, r.best_step, r.score, r.metrics] for r in results},
        "history": {result.name: result.history for result in results},
        "prompts": dict(model.prompts.state_dict()),
        "passes": seen,
        "random states": states,
    }


def resumable(folder: Path) -> Built:
    model = toy.model(double=True)
    model.add_prompt("dropout", DRAWING["dropout"][0], num_labels=2, seed=0)
    model.prompts.double()
    return model, [toy.lane("dropout", folder=folder, batch_size=7, epochs=2, eval_every=2)]


def interrupted_and_resumed(folder: Path, rank: int) -> dict[str, Any]:
    """One process is asked to stop after five steps; both do. New ones go on."""
    model, (lane,) = resumable(folder)
    update = lane.update

    def stopping(loss: float, norm: float) -> None:
        update(loss, norm)
        if lane.step == 4 and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    lane.update = stopping  # type: ignore[method-assign]
    (result,) = train(model, [lane], pad_id=0)
    assert (result.stop_reason, result.steps) == ("interrupted", 5)
    return numbers(resumable(folder))


def writes(folder: Path) -> int:
    """How many files this process writes during a run with a folder."""
    from softprompts.storage import files, run_folder

    count, write, append = 0, files.write_atomic, run_folder.append_metrics

    def counted(*args: Any, **kwargs: Any) -> None:
        nonlocal count
        count += 1
        (append if isinstance(args[1], dict) else write)(*args, **kwargs)

    files.write_atomic = run_folder.append_metrics = counted  # type: ignore[assignment]
    try:
        train(*_plain(folder=folder), pad_id=0)
    finally:
        files.write_atomic, run_folder.append_metrics = write, append
    return count


def _plain(seed: int | None = 0, folder: Path | None = None, **fields: Any) -> Built:
    model = toy.model(double=True)
    model.add_prompt("a", tiny.METHODS["prefix-tuning"], num_labels=2, seed=seed)
    model.prompts.double()
    return model, [toy.lane("a", folder=folder, **{"batch_size": 7, "max_steps": 4, **fields})]


def in_two_processes(out: Path) -> None:
    from accelerate import Accelerator

    from softprompts.processes import leave_group, on_main, synchronized

    torch.set_num_threads(1)
    rank = Accelerator().process_index
    assert Accelerator().num_processes == 2
    found: dict[str, Any] = {}
    for name, build in SCENARIOS.items():
        torch.manual_seed(rank)  # where the caller's generators are must not matter
        found[name] = numbers(build())
    found["drawing"], found["again"] = numbers(bert(DRAWING)), numbers(bert(DRAWING))
    found["head dropout"] = numbers(head_dropout())
    found["resumed"] = interrupted_and_resumed(out / "resumed", rank)
    found["undisturbed"] = numbers(resumable(out / "undisturbed"))
    found["writes"] = writes(out / "written")

    torch.manual_seed(rank)
    found["unseeded"] = numbers(_plain(seed=None))
    found["backbone dropout"] = numbers(_plain(backbone_dropout=True))

    model, (lane,) = _plain()
    lane.validation = replace(lane.validation, predict=lambda model, rows, name: Prediction([rank] * len(rows), None))
    found["own predict"] = numbers((model, [lane]))

    found["on_main"] = on_main(lambda: rank + 10)
    try:
        with synchronized():
            if rank == 1:
                raise OSError("no space left")
    except Exception as error:
        found["failure"] = (type(error).__name__, str(error))
    torch.save(found, out / f"rank{rank}.pt")
    leave_group()


if __name__ == "__main__":
    in_two_processes(Path(sys.argv[1]))
