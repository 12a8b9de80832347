"""What `dira run` does, from Python: resolve a recipe, run it, load the weights, take features.

python examples/run_from_python.py runs/from-python
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from dira_core import gather, load, pool, resolve, run


def main(folder: Path) -> None:
    """Pretrain on a few made-up radiographs and encode an image of one's own."""
    asked = gather(preset="tiny", recipe=Path(__file__).with_name("recipe.toml"))
    result = run(resolve(asked).recipe, folder)
    print(result.status, "after", result.summary["steps"], "steps")

    pretrained = load(result.folder)
    pixels = np.arange(96 * 96, dtype=np.uint16).reshape(1, 96, 96)  # or the path of a file
    with torch.no_grad():
        features = pool(pretrained.backbone(pretrained.preprocess(pixels))[-1])
    print("features", tuple(features.shape))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
