"""What the bits of a run depend on besides its recipe."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch

import dira_core


def environment() -> dict[str, Any]:
    """Return versions, platform, instructions, threads and device; nothing that names anybody."""
    return {
        **versions(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def versions() -> dict[str, Any]:
    """Return the versions of everything that computes: equal on all machines of a run."""
    plugins = importlib.metadata.entry_points(group="dira")
    return {
        "python": platform.python_version(),
        "dira": dira_core.__version__,
        "torch": str(torch.__version__),
        **{name: importlib.metadata.version(name) for name in ("torchvision", "numpy", "pillow")},
        "plugins": {p.name: f"{p.dist.name} {p.dist.version}" for p in plugins if p.dist},
    }
