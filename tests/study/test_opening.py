from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kit import Dira

from dira_core.cli import study as command
from dira_core.errors import DataError, RunFolderError
from dira_core.plugins import make
from dira_core.study.jobs import Job, jobs_of, lay_out
from dira_core.study.opening import check_targets
from dira_core.study.plan import Study
from dira_core.targets import Labelled
from dira_core.transfer.plan import Plan


def test_a_study_opens_its_tasks_before_anything_is_pretrained(
    file: Path, dira: Dira, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "carry_out", not_to_be_called)
    text = file.read_text()
    wrongs = {
        "label=finding": ("label=findings", "target.label"),
        '"labels.csv"': ('"label.csv"', "label.csv"),
        "fractions = [0.5]": (
            'fractions = [0.5]\nways = ["fine-tune"]\ntruth = "no.csv"',
            "no.csv",
        ),
    }
    for right, (wrong, named) in wrongs.items():
        file.write_text(text.replace('ways = ["knn"]\n', "").replace(right, wrong))
        for flags in ([], ["--dry-run"]):
            code, _, err = dira("study", str(file), *flags)
            assert code in (2, 3)
            assert "targets.discs: " in err
            assert named in err
            assert "Traceback" not in err
    file.write_text(text)
    (tmp_path / "40.png").unlink()
    code, _, err = dira("study", str(file))
    assert code == 3
    assert "targets.discs: 1 of " in err
    assert "are not there (40.png)" in err
    assert not (tmp_path / "studies").exists()


def not_to_be_called(*parts: object) -> None:
    raise AssertionError


def test_jobs_done_with_other_labels_are_not_taken_for_those_of_now(
    plan: Study, tmp_path: Path
) -> None:
    jobs, study = jobs_of(plan), tmp_path / "studies/small"
    lay_out(jobs, study)
    first = next(job for job in jobs if job.cell is not None)
    target = target_of(first)
    done = {"images": target.source.fingerprint(), "labels": target.fingerprint()}
    pretend(first, study, done)
    check_targets(jobs, study)
    table = tmp_path / "labels.csv"
    rows = table.read_text()
    table.write_text(rows.replace("train,dim", "train,bright", 1))
    with pytest.raises(RunFolderError, match=r"targets.discs: its images or labels changed"):
        check_targets(jobs, study)
    table.write_text(rows)
    check_targets(jobs, study)
    (tmp_path / "00.png").write_bytes((tmp_path / "00.png").read_bytes() + b"\0")
    with pytest.raises(RunFolderError, match=first.name):
        check_targets(jobs, study)
    pretend(first, study, {})  # of an older dira, which did not write what it was of
    check_targets(jobs, study)


def pretend(job: Job, study: Path, known: dict[str, Any]) -> None:
    """Leave the result of a job that was never done."""
    result = {"seconds": 1.0, "scores": {}, "pretraining": {}, **known}
    (job.folder(study) / "result.json").write_text(json.dumps(result))


def target_of(job: Job) -> Labelled:
    target: Labelled = make("target", Plan.model_validate(job.asked["plan"]).target, "auto")
    return target


def test_a_truth_of_other_findings_than_the_task_has_is_refused(
    plan: Study, tmp_path: Path
) -> None:
    (tmp_path / "boxes.csv").write_text("image,label,x,y,w,h\n40.png,disc,1,1,4,4\n")
    task = plan.targets["discs"]
    for renamed, fits in (({}, False), ({"disc": "bright"}, True)):
        found = {"truth": "boxes.csv", "ways": ["fine-tune"], "renamed": renamed}
        own = plan.model_copy(update={"targets": {"discs": task.model_copy(update=found)}})
        if fits:
            check_targets(jobs_of(own), tmp_path / "study")
        else:
            with pytest.raises(DataError, match="has findings of disc, the task tells bright, dim"):
                check_targets(jobs_of(own), tmp_path / "study")


def test_a_report_is_made_of_a_study_that_was_interrupted(
    file: Path, dira: Dira, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*parts: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "carry_out", interrupted)
    assert dira("study", str(file))[0] == 75
    code, _, err = dira("report", "studies/small")
    assert code == 0, err
    assert "0 of 6 jobs" in (tmp_path / "studies/small/report.html").read_text()
    (tmp_path / "studies/small/study.json").write_text("{")
    code, _, err = dira("report", "studies/small")
    assert code == 2
    assert "study.json is damaged: start the study again" in err
