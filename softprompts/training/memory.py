"""Memory: what a step takes, what is in use and what is free, and what to do when it runs out."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn

_CGROUP = Path("/sys/fs/cgroup")
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(should_reduce_batch_size(error))


def release() -> None:
    """Gives unused memory back to the device, after an error."""
    gc.collect()
    clear_device_cache()


def free_memory(device: torch.device) -> int:
    """Bytes that a process can still take: on the device, or of the machine (within the limit of its control group)."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Torch reuses what it holds without using it.
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        limit = int((_CGROUP / "memory.max").read_text()) - int((_CGROUP / "memory.current").read_text())
        free = min(free, limit)
    return int(max(0, free))


def memory_in_use(device: torch.device) -> int:
    """Bytes in use: by tensors on a GPU, or the process's resident memory."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


class PeakMemory:
    """Peak memory since it was made, in bytes: of the GPU's tensors, or the process's resident memory.

    On Linux the kernel keeps the peak; elsewhere on the CPU only what is in use at each reading counts.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._seen = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            _CLEAR.write_text("5")  # resets the high-water mark
        except OSError:
            self._seen = memory_in_use(device)

    def read(self) -> int:
        """The peak so far."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        if not self._seen and _STATUS.exists():
            for line in _STATUS.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        self._seen = max(self._seen, memory_in_use(self.device))
        return self._seen


def step_memory(step: Callable[[], Tensor], model: nn.Module, device: torch.device) -> int:
    """Bytes that one step takes at its peak, beyond those in use before. ``step`` computes a loss.

    On a GPU the allocator counts. On the CPU, where freed pages make resident memory unreliable, these are the tensors
    that the forward pass keeps for the backward pass, each counted once, the model's weights not at all.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        _backward(step())
        return int(torch.cuda.max_memory_allocated(device)) - before
    weights = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = step()
    _backward(loss)
    # Gradients in flight are of the size of the largest few tensors; workspaces come on top.
    return int(1.25 * sum(kept.values()))


def _backward(loss: Tensor) -> None:
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]


@functools.cache
def keep_pages() -> None:
    """Keeps the pages of freed tensors for the next ones, for as long as the process lives.

    glibc gives large blocks back to the system, which then has to clear as many new pages in every step: an eighth and
    more of a training step's time on a CPU.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(trim_threshold, 512 * 2**20)
            mallopt(mmap_threshold, 64 * 2**20)
