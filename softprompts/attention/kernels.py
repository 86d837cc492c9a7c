"""All kernels that take prefixes, under the names by which transformers finds them."""

from __future__ import annotations

from transformers.integrations.flash_attention import flash_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from softprompts.attention import flash, flex, prefix
from softprompts.attention.prefix import Kernel, implementation

ATTENTION: dict[str, Kernel] = {}


def _register(name: str, attend: Kernel) -> None:
    ATTENTION[name] = attend
    AttentionInterface.register(implementation(name), attend)
    AttentionMaskInterface.register(implementation(name), ALL_MASK_ATTENTION_FUNCTIONS[name])


def takes_prefixes(name: str) -> bool:
    """Whether a kernel takes prefixes, as FlashAttention from the hub does too, under the names that it has there."""
    if name not in ATTENTION and "flash" in name and ALL_ATTENTION_FUNCTIONS.get(name) is flash_attention_forward:
        _register(name, prefix.with_prefix(name, flash.attend, flash.kernel))
    return name in ATTENTION


def only_keys(name: str) -> str:
    """The name of a kernel that shows no scores and takes nothing but more keys; "" for others."""
    return "" if name in prefix.KERNELS else name


for _name in prefix.KERNELS:
    _register(_name, prefix.with_prefix(_name))
for _name in flash.NAMES:
    _register(_name, prefix.with_prefix(_name, flash.attend, flash.kernel))
for _name in flex.NAMES:
    _register(_name, prefix.with_prefix(_name, flex.attend, flex.kernel))
