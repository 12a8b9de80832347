from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit import Dira
from PIL import Image
from sklearn.metrics import roc_auc_score

import dira_core
from dira_core import measure_transfer, transfer_plan
from dira_core.cli.transfer import title
from dira_core.errors import DataError, DiraError, RecipeError, RunFolderError
from dira_core.export import build, write_parts
from dira_core.layering import gather
from dira_core.plugins import make
from dira_core.precision import Precision
from dira_core.recipe import to_toml
from dira_core.resolving import resolve
from dira_core.testing import TinyBackbone
from dira_core.transfer import finetune
from dira_core.transfer.finetune import FineTuning
from dira_core.transfer.images import LabelTask, MaskTask
from dira_core.transfer.leaks import Overlap, common
from dira_core.transfer.losses import one_of_several
from dira_core.transfer.networks import classifier, segmenter, start
from dira_core.transfer.opening import check_truth
from dira_core.transfer.plan import Plan
from dira_core.transfer.splits import split_of
from dira_core.weightfiles import Header

pytestmark = pytest.mark.usefixtures("small_net")

SMALL = (
    *("backbone=small-net", "size=32", "precision=fp32", "decoder=unet", "training.batch_size=8"),
    *("training.least_steps=1", "training.least_validation=1"),
)
FAST = ("training.optimizer.lr=0.01", "training.crop=[0.7, 1.0]")
"""For a network of three convolutions, and images that a small crop would leave empty."""


def plan_of(target: str, data: Path, *more: str) -> Plan:
    return transfer_plan(target, str(data), [*SMALL, *more])


def labels_of(data: Path, *more: str) -> Plan:
    return plan_of("csv", data, "target.label=finding", *more)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def pretrained(folder: Path, data: Path) -> Path:
    """Write a run folder as far as a transfer reads it: weights of both parts, and a recipe."""
    torch.manual_seed(1)
    backbone = TinyBackbone()
    chosen: dict[str, Any] = {"name": "unet"}
    restorer = build("restorer", chosen, backbone)
    header = Header(channels=1, size=32, backbone={"name": "small-net"}, restorer=chosen)
    write_parts(folder / "weights", backbone, restorer, header)
    recipe = resolve(gather(data=str(data), preset="fixed")).recipe
    (folder / "recipe.toml").write_text(to_toml(recipe))
    return folder


@pytest.mark.parametrize("way", ["linear", "knn"])
def test_frozen_features_are_scored_twice_and_predictions_give_the_same_scores(
    way: str, labelled: Path, tmp_path: Path
) -> None:
    done = measure_transfer("random:3", labels_of(labelled, f"way={way}"), tmp_path / "out")
    found = json.loads((tmp_path / "out/result.json").read_text())
    assert found == done.result
    assert found["weights"]["weights"] == "random:3"
    assert found["parts"]["train"] == {
        "images": 32,
        "patients": 16,
        "prevalence": {"bright": 0.5, "dim": 0.5},
    }
    assert found["parts"]["test"]["images"] == 16
    for name in ("plain", "re-measured"):
        table = rows(tmp_path / f"out/predictions-{name}.csv")
        truth = [float(row["label bright"]) for row in table]
        scores = [float(row["score bright"]) for row in table]
        assert len(table) == 16
        auc = found["scores"][name]["auc"]["by_class"]["bright"]
        assert roc_auc_score(truth, scores) == pytest.approx(auc)
        assert auc > 0.8


def test_fine_tuning_learns_stops_by_itself_and_repeats_bit_for_bit(
    labelled: Path, tmp_path: Path
) -> None:
    plan = labels_of(labelled, "training.epochs=40", "training.patience=4", *FAST)
    lines: list[str] = []
    one = measure_transfer("random:0", plan, tmp_path / "1", lines.append).result
    two = measure_transfer("random:0", plan, tmp_path / "2").result
    assert one["scores"] == two["scores"]
    assert one["training"] == two["training"]
    course = one["training"]
    assert course["epochs"] in (40, course["best_epoch"] + 4)
    validation = [epoch["validation"] for epoch in course["history"]]
    assert course["best_epoch"] == 1 + int(np.argmin(validation))
    assert min(validation) < validation[0]
    assert one["parts"]["validation"]["images"] == 4
    same = (tmp_path / "1/predictions.csv").read_bytes()
    assert (tmp_path / "2/predictions.csv").read_bytes() == same
    assert not (tmp_path / "1" / finetune.STATE).exists()
    assert any("best so far" in line for line in lines)


def test_too_few_images_to_stop_by_train_as_well_for_a_fixed_time(
    labelled: Path, tmp_path: Path
) -> None:
    more = ("training.least_validation=5", "training.least_steps=7", "training.few_passes=5")
    lines: list[str] = []
    found = measure_transfer(
        "random:0", labels_of(labelled, *more), tmp_path / "out", lines.append
    ).result
    assert found["parts"]["train"]["images"] == 32  # 28, and 4 to stop by
    assert found["parts"]["validation"]["images"] == 0
    course = found["training"]
    assert course["epochs"] == course["best_epoch"] == 3  # of 8 steps: 2 passes of 4 batches
    assert {epoch["validation"] for epoch in course["history"]} == {None}
    assert any(line.startswith("early stop  none") for line in lines)


def test_statistics_of_batches_count_from_the_first_one(labelled: Path) -> None:
    plan = labels_of(labelled, "training.least_steps=6", "training.batch_size=32")
    begun = start("random:0", plan)
    target = make("target", plan.target, begun.prepare.window)
    task = LabelTask(target, begun.prepare, plan, dims=2)
    parts = split_of(target, plan)
    network = classifier(begun, 2, 0)
    seen: list[torch.Tensor] = []
    first = next(m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d))
    first.register_forward_hook(
        lambda module, given, _: seen.append(given[0].mean((0, 2, 3))) if module.training else None
    )
    precision = Precision("fp32", torch.device("cpu"))
    tuning = FineTuning(network, task, one_of_several, parts, plan, precision)
    tuning._epoch()
    assert len(seen) == 6
    assert first.running_mean is not None
    assert torch.allclose(first.running_mean, torch.stack(seen).mean(0), atol=1e-6)


def test_an_image_with_a_mask_is_read_once_for_a_batch_and_what_is_asked_about_it(
    labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of("masks", labelled, "cache_mb=0")
    begun = start("random:0", plan)
    target = make("target", plan.target, begun.prepare.window)
    task = MaskTask(target, begun.prepare, plan, dims=2)
    read, reads = type(target.source).read, []

    def counted(self: object, index: int) -> object:
        reads.append(index)
        return read(self, index)

    monkeypatch.setattr(type(target.source), "read", counted)
    task.batch(np.arange(4))
    task.crops(np.arange(4, 8), 0)
    for index in range(8):
        assert task.spacing(index) is None
        assert task.pixels(index) == (1.0, 1.0)
    assert reads == list(range(8))
    assert task.pixels(8) == (1.0, 1.0)
    assert reads[8:] == [8]


def test_a_killed_fine_tuning_goes_on_and_ends_as_one_that_was_not(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "SAVE_SECONDS", 0.0)
    plan = labels_of(labelled, "training.epochs=6", "training.plateau=1", "seed=5")
    whole = measure_transfer("random:0", plan, tmp_path / "whole").result

    def killed(line: str) -> None:
        if line.startswith("epoch 4 "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_transfer("random:0", plan, tmp_path / "out", killed)
    lines: list[str] = []
    again = measure_transfer("random:0", plan, tmp_path / "out", lines.append).result
    assert "goes on after epoch 3" in lines
    assert again["training"] == whole["training"]
    assert again["scores"] == whole["scores"]


def test_what_is_finished_is_not_done_again_and_another_transfer_needs_another_folder(
    labelled: Path, tmp_path: Path
) -> None:
    plan, folder = labels_of(labelled, "way=knn"), tmp_path / "out"
    first = measure_transfer("random", plan, folder)
    lines: list[str] = []
    assert measure_transfer("random", plan, folder, lines.append) == first
    assert lines == [f"{folder} is done already"]
    other = labels_of(labelled, "way=knn", "k=3")
    with pytest.raises(RunFolderError, match=r"another transfer \(different: plan\)"):
        measure_transfer("random", other, folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("x")
    message = r"something else than a transfer \(1 files or folders, such as notes.txt\): use a new"
    with pytest.raises(RunFolderError, match=message):
        measure_transfer("random", plan, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]  # and no lock


@pytest.mark.parametrize("column", ["finding", "split", "patient"])
def test_a_result_of_other_labels_is_not_taken_for_that_of_these(
    labelled: Path, tmp_path: Path, column: str
) -> None:
    measure_transfer("random", labels_of(labelled, "way=knn"), tmp_path / "out")
    table = rows(labelled)
    for one, two in zip(table[:8], table[34:42], strict=True):  # of training, of testing
        one[column], two[column] = two[column], one[column]
    with labelled.open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)
    with pytest.raises(RunFolderError, match=r"another transfer \(different: labels\)"):
        measure_transfer("random", labels_of(labelled, "way=knn"), tmp_path / "out")


def test_targets_are_alike_where_all_that_is_known_of_their_images_is(labelled: Path) -> None:
    def fingerprint() -> str:
        found: str = make("target", plan_of("masks", labelled).target, "full").fingerprint()
        return found

    before, mask = fingerprint(), labelled.parent / "03-mask.png"
    assert fingerprint() == before
    Image.new("L", (32, 32)).save(mask)
    assert fingerprint() != before


def test_a_transfer_that_measured_nothing_yet_may_be_another_one(
    labelled: Path, tmp_path: Path
) -> None:
    gone, folder = labelled.parent / "40.png", tmp_path / "out"
    gone.rename(tmp_path / "away.png")
    with pytest.raises(DataError, match="40.png"):
        measure_transfer("random", labels_of(labelled, "way=knn"), folder)
    lines = [line for line in labelled.read_text().splitlines() if not line.startswith("40.png")]
    labelled.write_text("\n".join(lines))
    found = measure_transfer("random", labels_of(labelled, "way=knn", "k=3"), folder).result
    assert found["parts"]["test"]["images"] == 15


@pytest.mark.parametrize("way", ["knn", "fine-tune"])
def test_predictions_that_are_gone_are_made_again(labelled: Path, tmp_path: Path, way: str) -> None:
    plan, folder = labels_of(labelled, f"way={way}", "training.epochs=1"), tmp_path / "out"
    measure_transfer("random", plan, folder)
    path = next(folder.glob("predictions*.csv"))
    before = path.read_bytes()
    path.unlink()
    lines: list[str] = []
    measure_transfer("random", plan, folder, lines.append)
    assert lines[0] == f"{path.name} of {folder} is gone: measured again"
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["", "[]", '{"plan"'])
@pytest.mark.parametrize("name", ["asked.json", "result.json"])
def test_a_damaged_record_of_a_transfer_is_named(
    labelled: Path, tmp_path: Path, name: str, damage: str
) -> None:
    measure_transfer("random", labels_of(labelled, "way=knn"), tmp_path / "out")
    (tmp_path / "out" / name).write_text(damage)
    with pytest.raises(RunFolderError, match=f"{name} is damaged: remove its folder"):
        measure_transfer("random", labels_of(labelled, "way=knn"), tmp_path / "out")


def test_a_class_that_no_test_mask_holds_is_said(labelled: Path, tmp_path: Path) -> None:
    plan = plan_of("masks", labelled, "target.classes={disc=255,lung=1}", "training.epochs=1")
    lines: list[str] = []
    found = measure_transfer("random:0", plan, tmp_path / "out", lines.append).result
    assert found["scores"]["fine-tune"]["images_with"] == {"disc": 16, "lung": 0}
    (said,) = [line for line in lines if line.startswith("note")]
    assert "no test mask holds 'lung'" in said


def test_a_fraction_changes_the_training_part_alone(labelled: Path, tmp_path: Path) -> None:
    whole, part = (
        measure_transfer(
            "random", labels_of(labelled, "way=knn", f"fraction={f}"), tmp_path / str(f)
        ).result["parts"]
        for f in (1.0, 0.25)
    )
    assert part["test"] == whole["test"]
    assert 0 < part["train"]["images"] < whole["train"]["images"] / 2


def test_labels_in_columns_are_fine_tuned_one_by_one(labelled: Path, tmp_path: Path) -> None:
    plan = plan_of("csv", labelled, 'target.labels=["bright"]', "training.epochs=25", *FAST)
    found = measure_transfer("random:0", plan, tmp_path / "out").result
    assert list(found["scores"]["fine-tune"]["auc"]["by_class"]) == ["bright"]
    assert found["scores"]["fine-tune"]["auc"]["mean"] > 0.8


def test_masks_are_learned_and_their_scores_are_those_of_the_images(
    labelled: Path, tmp_path: Path
) -> None:
    plan = plan_of("masks", labelled, "training.epochs=15", "training.optimizer.lr=0.01")
    found = measure_transfer("random:0", plan, tmp_path / "out").result
    scores = found["scores"]["fine-tune"]
    assert scores["dice_global"]["mean"] > 0.7
    table = rows(tmp_path / "out/predictions.csv")
    mean = np.mean([float(row["dice foreground"]) for row in table])
    assert scores["dice_per_image"]["mean"] == pytest.approx(mean, abs=1e-5)
    assert scores["hd95_px"]["mean"] is not None
    assert found["decoder"] == "starts afresh, no weights for it"


def test_a_decoder_is_taken_over_but_for_its_last_layer(labelled: Path, tmp_path: Path) -> None:
    run = pretrained(tmp_path / "run", labelled)
    plan = transfer_plan("masks", str(labelled))
    network, said = segmenter(start(str(run), plan), 1, plan)
    before = start(str(run), plan).decoder
    now = network.decoder.state_dict()
    differing = {name for name in before if not torch.equal(before[name], now[name])}
    assert differing == {"head.weight"}  # both biases start at 0
    assert said.endswith("its last layer starts afresh")
    three, _ = segmenter(start(str(run), plan), 3, plan)
    assert three.eval()(torch.rand(2, 1, 32, 32)).shape == (2, 3, 32, 32)
    assert torch.equal(
        three.decoder.state_dict()["blocks.0.conv1.0.weight"], now["blocks.0.conv1.0.weight"]
    )


def test_the_result_says_which_weights_and_which_recipe(labelled: Path, tmp_path: Path) -> None:
    run = pretrained(tmp_path / "run", labelled)
    plan = transfer_plan("csv", str(labelled), ["target.label=finding", "way=knn"])
    found = measure_transfer(run, plan, tmp_path / "out").result["weights"]
    assert found["backbone"] == "small-net"
    assert set(found["sha256"]) == {"backbone.safetensors", "restorer.safetensors"}
    assert len(found["recipe_sha256"]) == 64


def test_test_images_seen_in_pretraining_are_counted(labelled: Path, tmp_path: Path) -> None:
    run = pretrained(tmp_path / "run", labelled)
    plan = transfer_plan("csv", str(labelled), ["target.label=finding", "way=knn"])
    lines: list[str] = []
    found = measure_transfer(run, plan, tmp_path / "out", lines.append).result["pretraining"]
    assert found == {"images": 16, "patients": None, "why_not": "", "untrained": False}
    assert "WARNING: pretraining saw 16 of the test images" in lines
    renamed = resolve(gather(data="phantom", preset="fixed")).recipe
    (run / "recipe.toml").write_text(to_toml(renamed))
    other = measure_transfer(run, plan, tmp_path / "other").result["pretraining"]
    assert other["images"] is None


def test_images_and_patients_are_known_when_their_files_are_gone(
    labelled: Path, tmp_path: Path
) -> None:
    """One test image is a copy under another name, two show a patient of the pretraining."""
    folder = tmp_path / "before"
    folder.mkdir()
    for i in (0, 2, 40, 41):
        shutil.copy(labelled.parent / f"{i:02}.png", folder / f"other-{i}.png")
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 255, (32, 32), np.uint8)).save(folder / "new.png")
    who = ["other-0.png,a", "other-2.png,b", "other-40.png,c", "other-41.png,", "new.png,p21"]
    (folder / "list.csv").write_text("\n".join(["image,patient", *who]))
    given = ["backbone=small-net", "discriminator=simsiam", "restorer=none", "adversary=none"]
    given += ["train.epochs=1", "train.batch_size=4", "views.size=32", "discriminator.dim=8"]
    recipe = resolve(gather(data=str(folder / "list.csv"), assignments=given)).recipe
    dira_core.run(recipe, tmp_path / "run")
    place = tmp_path / "run/weights/seen.safetensors"
    first = place.read_bytes()
    shutil.rmtree(folder)
    plan = labels_of(labelled, "way=knn")
    found = measure_transfer(tmp_path / "run", plan, tmp_path / "out").result["pretraining"]
    assert found == {"images": 2, "patients": 2, "why_not": "", "untrained": False}
    refusing = labels_of(labelled, "way=knn", "seen=refuse")
    with pytest.raises(DataError, match=r"saw 2 of the test images, and patients of the same id"):
        measure_transfer(tmp_path / "run", refusing, tmp_path / "refused")
    alone = tmp_path / "alone.safetensors"
    shutil.copy(tmp_path / "run/weights/backbone.safetensors", alone)
    other = measure_transfer(alone, plan, tmp_path / "alone").result["pretraining"]
    assert other["images"] is None
    shutil.copy(place, tmp_path / "alone.seen.safetensors")
    again = measure_transfer(alone, plan, tmp_path / "again").result["pretraining"]
    assert again == found
    assert place.read_bytes() == first


def test_patients_seen_are_said_where_images_cannot_be_compared() -> None:
    line = Overlap(None, 3, why_not="no digests").line()
    assert line.startswith("WARNING: pretraining saw patients of the same id as those of 3 test")
    assert line.endswith("; no digests")
    assert Overlap(None, why_not="no digests").line().startswith("not known whether")


def test_a_line_about_what_was_seen_does_not_contradict_itself() -> None:
    line = Overlap(0, 3).line()
    assert line == "WARNING: pretraining saw patients of the same id as those of 3 test images"
    with pytest.raises(DataError, match="pretraining saw patients of the same id"):
        Overlap(0, 3).check()
    line = Overlap(0, 0, "nothing is known of 5 of the 9 images it was pretrained on").line()
    assert line.startswith(
        "no test image is known to have been seen in pretraining, but nothing is"
    )
    assert Overlap(0, 0).line() == "no test image was seen in pretraining"
    assert Overlap(None).line() == "not known whether pretraining saw test images"


def test_test_images_seen_in_pretraining_are_refused_before_any_work(
    labelled: Path, tmp_path: Path
) -> None:
    run = pretrained(tmp_path / "run", labelled)
    given = ["target.label=finding", "way=knn", "seen=refuse"]
    plan = transfer_plan("csv", str(labelled), given)
    lines: list[str] = []
    with pytest.raises(DataError, match="pretraining saw 16 of the test images"):
        measure_transfer(run, plan, tmp_path / "out", lines.append)
    assert not any("done" in line for line in lines)
    plan = transfer_plan("csv", str(labelled), [*given, "backbone=small-net", "size=32"])
    untrained = measure_transfer("random:0", plan, tmp_path / "untrained", lines.append)
    assert untrained.result["pretraining"]["untrained"]
    assert "untrained weights saw no image" in lines


def test_labels_between_0_and_1_may_train_but_not_test() -> None:
    check_truth(np.array([[0.0, np.nan], [1, 0]]))
    with pytest.raises(DataError, match="1 test images have labels between 0 and 1"):
        check_truth(np.array([[0.0, np.nan], [0.7, 0]]))


def test_images_are_the_same_by_their_bytes_whatever_their_names(tmp_path: Path) -> None:
    for name, data in (("a", b"one"), ("b", b"two"), ("c", b"four"), ("d", b"one")):
        (tmp_path / name).write_bytes(data)
    a, b, c, d = (tmp_path / name for name in "abcd")
    assert common([a, b, c], [d]) == 1
    assert common([a, d], [b, c]) == 0


@pytest.mark.parametrize(
    ("weights", "more", "error", "message"),
    [
        ("nowhere", (), RecipeError, "no weights 'nowhere': give a run folder"),
        ("random:x", (), RecipeError, "random or random:SEED, got 'random:x'"),
        ("random", ("way=linear", "target.label=missing"), RecipeError, "no column 'missing'"),
    ],
)
def test_what_cannot_be_measured_says_the_way_out(
    weights: str,
    more: tuple[str, ...],
    error: type[DiraError],
    message: str,
    labelled: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=message):
        measure_transfer(weights, labels_of(labelled, *more), tmp_path / "out")


@pytest.mark.parametrize("way", ["fine-tune", "linear"])
def test_a_network_of_other_axes_than_the_images_is_told_so(
    way: str, labelled: Path, tmp_path: Path
) -> None:
    network = ["backbone.name=unet3d", "backbone.width=4", "size=[8,32,32]"]
    asked = ["target.label=finding", f"way={way}", *network]
    plan = transfer_plan("csv", str(labelled), asked)
    with pytest.raises(DataError, match=r"png has 2 axes, and the backbone works on 3: take other"):
        measure_transfer("random", plan, tmp_path / "out")


def test_folders_are_named_in_full_in_the_name_of_a_result(tmp_path: Path) -> None:
    names = ["CheXpert-v1.0", "CheXpert-v1.0-small"]
    for name in names:
        (tmp_path / name).mkdir()
    plans = [transfer_plan("chexpert", str(tmp_path / name)) for name in names]
    assert [title("runs/a", plan) for plan in plans] == [
        f"a-chexpert-{name}-fine-tune-1-seed0" for name in names
    ]


def test_frozen_features_have_no_masks(labelled: Path, tmp_path: Path) -> None:
    plan = plan_of("masks", labelled, "way=linear")
    with pytest.raises(RecipeError, match="--way linear needs labels of whole images"):
        measure_transfer("random", plan, tmp_path / "out")


def test_an_unreadable_image_is_an_error_and_never_another_ones_label(
    labelled: Path, tmp_path: Path
) -> None:
    (labelled.parent / "07.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(DataError, match=r"image 07.png cannot be read"):
        measure_transfer("random", labels_of(labelled, "way=knn"), tmp_path / "out")


def test_a_backbone_that_contradicts_the_weights_is_an_error(
    labelled: Path, tmp_path: Path
) -> None:
    run = pretrained(tmp_path / "run", labelled)
    plan = transfer_plan("csv", str(labelled), ["target.label=finding", "backbone=resnet18"])
    with pytest.raises(RecipeError, match="holds backbone 'small-net', --backbone says 'resnet18'"):
        start(str(run), plan)


def test_an_untrained_network_is_the_one_a_run_of_the_seed_starts_from(tmp_path: Path) -> None:
    from dira_core.build import build_trio

    given = ["backbone=small-net", "seed=4", "views.channels=1"]
    trio = build_trio(resolve(gather(preset="fixed", assignments=given, data="phantom")).recipe)
    plan = transfer_plan("csv", "x.csv", ["target.label=a", "backbone=small-net"])
    ours = start("random:4", plan).backbone.state_dict()
    assert all(torch.equal(ours[name], t) for name, t in trio.backbone.state_dict().items())


def test_the_command_prints_what_the_result_holds(
    labelled: Path, tmp_path: Path, dira: Dira
) -> None:
    flags = ["--target", "csv", "--data", str(labelled), "--way", "knn", "--size", "32"]
    own = ["--backbone", "small-net", "--set", "target.label=finding", "--seed", "2"]
    code, out, _ = dira("transfer", "random:1", *flags, *own)
    folder = tmp_path / "transfers/random-1-csv-labels-knn-1-seed2"
    found = json.loads((folder / "result.json").read_text())
    assert code == 0
    assert "train       32 images of 16 patients" in out
    for name in ("plain", "re-measured"):
        assert f"{found['scores'][name]['auc']['mean']:.4f}" in out
    assert found["plan"]["seed"] == 2


@pytest.mark.parametrize("name", ["40.png", "40-mask.png"])
def test_missing_files_of_test_images_end_a_transfer_before_it_trains(
    small_net: None, labelled: Path, tmp_path: Path, name: str
) -> None:
    (labelled.parent / name).unlink()
    with pytest.raises(
        DataError, match=r"1 of 48 images, or their masks, are not there \(40.png\)"
    ):
        measure_transfer("random", plan_of("masks", labelled), tmp_path / "out")
    assert not (tmp_path / "out").exists()
