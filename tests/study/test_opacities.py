"""The localisation of examples/studies/radiographs.toml, carried out on a miniature of its set."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from kit import kit
from PIL import Image

from dira_core.study.jobs import RESULT, jobs_of, lay_out
from dira_core.study.plan import Study, read_study
from dira_core.study.work import OVERLAYS, done
from dira_core.study.writing import write_results

EXAMPLE = Path(__file__).parents[2] / "examples/studies/radiographs.toml"
FAST = [
    *("backbone=small-net", "size=32", "precision=fp32", "training.epochs=4"),
    *("training.optimizer.lr=0.01", "training.crop=[0.7, 1.0]"),
]


def miniature(folder: Path) -> None:
    """Write 60 images of 64 px as cxr_nih has them: opacities bright, with boxes of parts of px."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines, boxes = [], []
    for i in range(60):
        ill, part, image = i % 2, "train" if i < 40 else "test", f"images/{i:08}_000.png"
        pixels = rng.integers(0, 80, (64, 64))
        y, x = rng.integers(4, 40, 2)
        if ill:
            pixels[y : y + 20, x : x + 20] += 150
            box = [x + 0.5, y + 0.5, 19.0, 19.0]
            boxes.append([image, i // 2, part, "lung_opacity", *box, "RSNA"])
        Image.fromarray(pixels.astype(np.uint8)).save(folder / image)
        lines.append([image, i // 2 if ill else i + 100, part, "PA", 1 - ill, ill, 0])
    header = ["image", "patient", "split", "view", "no_finding", "Pneumonia", "Pneumothorax"]
    read = ["image", "patient", "split", "label", "x", "y", "w", "h", "annotator"]
    for name, first, rows in (("labels", header, lines), ("boxes", read, boxes)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([first, *rows])


def test_heat_maps_of_the_example_are_compared_with_boxes_and_stand_in_table_7(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = read_study(EXAMPLE).targets["opacities"]
    assert (task.truth, task.data) == ("data/cxr_nih/boxes.csv", "data/cxr_nih/labels.csv")
    miniature(tmp_path / "data/cxr_nih")
    task = task.model_copy(update={"set": [*task.set, *FAST]})
    plan = Study(arms=["random"], seeds=[0], targets={"opacities": task})
    with kit(tmp_path_factory.mktemp("kit")):
        [job] = jobs_of(plan)
        lay_out([job], tmp_path / "study")
        done(job.folder(tmp_path / "study"), job.asked)
        tables = "\n".join(write_results(plan, [job], tmp_path / "study"))
    folder = job.folder(tmp_path / "study")
    found = json.loads((folder / RESULT).read_text())["localization"]["Pneumonia"]
    assert found["cases"] == 10  # of the test part alone
    assert found["pointing"] > 2 * found["pointing_by_chance"] > 0
    assert found["pointing_by_chance"] == pytest.approx(19**2 / 64**2, abs=0.01)
    assert found["iobb"]["acc"] == sorted(found["iobb"]["acc"], reverse=True)
    assert f"| opacities 1 | random | {100 * found['pointing']:.1f} |" in tables
    assert "Table 7" in tables
    assert len([*(folder / "localize/overlays").iterdir()]) == OVERLAYS
