"""Whether a run's memory grows: that of its process after every step, window by window.

    dira data cache cxr --out cxr-cache
    python examples/benchmarks/memory_drift.py cxr-cache runs/drift --steps 600 --window 100

The run is a whole one: from the cache or folder that is given, logged at every step, saved at the
end of every window. What is read is the memory that the process has written to and shares with
nobody (`Private_Dirty` of /proc/self/smaps_rollup: Linux only), between two steps, when nothing of
a step is left but what is kept. Pages of a cache that is mapped do not count. The first window
warms up; printed are the least, the median and the most of each, and the growth of the median from
the second window to the last.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path

from dira_core import Progress, gather, resolve, run
from dira_core.build import build_source


class Meter:
    """Watch a run, and read its memory after every step in MiB."""

    def __init__(self) -> None:
        self.mib: list[float] = []

    def stepped(
        self, progress: Progress, metrics: Mapping[str, float], speed: Mapping[str, float]
    ) -> None:
        """Read the memory of this process."""
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
            if line.startswith("Private_Dirty:"):
                self.mib.append(int(line.split()[1]) / 1024)

    def said(self, message: str) -> None:
        """Show one line."""
        print(message, flush=True)


def main() -> None:
    """Run, and say how memory grew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="a cache, or what else `dira run --data` takes")
    parser.add_argument("folder", type=Path, help="of the run")
    parser.add_argument("--disc", default="mocov2")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=32, help="of a view in px")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=600, help="at least, whole epochs")
    parser.add_argument("--window", type=int, default=100, help="steps of a window")
    asked = parser.parse_args()

    assignments = [
        *(f"discriminator={asked.disc}", "restorer=unet", "adversary=patchgan"),
        *(f"backbone={asked.backbone}", f"views.size={asked.size}", "log.every=1"),
        *(f"train.batch_size={asked.batch_size}", f"checkpoint.every_steps={asked.window}"),
    ]
    recipe = resolve(gather(preset="fixed", assignments=assignments, data=asked.data)).recipe
    epochs = -(-asked.steps // (len(build_source(recipe)) // asked.batch_size))
    train = recipe.train.model_copy(update={"epochs": epochs})
    meter = Meter()
    run(recipe.model_copy(update={"train": train}), asked.folder, display=meter)

    windows = [
        meter.mib[start : start + asked.window]
        for start in range(0, len(meter.mib) - asked.window + 1, asked.window)
    ]
    for number, found in enumerate(windows):
        spread = f"{min(found):8.1f} {statistics.median(found):8.1f} {max(found):8.1f} MiB"
        print(f"steps {number * asked.window + 1:5} to {(number + 1) * asked.window:5} {spread}")
    first, last = (statistics.median(windows[number]) for number in (1, -1))
    print(f"growth {100 * (last / first - 1):.2f} % over {(len(windows) - 2) * asked.window} steps")


if __name__ == "__main__":
    main()
