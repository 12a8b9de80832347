"""The arm `imagenet`, with a network of no worth where torchvision's is looked for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torchvision.models import get_model

from dira_core import donor
from dira_core.errors import CheckpointError
from dira_core.study.jobs import RESULT, Cell, Job, jobs_of, lay_out
from dira_core.study.plan import Study
from dira_core.study.work import done
from dira_core.study.writing import write_results

SET = [
    *("target.label=finding", "backbone=resnet18", "size=32", "precision=fp32"),
    *("training.few_passes=1", "training.least_steps=1"),
]


@pytest.fixture
def study(file: Path) -> Study:
    task = {"target": "csv", "data": "labels.csv", "set": SET, "ways": ["knn", "fine-tune"]}
    return Study.model_validate(
        {"arms": ["random", "imagenet"], "seeds": [0], "targets": {"discs": task}}
    )


def of(jobs: list[Job], arm: str) -> list[Job]:
    return [job for job in jobs if isinstance(job.cell, Cell) and job.cell.arm == arm]


def test_the_arm_is_carried_out_and_stands_in_the_tables(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    torch.save(get_model("resnet18", weights=None).state_dict(), tmp_path / "net.pth")
    sha256 = hashlib.sha256((tmp_path / "net.pth").read_bytes()).hexdigest()
    path = (tmp_path / "net.pth").rename(tmp_path / f"resnet18-{sha256[:8]}.pth")
    monkeypatch.setattr(donor, "imagenet_url", lambda network: path.as_uri())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    jobs, folder = jobs_of(study), tmp_path / "study"
    lay_out(jobs, folder)
    for job in jobs:
        done(job.folder(folder), job.asked)
    tuned, knn = (
        json.loads((job.folder(folder) / RESULT).read_text())
        for job in sorted(of(jobs, "imagenet"), key=lambda job: job.name)
    )
    for result in (tuned, knn):
        assert result["weights"]["weights"] == "imagenet"
        assert result["weights"]["sha256"] == {path.name: sha256}
        assert result["weights"]["backbone"] == "resnet18"
        assert result["pretraining"]["images"] is None
    text = "\n".join(write_results(study, jobs, folder))
    assert "| imagenet | random |" in text
    assert "4 of 4 jobs are done" in text


def test_without_a_network_the_error_says_where_to_put_the_file(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = (tmp_path / "resnet18-f37072fd.pth").as_uri()
    monkeypatch.setattr(donor, "imagenet_url", lambda network: gone)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    jobs, folder = of(jobs_of(study), "imagenet"), tmp_path / "study"
    lay_out(jobs, folder)
    with pytest.raises(CheckpointError, match=r"put the file at .*hub.*resnet18-f37072fd") as said:
        done(jobs[0].folder(folder), jobs[0].asked)
    assert "\n" not in str(said.value)
    assert not jobs[0].done(folder)
