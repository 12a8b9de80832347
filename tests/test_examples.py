"""Every example runs as its first lines say, in a fresh interpreter.

Those in `slurm` and `kubernetes` are run by test_clusters.py.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dira_core.study.jobs import jobs_of
from dira_core.study.plan import read_study

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PLUGIN = EXAMPLES / "dira-tiny-plugin"

pytestmark = pytest.mark.slow


def ran(*words: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command with warnings as errors; return what it prints."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_example_is_run_by_a_test() -> None:
    text = Path(__file__).read_text()
    names = {p.name for p in EXAMPLES.iterdir() if p.name != "__pycache__"}
    assert {name for name in names if name not in text} == set()


def test_a_trio_composed_by_hand_is_pretrained_and_leaves_weights(tmp_path: Path) -> None:
    script = EXAMPLES / "compose_by_hand.py"
    said = ran("-W", "error", script, "by-hand", cwd=tmp_path)
    assert said.startswith("done ")
    assert (tmp_path / "by-hand/weights/backbone.safetensors").is_file()
    assert json.loads((tmp_path / "by-hand/status.json").read_text())["status"] == "done"


def test_a_run_from_python_ends_with_features_of_ones_own_image(tmp_path: Path) -> None:
    script = EXAMPLES / "run_from_python.py"
    said = ran("-W", "error", script, "from-python", cwd=tmp_path)
    assert said.splitlines() == ["done after 4 steps", "features (1, 512)"]
    recipe = (tmp_path / "from-python/recipe.toml").read_text()
    assert "seed = 7" in recipe  # of examples/recipe.toml


def test_the_benchmark_against_the_public_code_times_both_arms(tmp_path: Path) -> None:
    script = EXAMPLES / "benchmarks/public_code.py"
    size = ("--backbone", "resnet18", "--size", "32", "--batch", "2", "--rounds", "1")
    said = ran(script, *size, cwd=tmp_path)
    assert re.search(r"public / dira: \d+\.\d\d x time", said)
    assert re.search(r"dira / public: \d+\.\d\d x memory", said)


def test_the_benchmark_against_a_peer_times_three_methods(tmp_path: Path) -> None:
    pytest.importorskip("lightly", exc_type=ImportError)
    script = EXAMPLES / "benchmarks/peers.py"
    said = ran(script, "--rounds", "1", "--batch", "4", "--steps", "4", cwd=tmp_path)
    found = [line.split()[0] for line in said.splitlines() if "x dira's time" in line]
    assert found == [name for name in ("simsiam", "mocov2", "barlow") for _ in range(3)]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Write radiographs of noise, bacteria brighter than viruses, two of each patient."""
    lines = ["image,patient,split,label"]
    noise = np.random.default_rng(0)
    for number in range(60):
        label = ("virus", "bacteria", "normal")[number % 3]
        split = "train" if number < 36 else "test"
        mean = {"virus": 140, "bacteria": 180, "normal": 100}[label]
        brightest = np.clip(noise.normal(mean, 20), 40, 250)
        pixels = noise.integers(0, brightest, (40, 40)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{number // 2},{split},{label}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    return tmp_path / "labels.csv"


def test_the_linear_probe_tells_classes_and_knows_where_a_run_started(
    manifest: Path, tmp_path: Path
) -> None:
    flags = ["--data", "labels.csv", "--set", "data.split=train", "--lr", "1e-30", "--seed", "3"]
    flags += ["--epochs", "1", "--batch-size", "12", "--size", "32", "--backbone", "resnet18"]
    ran("-m", "dira_core", "run", *flags, "--mode", "di", "--name", "still", cwd=tmp_path)
    script = EXAMPLES / "benchmarks/linear_probe.py"
    asked = (manifest, "label", "bacteria", "virus", "random:3", "runs/still", "--size", "32")
    _, before, after = (line.split() for line in ran(script, *asked, cwd=tmp_path).splitlines())
    assert 0.8 < float(before[2]) < 1
    assert before[2] == after[2]  # the same weights, as nothing was learned


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_read_after_every_step_of_a_run(manifest: Path, tmp_path: Path) -> None:
    script = EXAMPLES / "benchmarks/memory_drift.py"
    flags = ("--batch-size", "20", "--steps", "8", "--window", "3")
    said = ran(script, manifest, "runs/drift", *flags, cwd=tmp_path)
    windows = re.findall(r"^steps +(\d+) to +(\d+) +(.+) MiB$", said, re.MULTILINE)
    assert [window[:2] for window in windows] == [("1", "3"), ("4", "6"), ("7", "9")]
    for *_, spread in windows:
        low, middle, high = map(float, spread.split())
        assert 50 < low <= middle <= high
    assert re.search(r"^growth -?\d+\.\d\d % over 3 steps$", said, re.MULTILINE)


def test_the_study_of_radiographs_has_a_job_for_every_place_of_its_grid(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").symlink_to(real_data)
    monkeypatch.chdir(tmp_path)
    jobs = jobs_of(read_study(EXAMPLES / "studies/radiographs.toml"))
    assert sum(job.cell is None for job in jobs) == 6
    assert sum(job.cell is not None and job.cell.way == "fine-tune" for job in jobs) == 6 * 21


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the example plugin as a user would, but without touching this environment."""
    folder = tmp_path_factory.mktemp("site")
    flags = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    flags += ["--disable-pip-version-check", "--no-cache-dir"]
    ran("-m", "pip", "install", *flags, "--target", str(folder), str(PLUGIN), cwd=folder)
    return folder


def test_the_example_plugin_is_found_shown_and_keeps_its_contract(
    site: Path, tmp_path: Path
) -> None:
    def dira(*words: str) -> str:
        return ran("-m", "dira_core", *words, cwd=tmp_path, PYTHONPATH=str(site))

    listed = json.loads(dira("plugins", "--json"))
    assert listed["problems"] == []
    [mine] = [row for row in listed["components"] if row["plugin"] == "tiny"]
    assert (mine["kind"], mine["name"]) == ("discriminator", "alignment")
    assert mine["distribution"] == "dira-tiny-plugin 0.1.0"
    assert "arXiv:2005.10242" in dira("plugins", "show", "alignment")
    checks = dira("plugins", "check", "alignment").splitlines()
    assert len(checks) == 3
    assert all(line.endswith(": ok") for line in checks)


def test_the_example_plugin_trains_with_our_restorer_and_adversary(
    site: Path, tmp_path: Path
) -> None:
    recipe = EXAMPLES / "recipe.toml"
    flags = ["--preset", "tiny", "--recipe", str(recipe), "--disc", "alignment", "--name", "mine"]
    said = ran("-m", "dira_core", "run", *flags, cwd=tmp_path, PYTHONPATH=str(site))
    assert "effective rank of embeddings" in said
    metrics = (tmp_path / "runs/mine/metrics.jsonl").read_text().splitlines()
    names = json.loads(metrics[-1]).keys()
    assert {"losses/dis", "losses/res", "losses/adv", "dis/alignment", "dis/uniformity"} <= names


def test_the_example_plugin_is_one_file_of_at_most_60_lines() -> None:
    code = (PLUGIN / "dira_tiny.py").read_text().splitlines()
    assert 25 <= len(code) <= 60
    entry = re.findall(r"^tiny = .*$", (PLUGIN / "pyproject.toml").read_text(), re.MULTILINE)
    assert entry == ['tiny = "dira_tiny"']
