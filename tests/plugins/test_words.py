"""Self-discovery: places, features, cubes; the same again, and after being killed."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import scipy.ndimage
import torch
from kit import Dira
from safetensors.numpy import save_file
from safetensors.torch import load_file

from dira_core import DataError, Image, RecipeError, Source, Trio
from dira_core.plugins import make
from dira_core.seen import of_source
from dira_core.testing import check, choice
from dira_transvw import WordsOptions
from dira_transvw.autoencoder import Autoencoder, fit
from dira_transvw.discovery import Plan, discover
from dira_transvw.places import (
    body_box,
    carried_over,
    cut,
    is_inside,
    is_worth_a_word,
    soft_tissue,
)
from dira_transvw.scoring import score
from dira_transvw.source import WHITE, WordsSource

PLAN = Plan(
    words=3,
    instances=4,
    held_out_instances=2,
    size=(6, 8, 8),
    grid=(16, 16, 16),
    dim=8,
    epochs=2,
    held_out=0.25,
)


class Bodies(Source):
    """Bright ellipsoids with a dark spot, as large and as far to the side as their number says."""

    def __init__(self, n: int = 12) -> None:
        self._n = n
        self.patients = np.arange(n) // 2

    def __len__(self) -> int:
        return self._n

    def read(self, index: int) -> Image:
        if index == 3:
            raise DataError("the file is damaged")
        shape = (20 + index % 3, 30, 28 + index % 5)
        z, y, x = (axis / (n - 1) * 2 - 1 for axis, n in zip(np.indices(shape), shape, strict=True))
        body = z**2 + (y / 0.8) ** 2 + ((x - 0.01 * index) / 0.8) ** 2 < 1
        spot = (z - 0.3) ** 2 + y**2 + x**2 < 0.05
        noise = np.random.default_rng(index).normal(0, 20, shape)
        return Image((1000 * body - 500 * spot + noise)[None].astype(np.float32), (0, 1200))

    def name(self, index: int) -> str:
        return f"body {index}"

    def digest(self, index: int) -> int | None:
        return None if index == 5 else -index

    def fingerprint(self) -> str:
        return f"bodies {self._n}"


@contextmanager
def quiet(what: str, total: int) -> Iterator[Callable[[int], object]]:
    yield lambda steps: None


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words") / "words"
    report = discover(Bodies(), folder, PLAN, quiet)
    assert report.volumes == (7, 4)
    assert report.unreadable == ("body 3: the file is damaged",)
    return folder


def lines(folder: Path) -> list[dict[str, str]]:
    with (folder / "words.csv").open() as file:
        return list(csv.DictReader(file))


def box(line: dict[str, str]) -> np.ndarray:
    return np.array([float(line[edge]) for edge in ("z1", "z2", "y1", "y2", "x1", "x2")]).reshape(
        3, 2
    )


def test_there_are_words_times_instances_times_resolutions(found: Path) -> None:
    table = lines(found)
    for word in range(3):
        train, held = (
            [line for line in table if int(line["word"]) == word and line["split"] == split]
            for split in ("train", "held-out")
        )
        assert len(train) == 4 * 3
        assert len(held) == 2
        assert [line["resolution"] for line in train] == ["0", "1", "2"] * 4
        assert {line["resolution"] for line in held} == {"0"}


def test_the_source_keeps_its_contract(found: Path) -> None:
    assert [wrong for _, wrong in check("source", "words", path=found)] == [None, None]


def test_patients_held_out_are_in_no_training_word(found: Path) -> None:
    train, held = (
        WordsSource(WordsOptions(path=found)),
        WordsSource(WordsOptions(path=found, split="held-out")),
    )
    assert not set(train.patients) & set(held.patients)
    assert len(held) == 6


def test_of_volumes_of_nobody_each_is_held_out_alone_and_no_patient_is_made_up(
    tmp_path: Path,
) -> None:
    bodies = Bodies(8)
    bodies.patients = None  # type: ignore[assignment]
    report = discover(bodies, tmp_path / "words", PLAN, quiet)
    assert report.volumes == (5, 2)
    words = WordsSource(WordsOptions(path=tmp_path / "words"))
    assert set(words.patients) == {-1}
    assert not of_source(words).patients.size


def test_the_first_instance_is_the_reference_voxel_for_voxel(found: Path) -> None:
    source = WordsSource(WordsOptions(path=found))
    table = [line for line in lines(found) if line["split"] == "train"]
    for index, line in enumerate(table):
        if (line["rank"], line["resolution"]) == ("0", "0"):
            (z1, z2), (y1, y2), (x1, x2) = box(line).astype(int).tolist()
            assert (z2 - z1, y2 - y1, x2 - x1) == PLAN.size
            image = Bodies().read(int(line["volume"].split()[1]))
            expected = np.clip(image.pixels[:, z1:z2, y1:y2, x1:x2] / 1200, 0, 1)
            cube = source.read(index)
            assert cube.window == (0, WHITE)
            np.testing.assert_allclose(cube.pixels / WHITE, expected, atol=2e-5)


def test_other_resolutions_lie_around_the_first_in_the_same_slices(found: Path) -> None:
    table = [line for line in lines(found) if line["split"] == "train"]
    for first, *others in zip(*[iter(table)] * 3, strict=True):
        usual = box(first)
        for other in map(box, others):
            np.testing.assert_allclose(other[0], usual[0], atol=0.01)
            sides = (other[1:, 1] - other[1:, 0]) / (usual[1:, 1] - usual[1:, 0])
            assert 50 / 64 - 0.01 <= sides.min() <= sides.max() <= 79 / 64 + 0.01
            assert sides[0] == pytest.approx(sides[1], abs=0.01)
            moved = np.abs(other[1:].mean(1) - usual[1:].mean(1))
            assert (moved <= 10 / 64 * (usual[1:, 1] - usual[1:, 0]) + 0.01).all()


def test_words_are_apart_and_references_differ(found: Path) -> None:
    first = [line for line in lines(found) if (line["rank"], line["resolution"]) == ("0", "0")]
    first = [line for line in first if line["split"] == "train"]
    middles = [box(line).mean(1) for line in first]
    assert len({line["volume"] for line in first}) == 3
    for a in range(3):
        for b in range(a):
            assert np.linalg.norm(middles[a] - middles[b]) > PLAN.apart - 2  # bodies differ a bit


def test_the_same_seed_gives_the_same_bytes_and_another_one_other_words(
    found: Path, tmp_path: Path
) -> None:
    discover(Bodies(), tmp_path / "again", PLAN, quiet)
    discover(Bodies(), tmp_path / "other", replace(PLAN, seed=1), quiet)
    first, again, other = map(contents, (found, tmp_path / "again", tmp_path / "other"))
    assert first == again
    assert other["words.csv"] != first["words.csv"]


def test_a_cube_is_known_by_the_file_of_its_volume(found: Path) -> None:
    source = WordsSource(WordsOptions(path=found, split="all"))
    volumes = [int(source.name(index).split()[-1]) for index in range(len(source))]
    digests = [source.digest(index) for index in range(len(source))]
    assert digests == [Bodies().digest(volume) for volume in volumes]


@pytest.mark.parametrize("bar", ["reading", "learning features", "cutting"])
def test_killed_at_any_stage_it_ends_as_if_it_had_not_been(
    found: Path, tmp_path: Path, bar: str
) -> None:
    @contextmanager
    def dying(what: str, total: int) -> Iterator[Callable[[int], object]]:
        left = [1 if what == bar else 10**6]

        def tick(steps: int) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt

        yield tick

    with pytest.raises(KeyboardInterrupt):
        discover(Bodies(), tmp_path / "cut", PLAN, dying)
    with pytest.raises(DataError, match="no finished words"):
        WordsSource(WordsOptions(path=tmp_path / "cut"))
    discover(Bodies(), tmp_path / "cut", PLAN, quiet)
    assert contents(tmp_path / "cut")["words.csv"] == contents(found)["words.csv"]
    for name in contents(found):
        if name.startswith("cubes"):
            assert contents(tmp_path / "cut")[name] == contents(found)[name]


def test_a_folder_of_other_words_or_other_files_is_refused(found: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="begun with other words, apart"):
        discover(Bodies(), found, replace(PLAN, words=2, apart=2.0), quiet)
    with pytest.raises(DataError, match="begun with other data"):
        discover(Bodies(14), found, PLAN, quiet)
    with pytest.raises(DataError, match=r"begun with other data\.window: give the same"):
        discover(Bodies(), found, replace(PLAN, reading={"window": "full"}), quiet)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        discover(Bodies(), tmp_path, PLAN, quiet)


def test_more_words_than_there_is_room_for_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"word \d+ of 50 .* fewer words"):
        discover(Bodies(), tmp_path / "many", replace(PLAN, words=50, apart=9.0), quiet)
    with pytest.raises(DataError, match="word 1 of 3"):
        discover(Bodies(), tmp_path / "large", replace(PLAN, size=(32, 64, 64)), quiet)


def test_how_cubes_are_cut_may_change_until_they_are(found: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    with pytest.raises(DataError, match="fewer words"):
        discover(Bodies(), folder, replace(PLAN, words=50, apart=9.0), quiet)
    learned = (folder / "features.safetensors").stat().st_mtime_ns
    discover(Bodies(), folder, PLAN, quiet)
    assert (folder / "features.safetensors").stat().st_mtime_ns == learned
    assert contents(folder)["words.csv"] == contents(found)["words.csv"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": (0, 8, 8)}, "--size takes voxels"),
        ({"border": (-1.0, 0.1, 0.1)}, "--border takes parts"),
        ({"border": (0.5, 0.1, 0.1)}, "--border takes parts"),
        ({"grid": (20, 16, 16)}, "--grid takes multiples of 16"),
    ],
)
def test_an_impossible_plan_is_refused_before_the_folder_is_made(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        discover(Bodies(), tmp_path / "words", replace(PLAN, **change), quiet)
    assert not (tmp_path / "words").exists()


def test_one_volume_to_find_words_in_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got 1 that can be read, and 2 held out"):
        discover(Bodies(3), tmp_path / "words", replace(PLAN, held_out=0.5), quiet)


def test_a_place_where_no_folder_can_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="cannot be made .* --out another"):
        discover(Bodies(), tmp_path / "file", PLAN, quiet)


def test_damaged_cubes_are_cut_again_and_what_was_learned_is_named(
    found: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(found, tmp_path / "words"))
    for file in sorted(folder.glob("cubes/*"))[:2]:
        file.write_bytes(file.read_bytes()[:-7])
    discover(Bodies(), folder, PLAN, quiet)
    assert contents(folder) == contents(found)
    (folder / "survey.safetensors").write_bytes(b"torn")
    with pytest.raises(DataError, match="survey.safetensors' is damaged .* remove it"):
        discover(Bodies(), folder, PLAN, quiet)


@pytest.mark.parametrize(
    "name", ["../../secret.safetensors", "/etc/passwd", "cubes/../../secret.safetensors"]
)
def test_a_table_cannot_name_a_file_outside_of_its_folder(
    found: Path, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "a" / "words"
    folder.mkdir(parents=True)
    secret = {"cubes": np.zeros((99, 1, 4, 4, 4), np.uint16)}
    save_file(secret, tmp_path / "secret.safetensors")
    (folder / "dira-source.json").write_text((found / "dira-source.json").read_text())
    text = (found / "words.csv").read_text()
    for line in lines(found):
        text = text.replace(line["file"], name)
    (folder / "words.csv").write_text(text)
    with pytest.raises(DataError, match="missing or damaged"):
        WordsSource(WordsOptions(path=folder)).read(0)


def test_damaged_tables_headers_and_cubes_are_named(found: Path, tmp_path: Path) -> None:
    for name, content in contents(found).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    source = WordsSource(WordsOptions(path=tmp_path))
    (tmp_path / lines(found)[0]["file"]).write_bytes(b"no cubes")
    with pytest.raises(DataError, match="missing or damaged"):
        source.read(0)
    (tmp_path / "words.csv").write_text("split,word\ntrain,many\n")
    with pytest.raises(DataError, match="words.csv"):
        WordsSource(WordsOptions(path=tmp_path))
    (tmp_path / "dira-source.json").write_text(json.dumps({"source": "others"}))
    with pytest.raises(DataError, match="dira words discover"):
        WordsSource(WordsOptions(path=tmp_path))


def test_the_body_is_found_and_places_are_carried_over_between_bodies() -> None:
    volume = torch.zeros(1, 20, 30, 40)
    volume[0, 4:16, 10:25, 5:35] = 1
    body = body_box(volume)
    assert body.tolist() == [[4, 16], [10, 25], [5, 35]]
    assert body_box(torch.zeros(1, 4, 5, 6)).tolist() == [[0, 4], [0, 5], [0, 6]]
    inner = np.array([[6.0, 10.0], [12.0, 20.0], [8.0, 16.0]])
    assert np.array_equal(carried_over(inner, body, body), inner)
    twice = carried_over(inner, body, 2 * body + 3)
    np.testing.assert_allclose(twice, 2 * inner + 3)
    shape = np.array([20, 30, 40])
    assert is_inside(inner, shape)
    assert is_inside(inner - [[6.4], [0], [0]], shape)
    assert not is_inside(inner - [[6.6], [0], [0]], shape)
    assert not is_inside(inner + np.array([[0], [0], [26]]), shape)


def test_a_cube_is_that_of_scipy_between_voxels_and_the_voxels_themselves_on_them() -> None:
    volume = torch.rand(2, 9, 11, 10, generator=torch.Generator().manual_seed(0))
    whole = np.array([[2.0, 6.0], [1.0, 9.0], [3.0, 8.0]])
    torch.testing.assert_close(cut(volume, whole, (4, 8, 5)), volume[:, 2:6, 1:9, 3:8])
    odd = np.array([[1.3, 7.9], [-0.6, 6.2], [2.2, 10.4]])
    centres = [
        first + (np.arange(n) + 0.5) * (last - first) / n - 0.5
        for (first, last), n in zip(odd, (5, 6, 7), strict=True)
    ]
    places = np.meshgrid(*centres, indexing="ij")
    for channel, expected in zip(cut(volume, odd, (5, 6, 7)), volume.double().numpy(), strict=True):
        expected = scipy.ndimage.map_coordinates(expected, places, order=1, mode="nearest")
        np.testing.assert_allclose(channel.numpy(), expected, atol=1e-5)


def test_soft_tissue_is_counted_as_the_public_code_does() -> None:
    cube = torch.where(
        torch.rand(7, 5, 4, generator=torch.Generator().manual_seed(1)) < 0.3, 0.0, -800.0
    )
    score = 0.0
    for z in range(6):
        for y in range(5):
            for x in range(4):
                for above, worth in ((0, 1.0), (1, 0.5), (2, 0.0)):
                    if z + above < 7 and cube[z + above, y, x] >= -150:
                        score += worth
                        break
    assert soft_tissue(cube, 6) == pytest.approx(score / 120)
    lung = Image(np.full((1, 6, 8, 8), -800, np.float32), (-1000, 1000))
    tissue = Image(np.full((1, 6, 8, 8), 40, np.float32), (-1000, 1000))
    everything = np.array([[0.0, 6.0], [0.0, 8.0], [0.0, 8.0]])
    assert is_worth_a_word(lung, everything, lung=True)
    assert not is_worth_a_word(tissue, everything, lung=True)
    assert is_worth_a_word(tissue, everything, lung=False)


def test_lung_is_not_looked_for_in_values_that_are_not_in_hu() -> None:
    cached = Image(np.full((1, 6, 8, 8), 6000, np.uint16), (0, 65535))
    with pytest.raises(DataError, match="the CTs themselves instead of a cache"):
        is_worth_a_word(cached, np.array([[0.0, 6.0], [0.0, 8.0], [0.0, 8.0]]), lung=True)


def test_features_tell_where_a_ball_is_and_all_goes_through_the_code() -> None:
    z, y, x = np.indices((16, 16, 16))
    places = np.random.default_rng(0).uniform(4, 12, (32, 2))
    balls = np.stack([(z - 8) ** 2 + (y - a) ** 2 + (x - b) ** 2 < 16 for a, b in places])
    held_out = np.arange(32) >= 24
    with torch.random.fork_rng(devices=[]):
        state = torch.get_rng_state()
        found = fit(balls.astype(np.float16), held_out, 16, 25, 0, lambda: None)
        assert torch.equal(torch.get_rng_state(), state)
    assert found.explained > 0.4
    design = np.c_[found.features, np.ones(32)]
    fitted = design @ np.linalg.lstsq(design[~held_out], places[~held_out], rcond=None)[0]
    error = ((fitted - places)[held_out] ** 2).mean() / places.var()
    assert error < 0.6
    network = Autoencoder((16, 16, 16), 4).eval()
    network.encode = lambda images: torch.zeros(len(images), 4)  # type: ignore[method-assign]
    one, other = network(torch.rand(2, 1, 16, 16, 16))
    assert torch.equal(one, other)


def test_from_the_command_line_words_are_found_and_learned(dira: Dira, tmp_path: Path) -> None:
    code, said, _ = dira("words", "discover", "--help")
    assert code == 0
    assert all(flag in said for flag in ("--words", "--instances", "--lung", "--held-out"))
    small = ("--words", "2", "--size", "8", "12", "12", "--grid", "16", "16", "16", "--epochs", "1")
    few = ("--set", "data.n=6", "--set", "data.size=[16,24,24]", "--apart", "2")
    asked = ("words", "discover", "--data", "phantom3d", "--out", "words", *small, *few)
    code, said, wrong = dira(*asked)
    assert (code, wrong) == (0, "")
    assert "words      2, in" in said
    assert dira(*asked)[0] == 0
    code, _, wrong = dira(*asked, "--set", "views.size=8")
    assert (code, "--set here takes data.key=value, got 'views.size=8'" in wrong) == (2, True)
    sizes = ("--set", "views.size=[8,8,8]", "--set", "backbone.width=2", "--epochs", "1")
    nets = ("--set", "restorer.widths=[4,4,4]", "--set", "adversary.widths=[4,4]")
    heads = ("--set", "discriminator.hidden=4", "--batch-size", "4", "--name", "learned")
    roles = ("--disc", "transvw", "--res", "unet", "--adv", "patchgan", "--data", "words/")
    code, said, wrong = dira("run", "--preset", "tiny3d", *roles, *sizes, *nets, *heads)
    assert code == 0, wrong
    metrics = (tmp_path / "runs/learned/metrics.jsonl").read_text()
    assert "dis/accuracy" in metrics
    code, said, wrong = dira("words", "score", "runs/learned", "--data", "words")
    assert (code, wrong) == (0, "")
    assert "chance 50.0%" in said
    expected = told(tmp_path / "runs/learned", tmp_path / "words")
    assert f"cubes      {len(expected)} of 1 volumes, held-out" in said
    assert f"told       {sum(expected) / len(expected):.1%} (" in said
    code, _, wrong = dira("words", "score", "runs/learned", "--data", "words", "--split", "some")
    assert (code, wrong.count("\n")) == (2, 1)
    assert "held-out, train or all" in wrong
    assert dira(*asked, "--seed", "1", "--out", "others")[0] == 0
    code, _, wrong = dira("words", "score", "runs/learned", "--data", "others")
    assert (code, wrong) == (
        2,
        "error: runs/learned learned other words than those of --data: give 'words'\n",
    )
    code, _, wrong = dira(*asked[:-2], "--apart", "3")
    assert (code, wrong.count("\n")) == (3, 1)
    assert "begun with other apart" in wrong


def test_volumes_read_otherwise_do_not_pass_for_words_there_are(dira: Dira, tmp_path: Path) -> None:
    (tmp_path / "ct").mkdir()
    for index in range(4):
        voxels = Bodies().read(index + 4).pixels[0].T.astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / f"ct/{index}.nii")
    small = ("--words", "2", "--size", "6", "8", "8", "--grid", "16", "16", "16", "--epochs", "1")
    asked = ("words", "discover", "--data", "ct", "--out", "words", *small, "--apart", "2")
    assert dira(*asked, "--set", "data.window=percentile")[0] == 0
    read = {"window": "percentile", "spacing": None}
    before = contents(tmp_path / "words")
    assert WordsSource(WordsOptions(path=tmp_path / "words")).reading == read
    code, _, wrong = dira(*asked, "--set", "data.window=[0,400]", "--set", "data.spacing=[2,2,2]")
    assert (code, wrong.count("\n")) == (3, 1)
    assert "begun with other data.window, data.spacing: give the same again" in wrong
    assert contents(tmp_path / "words") == before


def told(run: Path, words: Path) -> list[bool]:
    """Say of each held-out cube, one by one, whether the checkpoint's classifier tells its word."""
    saved = max((run / "checkpoints").iterdir()) / "model.safetensors"
    tensors = {k.removeprefix("model."): v for k, v in load_file(saved).items()}
    parts = {
        role: {k.removeprefix(f"{role}."): v for k, v in tensors.items() if k.startswith(role)}
        for role in ("backbone", "discriminator")
    }
    backbone = make("backbone", choice("backbone", "unet3d", width=2), 1, 3)
    backbone.load_state_dict(parts["backbone"])
    classes = len(parts["discriminator"]["head.0.weight"])
    head = make(
        "discriminator", choice("discriminator", "transvw", classes=classes, hidden=4), backbone
    )
    head.load_state_dict(parts["discriminator"])
    source = WordsSource(WordsOptions(path=words, split="held-out"))
    assert source.words is not None
    right = []
    for number, word in enumerate(source.words):
        pixels = source.read(number).pixels.astype(np.float32) / WHITE
        cube = torch.from_numpy(pixels)[None, :, :, 2:10, 2:10]  # the middle, as a view is wide
        with torch.no_grad():
            scores = head.eval().scores(backbone.eval()(cube)[-1])
        right.append(int(scores.argmax()) == word)
    return right


def test_only_a_run_that_learned_words_is_scored(dira: Dira, tmp_path: Path) -> None:
    table = "file,row,split,word,patient,volume,rank,resolution\n"
    words = tmp_path / "words"
    words.mkdir()
    (words / "words.csv").write_text(table + "cubes/00000.safetensors,0,held-out,0,0,a,0,0\n")
    (words / "dira-source.json").write_text(json.dumps({"source": "words", "version": 1}))
    code, _, wrong = dira("words", "score", "nowhere", "--data", "words")
    assert (code, wrong.count("\n")) == (2, 1)
    assert "nowhere is no run" in wrong


def test_a_run_of_another_discriminator_is_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    trio = Trio(make("backbone", choice("backbone", "unet3d", width=2), 1, 3))
    monkeypatch.setattr("dira_transvw.scoring.load_run", lambda folder: (None, trio))
    monkeypatch.setattr("dira_transvw.scoring.WordsSource", lambda options: None)
    with pytest.raises(RecipeError, match="give a run with --disc transvw"):
        score(Path("run"), WordsOptions(path=Path("words")))
