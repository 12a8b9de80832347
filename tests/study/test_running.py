from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from kit import Dira

from dira_core.errors import RecipeError
from dira_core.lock import owned
from dira_core.study.jobs import Job, jobs_of, lay_out
from dira_core.study.plan import Study
from dira_core.study.running import LOCK, carry_out
from dira_core.study.workers import Here, Submitted, Workers


class Pretended(Workers):
    """Do jobs by leaving a result, or not."""

    def __init__(self, n: int, failing: Sequence[str] = ()) -> None:
        super().__init__(n)
        self.started: list[str] = []
        self.most = 0
        self.stopped = False
        self._failing = failing

    def start(self, folder: Path) -> None:
        self.running[folder] = True
        self.started.append(folder.name)
        self.most = max(self.most, len(self.running))

    def wait(self) -> dict[Path, str]:
        folder = next(iter(self.running))
        del self.running[folder]
        if folder.name not in self._failing:
            (folder / "result.json").write_text("{}")
        return {folder: "left with exit code 1"}

    def stop(self) -> None:
        self.stopped = True


class Quiet:
    """Watch, and interrupt after some jobs."""

    def __init__(self, after: int = 10**6) -> None:
        self.ends: list[str] = []
        self._after = after

    def began(self, job: Job) -> None:
        pass

    def ended(self, job: Job, failure: str) -> None:
        self.ends.append(failure)
        if len(self.ends) == self._after:
            raise KeyboardInterrupt


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    found = [Job("a", {}), Job("b", {}), Job("a1", {}, "a"), Job("b1", {}, "b"), Job("c", {})]
    lay_out(found, tmp_path)
    return found


def test_a_job_starts_when_what_it_needs_is_done_and_no_more_run_than_may(
    jobs: list[Job], tmp_path: Path
) -> None:
    workers = Pretended(2)
    assert carry_out(jobs, tmp_path, workers, Quiet()) == {}
    assert sorted(workers.started) == ["a", "a1", "b", "b1", "c"]
    assert workers.started.index("a") < workers.started.index("a1")
    assert workers.most == 2


def test_a_failed_job_takes_its_own_along_and_no_other(jobs: list[Job], tmp_path: Path) -> None:
    (tmp_path / "jobs/a/error.txt").write_text("no space left\nmore")
    workers = Pretended(1, failing=["a"])
    failed = carry_out(jobs, tmp_path, workers, Quiet())
    assert failed == {"a": "no space left", "a1": "needs a"}
    assert sorted(workers.started) == ["a", "b", "b1", "c"]


def test_an_interrupted_study_stops_its_jobs_and_repeats_none(
    jobs: list[Job], tmp_path: Path
) -> None:
    workers = Pretended(2)
    with pytest.raises(KeyboardInterrupt):
        carry_out(jobs, tmp_path, workers, Quiet(after=2))
    assert workers.stopped
    again = Pretended(2)
    carry_out(jobs, tmp_path, again, Quiet())
    done = set(workers.started) - {folder.name for folder in workers.running}
    assert done.isdisjoint(again.started)
    assert done | {*again.started} == {"a", "a1", "b", "b1", "c"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_stopped_in_the_middle_ends_with_the_tables_of_one_that_was_not(
    plan: Study, file: Path, dira: Dira, tmp_path: Path
) -> None:
    jobs, study = jobs_of(plan), tmp_path / "studies/small"
    with owned(study, LOCK):
        lay_out(jobs, study)
        with pytest.raises(KeyboardInterrupt):
            carry_out(jobs, study, Here(1), Quiet(after=3))
    before = {path: path.stat().st_mtime_ns for path in study.glob("jobs/**/result.json")}
    assert before
    code, out, err = dira("study", str(file))
    assert code == 0, err
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert "6 of 6 jobs are done" in out
    assert "| Random |" in out
    code, out, err = dira("report", str(study))
    assert code == 0, err
    page = (study / "report.html").read_text()
    for said in ("Table 5: comparisons", "pretrain/small-di-seed1: Health", "6 of 6 jobs"):
        assert said in page
    whole = tmp_path / "whole"
    shutil.copytree(study, whole)  # transfers are repeated from the same pretrainings
    shutil.rmtree(whole / "jobs/transfer")
    code, out, err = dira("study", str(file), "--out", str(whole), "--jobs", "2")
    assert code == 0, err
    for name in ("tables.md", "tables.tex", "tables.html", "results.csv"):
        assert (whole / name).read_bytes() == (study / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_that_fails_is_named_and_submitit_does_the_others(
    plan: Study, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    jobs = [job for job in jobs_of(plan) if job.cell is not None and job.cell.arm == "random"]
    jobs[1].asked["weights"] = "nowhere"
    study = tmp_path / "study"
    lay_out(jobs, study)
    workers = Submitted(2, tmp_path / "submitted", {}, cluster="local")
    failed = carry_out(jobs, study, workers, Quiet())
    assert [*failed] == [jobs[1].name]
    assert failed[jobs[1].name].startswith("no weights 'nowhere'")
    assert jobs[0].done(study)


@pytest.mark.parametrize(("cluster", "key"), [("slurm", "name"), ("local", "no_such_key")])
def test_a_cluster_or_a_key_that_does_not_exist_is_an_error_of_one_line(
    cluster: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no srun here
    with pytest.raises(RecipeError, match=f"submitit cannot use {cluster}") as found:
        Submitted(1, tmp_path, {key: "x"}, cluster)
    assert "\n" not in str(found.value)
