"""All kernels that take prefixes, under the names by which transformers finds them."""

from __future__ import annotations

from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from softprompts.attention import flash, flex, prefix
from softprompts.attention.prefix import Kernel, implementation

# Kernels that write no scores out and take nothing but more keys.
ONLY_KEYS = (*flash.NAMES, *flex.NAMES)

ATTENTION: dict[str, Kernel] = {name: prefix.with_prefix(name) for name in prefix.KERNELS}
ATTENTION |= {name: prefix.with_prefix(name, flash.attend, flash.kernel) for name in flash.NAMES}
ATTENTION |= {name: prefix.with_prefix(name, flex.attend, flex.kernel) for name in flex.NAMES}
for _name, _attend in ATTENTION.items():
    AttentionInterface.register(implementation(_name), _attend)
    AttentionMaskInterface.register(implementation(_name), ALL_MASK_ATTENTION_FUNCTIONS[_name])
