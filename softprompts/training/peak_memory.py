"""The memory that a process or a GPU uses, now and at its peak."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def memory_in_use(device: torch.device) -> int:
    """Bytes in use: by tensors on a GPU, or the process's resident memory."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


class PeakMemory:
    """Peak memory within a context, in bytes: of the GPU's tensors, or the process's resident memory.

    On Linux the kernel keeps the peak; elsewhere on the CPU only what is in use at each reading counts.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._seen = 0

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            try:
                _CLEAR.write_text("5")  # resets the high-water mark
            except OSError:
                self._seen = memory_in_use(self.device)
        return self

    def __exit__(self, *error: Any) -> None:
        return None

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
