"""How much memory a run takes at its peak."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import psutil
import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Peak memory within a context, in bytes: what the GPU's allocator held, or the process's resident memory.

    On Linux the kernel keeps the mark; elsewhere on the CPU only what is held when asked is seen.
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
                self._seen = psutil.Process().memory_info().rss
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def read(self) -> int:
        """The peak so far."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        if not self._seen and _STATUS.exists():
            for line in _STATUS.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        self._seen = max(self._seen, psutil.Process().memory_info().rss)
        return self._seen
