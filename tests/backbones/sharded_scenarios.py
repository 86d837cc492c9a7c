"""What two processes do together in test_sharded.py: training of sharded models."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import tiny
import torch

import softprompts as sp

CASES = [("bert", "prompt-tuning"), ("bert", "lora"), ("llama", "prompt-tuning"), ("llama", "prefix-tuning")]
LAYERS = {"bert": ["BertLayer"], "llama": ["LlamaDecoderLayer"]}


def made(family: str, method: str, folder: Path | None = None) -> Any:
    """An attached model with its prompt; ``folder`` holds the backbone that is loaded in parts."""
    base = tiny.model(family, torch.float32)
    if folder is not None:
        base = type(base).from_pretrained(folder)
    model = sp.attach(base, tiny.METHODS[method], name=method, seed=0)
    return model.train()


def batch(family: str) -> dict[str, torch.Tensor]:
    """Four rows with as many labels each, so that processes have means over as many."""
    inputs = tiny.batch(family, rows=4)
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    if family == "llama":
        inputs["input_ids"] = inputs["input_ids"].clamp(min=3)
        inputs["labels"] = inputs["input_ids"].clone()
        inputs["labels"][:, :3] = -100
    return inputs


def optimizer_of(model: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)


def alone(family: str, method: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    model = made(family, method)
    optimizer, losses = optimizer_of(model), []
    for _ in range(3):
        loss = model(**batch(family)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {key: value.detach().clone() for key, value in model.prompts.state_dict().items()}


def mean(loss: torch.Tensor) -> float:
    total = loss.detach().clone()
    torch.distributed.all_reduce(total)
    return total.item() / torch.distributed.get_world_size()


def share(family: str) -> dict[str, torch.Tensor]:
    rank = torch.distributed.get_rank()
    return {key: value[2 * rank : 2 * rank + 2] for key, value in batch(family).items()}


def fsdp(family: str, method: str, out: Path) -> dict[str, Any]:
    """Accelerate's own preparation for FSDP2, which it offers for accelerators alone: its check is gone past."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.utils import DistributedType
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.tensor import DTensor

    accelerator = Accelerator(cpu=True)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=LAYERS[family],
        cpu_ram_efficient_loading=False,
        state_dict_type="FULL_STATE_DICT",
    )
    accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
    model = made(family, method)
    model, optimizer = accelerator.prepare(model, optimizer_of(model))
    losses = []
    for _ in range(3):
        loss = model(**share(family)).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(mean(loss))
    parts = [isinstance(parameter, DTensor) for parameter in model.parameters()]
    # What Accelerator.get_state_dict asks for.
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    model.save_prompt(method, out / "own")
    # As Trainer does it.
    model.save_pretrained(out / "trainer", state_dict=state, is_main_process=accelerator.is_main_process)
    refused = ""
    try:
        model.add_prompt("late", tiny.METHODS[method])
    except sp.SoftPromptError as error:
        refused = str(error)
    return {"losses": losses, "parts": all(parts), "refused": refused}


def zero3(family: str, method: str, out: Path, init: bool = False) -> dict[str, Any]:
    """DeepSpeed's engine; with ``init`` the backbone is loaded in parts, and attached so."""
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig

    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "gradient_clipping": 0.0,  # which is 1 by default
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    folder = out / "backbone"
    if init and torch.distributed.get_rank() == 0:
        tiny.model(family, torch.float32).save_pretrained(folder)
    torch.distributed.barrier()
    kept = HfDeepSpeedConfig(config) if init else None  # transformers heeds it while it lives
    model = made(family, method, folder if init else None)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer_of(model), config=config)
    losses = []
    for _ in range(3):
        loss = engine(**share(family)).loss
        engine.backward(loss)
        engine.step()
        losses.append(mean(loss))
    parts = [parameter.numel() == 0 for parameter in model.parameters()]
    model.save_prompt(method, out / "own")
    del kept
    return {"losses": losses, "parts": all(parts), "sites": len(model._softprompt_state.backbone.sites)}


def main() -> None:
    kind, out = sys.argv[1], Path(sys.argv[2])
    if kind != "fsdp":
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo")
    found = {}
    cases = CASES if kind != "zero3-init" else [("llama", "prompt-tuning"), ("llama", "prefix-tuning")]
    for family, method in cases:
        folder = out / f"{family}-{method}"
        if kind == "fsdp":
            found[folder.name] = fsdp(family, method, folder)
        else:
            found[folder.name] = zero3(family, method, folder, init=kind == "zero3-init")
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        (out / "found.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
