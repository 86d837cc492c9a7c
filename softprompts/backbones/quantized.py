"""Backbones whose frozen weights are kept in 8 or 4 bits: loading them, and looking into them.

The packing and the products are the backend's, bitsandbytes or torchao, through transformers' quantization configs:

    nf4           4 bits, NormalFloat, with double quantisation (Dettmers et al., QLoRA, arXiv 2305.14314)
    fp4           4 bits, floating point, with double quantisation
    int8          8 bits, activations too (Dettmers et al., LLM.int8(), arXiv 2208.07339)
    torchao-int8  8 bits, weights only, one scale per output

Prompts, prefixes, LoRA's matrices and task heads stay in float32, and only they get gradients. What needs the
backbone's weights as numbers (`full`) cannot be put on quantised layers; what looks at embeddings or at the output of a
layer can.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from softprompts.errors import SoftPromptError, nearest

AS_TRAINED = "as trained"  # in place of a key of `BACKENDS`: as the saved prompt says
_BITSANDBYTES, _TORCHAO = "bitsandbytes", "torchao"
# The package that each needs, and the devices that torchao has kernels for; bitsandbytes lists its own.
BACKENDS = {"nf4": _BITSANDBYTES, "fp4": _BITSANDBYTES, "int8": _BITSANDBYTES, "torchao-int8": _TORCHAO}
_TORCHAO_DEVICES = ("cpu", "cuda", "xpu")
_REPACKS = "support_avx512bf16_for_cpu"
_PACKED = ("Params4bit", "Int8Params")


def require_backend(name: str, device: torch.device | str = "cpu") -> None:
    """Makes sure that a quantisation can be had on a device, before a model is loaded for it.

    Raises:
        SoftPromptError: no such quantisation, its package is missing, or it has nothing for the device.
    """
    if name not in BACKENDS:
        raise SoftPromptError(f"unknown quantisation '{name}'; {nearest(name, BACKENDS)}")
    package, kind = BACKENDS[name], torch.device(device).type
    if importlib.util.find_spec(package) is None:
        raise SoftPromptError(f"quantize={name} needs {package}: pip install {package}")
    if package == _BITSANDBYTES:
        devices = sorted(getattr(importlib.import_module(package), "supported_torch_devices", {"cuda"}))
    else:
        devices = list(_TORCHAO_DEVICES)
    if kind not in devices:
        raise SoftPromptError(f"quantize={name}: {package} has nothing for {kind}, only for {', '.join(devices)}")


def quantization_config(name: str, skip: Sequence[str] = ()) -> Any:
    """Returns the ``quantization_config`` of ``from_pretrained``; the modules ``skip`` (a head) stay as they are."""
    import transformers

    left = list(skip) or None
    if name == "torchao-int8":
        weight_only = importlib.import_module("torchao.quantization").Int8WeightOnlyConfig()
        return transformers.TorchAoConfig(weight_only, modules_to_not_convert=left)
    if name == "int8":
        # It warns in every product that float32 inputs are rounded to float16 before they are to 8 bits.
        logging.getLogger("bitsandbytes.autograd._functions").addFilter(_no_casting)
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=left)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=name,
        bnb_4bit_use_double_quant=True,
        # Under autocast (bf16=True) the products are in bfloat16 all the same.
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=left,
    )


def _no_casting(record: logging.LogRecord) -> bool:
    return "inputs will be cast" not in record.getMessage()


def name_of(model: Any) -> str | None:
    """Returns how a model is quantised, by a key of `BACKENDS` or transformers' own name; None if it is not."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None or not getattr(model, "is_quantized", False):
        return None
    config = quantizer.quantization_config
    if getattr(config, "load_in_8bit", False):
        return "int8"
    if getattr(config, "load_in_4bit", False):
        return str(config.bnb_4bit_quant_type)
    if type(getattr(config, "quant_type", None)).__name__ == "Int8WeightOnlyConfig":
        return "torchao-int8"
    method = config.quant_method
    return str(getattr(method, "value", method))


def is_packed(tensor: Tensor) -> bool:
    """Whether a parameter is a quantised weight, whose numbers cannot be read or trained as they are."""
    kind = type(tensor)
    return not tensor.is_floating_point() or kind.__name__ in _PACKED or kind.__module__.startswith(f"{_TORCHAO}.")


def holds_packed(module: nn.Module) -> bool:
    """Whether a module has such a weight of its own."""
    return any(tensor is not None and is_packed(tensor) for tensor in module._parameters.values())


def size(parameter: Tensor) -> int:
    """Returns how many numbers a parameter stands for; two numbers of 4 bits share a byte."""
    state = getattr(parameter, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()


def dequantized_weight(module: nn.Module) -> Tensor:
    """Returns the weight ``(out, in)`` of a linear layer as numbers; the backend computes them if it is quantised.

    Raises:
        SoftPromptError: a backend that is not known here.
    """
    weight = cast(nn.Parameter, module.weight)
    if not is_packed(weight):
        return weight.detach()
    if type(weight).__name__ in _PACKED:
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        return cast(Tensor, dequantize_bnb_weight(weight, getattr(module, "state", None))).detach()
    if type(weight).__module__.startswith(f"{_TORCHAO}."):
        return weight.dequantize().detach()
    raise SoftPromptError(f"the weight of a {type(module).__name__} is quantised in a way that cannot be undone here")


def dequantized(module: nn.Module) -> nn.Module:
    """Replaces the quantised linear layers of a module by float32 ones with the numbers that they stand for."""
    if isinstance(module, nn.Linear) and holds_packed(module):
        weight = dequantized_weight(module).float()
        layer = nn.Linear(module.in_features, module.out_features, module.bias is not None, device=weight.device)
        layer.weight.data.copy_(weight)
        if module.bias is not None:
            layer.bias.data.copy_(module.bias.detach())
        return layer.train(module.training)
    for name, child in module.named_children():
        module._modules[name] = dequantized(child)
    return module


def keep_layout(model: nn.Module) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights for inference, and undoes that if it has happened.

    On processors with AVX512-BF16 it repacks them in the first pass in evaluation mode without gradients, such as the
    trial passes of `attach`. Products with repacked weights are in bfloat16, need widths that are multiples of 32, and
    have no gradient: that of a prompt would silently be wrong, as a frozen backbone stays in evaluation mode while its
    prompt trains.
    """
    for module in model.modules():
        if getattr(module, _REPACKS, False):
            module.__dict__[_REPACKS] = False
            if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
                module.state_dict()  # restores the packing


def free_layout(model: nn.Module) -> None:
    """Undoes `keep_layout`."""
    for module in model.modules():
        if _REPACKS in module.__dict__:
            module.__dict__[_REPACKS] = importlib.import_module("bitsandbytes.functional").has_avx512bf16()
