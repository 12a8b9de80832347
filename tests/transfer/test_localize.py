from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import Dira
from PIL import Image
from torch import nn
from torchvision.ops import box_iou

from dira_core import measure_transfer, transfer_plan
from dira_core.errors import CheckpointError, DataError, RecipeError, RunFolderError
from dira_core.lock import owned
from dira_core.testing import TinyBackbone
from dira_core.transfer import boxes
from dira_core.transfer.heatmaps import grad_cam, scaled
from dira_core.transfer.localize import LOCK, end_alike, localize
from dira_core.transfer.networks import Classifier
from dira_core.transfer.overlays import SIDE, coloured, overlay
from dira_core.transfer.truths import read_truths
from dira_core.transfer.tuned import tuned


def random_boxes(rng: np.random.Generator, n: int) -> np.ndarray:
    start = rng.uniform(0, 20, (n, 2))
    return np.stack([start, start + rng.uniform(0.5, 20, (n, 2))], -1)


def xyxy(found: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(found[:, ::-1].transpose(0, 2, 1).reshape(-1, 4).copy())


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(0, 5), m=st.integers(1, 4))
def test_iou_is_torchvisions(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = random_boxes(rng, n), random_boxes(rng, m)
    expected = box_iou(xyxy(a), xyxy(b)).numpy()
    np.testing.assert_allclose(boxes.iou(a, b), expected, rtol=1e-9, atol=1e-12)


def test_iobb_is_the_part_of_the_found_box_that_is_right() -> None:
    truth = np.array([[[0.0, 10.0], [0.0, 10.0]]])
    found = np.array([[[0.0, 10.0], [5.0, 15.0]], [[2.0, 4.0], [2.0, 4.0]], [[10.0, 20], [0, 10]]])
    assert boxes.iobb(found, truth)[:, 0].tolist() == [0.5, 1.0, 0.0]
    assert boxes.iou(found, truth)[:, 0].tolist() == pytest.approx([50 / 150, 4 / 100, 0.0])


def test_each_level_boxes_its_isolated_regions_corners_hold_together() -> None:
    heat = np.zeros((12, 12))
    heat[1:4, 1:4], heat[2, 2] = 100, 200
    heat[4, 4] = 61
    heat[8:10, 6:11] = 60  # not above the level
    found = boxes.detected(heat)
    assert found.tolist() == [[[1, 5], [1, 5]], [[2, 3], [2, 3]]]
    assert boxes.detected(np.zeros((5, 5))).shape == (0, 2, 2)


def test_acc_and_afp_by_hand() -> None:
    cases = [np.array([0.6, 0.2]), np.array([0.3]), np.zeros(0)]
    found = boxes.localisation(cases, (0.1, 0.25, 0.5))
    assert found["acc"] == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    assert found["afp"] == pytest.approx([0, 1 / 3, 2 / 3])
    assert boxes.localisation([], (0.1,)) == {"thresholds": [0.1], "acc": None, "afp": None}


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 4))
def test_chance_is_the_covered_part_of_the_frame(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 20, (n, 2))
    some = np.stack([start, start + rng.integers(1, 15, (n, 2))], -1)
    frame = np.array([[4, 24], [2, 22]])
    drawn = np.zeros((40, 40), bool)
    for (top, bottom), (left, right) in some:
        drawn[top:bottom, left:right] = True
    assert boxes.covered(some.astype(float), frame) == pytest.approx(drawn[4:24, 2:22].mean())


class Fixed(nn.Module):
    """A backbone whose deepest map is the image itself, three times."""

    channels = (3,)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images * torch.tensor([1.0, 2.0, -1.0]).view(1, 3, 1, 1)]


def test_grad_cam_is_the_formula_of_its_paper() -> None:
    classifier = Classifier(Fixed(), 2).eval()  # type: ignore[arg-type]
    weight = torch.tensor([[0.5, 0.25, 0.0], [1.0, -1.0, 2.0]])
    classifier.head.weight.data.copy_(weight)
    image = torch.rand(2, 1, 6, 6)
    found = grad_cam(classifier, image, torch.tensor([0, 1]))
    maps = Fixed()(image)[0]
    # of a linear head on averages the gradient's mean is weight / 36
    cam = torch.relu((weight[[0, 1]][:, :, None, None] / 36 * maps).sum(1))
    np.testing.assert_allclose(found, scaled(cam).numpy(), atol=1e-3)
    assert not found[1].any()  # negative everywhere: nothing speaks for it
    assert found[0].min() == 0
    assert found[0].max() == 255


def test_grad_cam_of_a_network_has_the_size_of_its_image() -> None:
    classifier = Classifier(TinyBackbone(), 3).eval()
    found = grad_cam(classifier, torch.rand(4, 1, 32, 32), torch.tensor([0, 1, 2, 0]))
    assert found.shape == (4, 32, 32)
    assert np.isfinite(found).all()


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_boxes_of_one_finding_are_one_truth(tmp_path: Path) -> None:
    file = write(
        tmp_path / "b.csv",
        "image,label,x,y,w,h",
        "a.png,opacity,1,2,3,4",
        "a.png,opacity,10,20,5,5",
        "a.png,Mass,0,0,9,9",
    )
    one, two = read_truths(file, {"opacity": "Pneumonia"})
    assert (one.image, one.label) == ("a.png", "Pneumonia")
    assert one.boxes.tolist() == [[[2, 6], [1, 4]], [[20, 25], [10, 15]]]
    assert two.label == "Mass"


def test_nihs_own_list_is_read(tmp_path: Path) -> None:
    file = write(
        tmp_path / "BBox_List_2017.csv",
        "Image Index,Finding Label,Bbox [x,y,w,h],,,",
        "00013118_008.png,Atelectasis,225.084745762712,547.019216763771,86.77966,79.186440,,,",
    )
    (truth,) = read_truths(file, {})
    assert truth.image == "00013118_008.png"
    assert truth.boxes[0, :, 0].tolist() == [547.019216763771, 225.084745762712]


def test_what_nihs_list_calls_otherwise_is_renamed_in_that_list_alone(tmp_path: Path) -> None:
    header = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
    nih = write(tmp_path / "a.csv", header, "a.png,Infiltrate,1,1,5,5,,,")
    own = write(tmp_path / "b.csv", "image,label,x,y,w,h", "a.png,Infiltrate,1,1,5,5")
    assert [read_truths(file, {})[0].label for file in (nih, own)] == ["Infiltration", "Infiltrate"]


def test_masks_are_truths_and_empty_ones_are_not(tmp_path: Path) -> None:
    mask = np.zeros((20, 20), np.uint8)
    Image.fromarray(mask).save(tmp_path / "empty.png")
    mask[2:5, 3:9] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    file = write(tmp_path / "m.csv", "image,label,mask", "a.png,x,m.png", "b.png,x,empty.png")
    (truth,) = read_truths(file, {})
    assert truth.boxes.tolist() == [[[2, 5], [3, 9]]]
    assert truth.mask is not None
    assert truth.mask.sum() == 18


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("image,label", "a,b"), "has neither the columns image, label, x, y, w, h"),
        (
            ("image,label,x,y,w,h", "a,b,1,2,3,4", "a,b,1,2,3,wide"),
            "line 3 of 'b.csv': a box is four numbers, got '1, 2, 3, wide'",
        ),
        (("image,label,x,y,w,h", "a,b,1,2,3,0"), "line 2 of 'b.csv': a box has a width and a hei"),
        (("image,label,mask", "a,b,no.png"), "line 2 of 'b.csv': mask 'no.png': no such file"),
        (("image,label,x,y,w,h,X", "a,b,1,2,3,4,5"), "several columns 'x' and 'X'"),
        (("image;label;x;y;w;h", "a;b;1;2;3;4"), "separated by ';', dira reads commas"),
    ],
)
def test_files_that_hold_no_truth_say_why(
    tmp_path: Path, lines: tuple[str, ...], message: str
) -> None:
    with pytest.raises((DataError, RecipeError), match=message):
        read_truths(write(tmp_path / "b.csv", *lines), {})


def test_columns_of_boxes_are_found_in_any_case(tmp_path: Path) -> None:
    (truth,) = read_truths(write(tmp_path / "b.csv", "Image,LABEL,X,Y,W,H", "a,b,1,2,3,4"), {})
    assert truth.boxes.tolist() == [[[2, 6], [1, 4]]]


def test_masks_of_one_finding_that_differ_in_size_are_refused(tmp_path: Path) -> None:
    for side in (8, 9):
        Image.new("L", (side, side), 255).save(tmp_path / f"{side}.png")
    file = write(tmp_path / "m.csv", "image,label,mask", "a,x,8.png", "a,x,8.png", "a,x,9.png")
    with pytest.raises(DataError, match="line 4 of 'm.csv': masks of 'a' differ in size"):
        read_truths(file, {})


def test_an_overlay_shows_the_image_and_beside_it_heat_and_boxes() -> None:
    heat = np.zeros((16, 16))
    heat[4:8, 4:8] = 255
    box = np.array([[[4, 8], [4, 8]]])
    picture = np.asarray(overlay(np.full((16, 16), 0.5), heat, box, box))
    assert picture.shape == (SIDE, 2 * SIDE, 3)
    edge = 4 * SIDE // 16
    assert picture[edge, edge].tolist() == [0, 255, 0]
    assert picture[edge, SIDE + edge].tolist() == [255, 255, 255]
    middle = picture[6 * SIDE // 16, SIDE + 6 * SIDE // 16]
    assert middle[0] > middle[2] + 50  # red
    assert coloured(np.array([[0, 255]])).tolist() == [[[0, 0, 0], [255, 40, 0]]]


@pytest.fixture
def transferred(small_net: None, labelled: Path, tmp_path: Path) -> Path:
    """A network fine-tuned to tell bright discs from dim ones."""
    given = ["backbone=small-net", "size=32", "training.epochs=2", "target.label=finding"]
    measure_transfer("random:0", transfer_plan("csv", str(labelled), given), tmp_path / "done")
    return tmp_path / "done"


def boxes_of(labelled: Path, file: Path) -> Path:
    """Write the box around the disc of every image, from its mask."""
    with labelled.open(newline="") as lines, file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["image", "label", "x", "y", "w", "h"])
        for line in csv.DictReader(lines):
            mask = np.asarray(Image.open(labelled.parent / line["mask"])) > 0
            ((top, bottom), (left, right)) = boxes.regions(mask)[0].tolist()
            label = {"bright": "shining", "dim": "dim"}[line["finding"]]
            writer.writerow([line["image"], label, left, top, right - left, bottom - top])
    return file


def test_only_images_that_did_not_train_are_compared_and_the_command_says_the_same(
    transferred: Path, labelled: Path, tmp_path: Path, dira: Dira
) -> None:
    file = boxes_of(labelled, tmp_path / "boxes.csv")
    lines: list[str] = []
    found = localize(transferred, file, tmp_path / "out", overlays=2, said=lines.append)
    assert lines[0] == "compared: 8 findings in images it has not seen"
    assert any("'shining', not one of the task" in line for line in lines)
    assert "left out: 16 of images the classifier was trained with" in lines
    renamed = {"shining": "bright"}
    found = localize(transferred, file, tmp_path / "out", renamed=renamed, overlays=2)
    assert {name: each["cases"] for name, each in found["findings"].items()} == {
        "dim": 8,
        "bright": 8,
        "all": 16,
    }
    assert json.loads((tmp_path / "out/localization.json").read_text()) == found
    assert len(list((tmp_path / "out/overlays").iterdir())) == 2
    with (tmp_path / "out/localization.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 16
    over = np.mean([float(row["best iobb"]) > 0.5 for row in rows])
    assert found["findings"]["all"]["iobb"]["acc"][2] == pytest.approx(over)
    hits = np.mean([row["pointed inside"] == "1" for row in rows])
    assert found["findings"]["all"]["pointing"] == pytest.approx(hits)
    flags = ["--truth", str(file), "--as", "shining=bright", "--overlays", "0"]
    code, out, _ = dira("localize", str(transferred), *flags)
    assert code == 0
    assert f"{found['findings']['dim']['pointing']:.3f}" in out
    code, _, err = dira("localize", str(transferred), *flags[:3], "shining")
    assert (code, err) == (2, "error: --as takes LABEL=CLASS, got 'shining'\n")
    code, _, err = dira("localize", str(transferred), *flags[:4], "--as", "shining=dim")
    assert (code, err) == (2, "error: --as renames 'shining' twice: to 'bright' or 'dim'?\n")


def test_a_classifier_is_read_back_as_it_was(transferred: Path) -> None:
    ready = tuned(transferred)
    with (transferred / "predictions.csv").open(newline="") as table:
        row = next(csv.DictReader(table))
    names = [ready.target.source.name(index) for index in range(48)]
    batch = ready.task.batch(np.array([names.index(row["image"])]))
    with torch.no_grad():
        probability = ready.classifier(batch.images).softmax(1)[0]
    assert probability[0].item() == pytest.approx(float(row["score bright"]), abs=2e-3)
    assert len(ready.learned) == 32


def test_what_cannot_be_localized_says_the_way_out(transferred: Path, tmp_path: Path) -> None:
    file = write(
        tmp_path / "b.csv", "image,label,x,y,w,h", "00.png,dim,1,2,3,4", "no.png,dim,1,2,3,4"
    )
    message = "nothing to compare with: left out: 1 of images that the task does not have"
    with pytest.raises(DataError, match=message):
        localize(transferred, file, tmp_path / "out")
    with pytest.raises(RecipeError, match="holds no finished transfer"):
        localize(tmp_path, file, tmp_path / "out")
    for renamed, said in (
        ({"dim": "brigth"}, "no class of the task, did you mean 'bright'?; it has: bright, dim"),
        (
            {"dmi": "dim"},
            "label 'dmi', which is to be renamed, did you mean 'dim'?; there are: dim",
        ),
    ):
        with pytest.raises(RecipeError, match=re.escape(said)):
            localize(transferred, file, tmp_path / "out", renamed=renamed)


def test_an_image_is_found_however_its_path_is_written(transferred: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "b.csv", "image,label,x,y,w,h", "./40.png,dim,3,3,4,4")
    assert localize(transferred, file, tmp_path / "out")["findings"]["dim"]["cases"] == 1


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("1.png", "images/1.png", True),
        ("images/1.png", "1.png", True),
        ("set/images/1.png", "images/1.png", True),
        ("train/1.png", "test/1.png", False),
    ],
)
def test_paths_of_the_same_file_end_alike(one: str, other: str, alike: bool) -> None:
    assert end_alike(one, other) is alike


def test_a_folder_of_results_has_one_owner(transferred: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "b.csv", "image,label,x,y,w,h", "40.png,dim,3,3,4,4")
    with owned(tmp_path / "out", LOCK), pytest.raises(RunFolderError, match="out is in use by pid"):
        localize(transferred, file, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]


@pytest.mark.parametrize("damage", ["", "[]", '{"plan"', "{}"])
def test_a_transfer_without_a_result_is_none(transferred: Path, damage: str) -> None:
    (transferred / "result.json").write_text(damage)
    with pytest.raises(RecipeError, match="holds no finished transfer, or its result.json is"):
        tuned(transferred)


@pytest.mark.parametrize("size", [None, 0, 5, 100, -7])
def test_a_network_that_is_damaged_is_named(transferred: Path, size: int | None) -> None:
    path = transferred / "network.safetensors"
    data = path.read_bytes()
    path.unlink()
    if size is not None:
        path.write_bytes(data[:size])
    message = "network.safetensors is missing, damaged or of another network: remove result.json"
    with pytest.raises(CheckpointError, match=message):
        tuned(transferred)


def rewritten(labelled: Path, changes: dict[str, dict[str, str]]) -> None:
    """Change cells of a file of labels, by image."""
    with labelled.open(newline="") as file:
        lines = [line | changes.get(line["image"], {}) for line in csv.DictReader(file)]
    with labelled.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)


ALL = [f"{i:02}.png" for i in range(48)]
SINCE: dict[str, dict[str, dict[str, str]]] = {
    "the parts of two patients swapped": (
        {name: {"split": "test"} for name in ALL[:2]}
        | {name: {"split": "train"} for name in ALL[32:34]}
    ),
    "a class renamed": {ALL[i]: {"finding": "zz"} for i in range(48) if i // 2 % 2},
    "classes exchanged": {ALL[i]: {"finding": ("bright", "dim")[i // 2 % 2]} for i in range(48)},
    "a training image left out": {"00.png": {"split": ""}},
    "patients exchanged": {"00.png": {"patient": "p1"}, "02.png": {"patient": "p0"}},
}


@pytest.mark.parametrize("case", SINCE)
def test_labels_or_parts_that_are_not_those_of_the_transfer_are_refused(
    transferred: Path, labelled: Path, tmp_path: Path, case: str
) -> None:
    before = labelled.read_text()
    rewritten(labelled, SINCE[case])
    file = write(tmp_path / "b.csv", "image,label,x,y,w,h", *(f"{a},dim,9,9,9,9" for a in ALL))
    with pytest.raises(
        DataError, match=r"changed since the transfer \(different: labels\)"
    ) as caught:
        localize(transferred, file, tmp_path / "out")
    assert caught.match("restore them, or transfer again into another --out")
    assert not (tmp_path / "out").exists()
    labelled.write_text(before)
    assert len(tuned(transferred).learned) == 32


def test_an_image_replaced_since_the_transfer_is_refused(transferred: Path, labelled: Path) -> None:
    Image.new("L", (32, 32)).save(labelled.parent / "40.png")
    with pytest.raises(DataError, match=r"different: images\)"):
        tuned(transferred)


@pytest.mark.parametrize("size", [(320, 320), (3, 3), (32, 20)])
def test_a_mask_of_another_size_than_its_image_is_refused(
    transferred: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    Image.new("L", size, 255).save(tmp_path / "m.png")
    file = write(tmp_path / "m.csv", "image,label,mask", "40.png,dim,m.png")
    across = f"the mask of 40.png is {size[0]} x {size[1]} px, the image 32 x 32: give masks of"
    with pytest.raises(DataError, match=f"line 2 of 'm.csv': {across}"):
        localize(transferred, file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("box", ["5000,3,4,4", "3,32,4,4", "-9,3,9,4"])
def test_a_box_outside_of_its_image_is_refused(transferred: Path, tmp_path: Path, box: str) -> None:
    file = write(
        tmp_path / "b.csv", "image,label,x,y,w,h", "40.png,dim,3,3,4,4", f"40.png,dim,{box}"
    )
    x, y, *_ = box.split(",")
    message = rf"a box of 'dim' in 40.png \(x {x}, y {y}\) lies outside of the image, 32 x 32 px"
    with pytest.raises(DataError, match=f"line 3 of 'b.csv': {message}"):
        localize(transferred, file, tmp_path / "out")


def test_a_box_that_reaches_over_the_edge_is_compared(transferred: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "b.csv", "image,label,x,y,w,h", "40.png,dim,-3,30,36,9")
    found = localize(transferred, file, tmp_path / "out", overlays=1)
    assert found["findings"]["dim"]["pointing_by_chance"] == pytest.approx(2 / 32)
