from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from kit import Dira

from dira_core.cli import study
from dira_core.study.jobs import jobs_of, lay_out
from dira_core.study.plan import Study


@pytest.mark.slow
def test_a_dry_run_names_every_job_with_its_time_and_leaves_nothing(
    file: Path, dira: Dira, tmp_path: Path
) -> None:
    code, out, err = dira("study", str(file), "--dry-run")
    assert code == 0, err
    *lines, total = out.splitlines()
    assert len(lines) == 6
    assert all(
        re.match(r" +(< 1 min|\d+ min|\d+ h \d+ min)  (pretrain|transfer)/", x) for x in lines
    )
    assert total.endswith("at most, one after the other: 2 pretrain, 4 transfer")
    assert not (tmp_path / "studies").exists()


def test_an_interrupted_study_says_how_to_go_on(
    file: Path, dira: Dira, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*parts: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "carry_out", interrupted)
    code, _, err = dira("study", str(file))
    assert code == 75
    assert f"go on with: dira study {file}\n" in err
    monkeypatch.setattr(study, "Submitted", nobody)
    given = ["study", str(file), "--out", "my out", "--jobs", "3", "--slurm"]
    code, _, err = dira(*given)
    assert code == 75
    assert shlex.split(err.partition("go on with: dira ")[2]) == given


def nobody(*parts: object) -> None:
    """Stand in for workers that are never asked."""


def test_a_damaged_result_is_one_line_whatever_the_study_is_asked_for(
    plan: Study, file: Path, dira: Dira, tmp_path: Path
) -> None:
    jobs = jobs_of(plan)
    lay_out(jobs, tmp_path / "studies/small")
    path = jobs[-1].folder(Path("studies/small")) / "result.json"
    (tmp_path / path).write_text("[]")
    for flags in ([], ["--tables"], ["--dry-run"]):
        code, _, err = dira("study", str(file), *flags)
        assert code == 2
        assert f"{path} is damaged: remove it, and start the study again" in err
        assert "Traceback" not in err


def test_failed_jobs_are_named_with_their_cause_and_the_rest_is_counted(
    file: Path, dira: Dira, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = {f"job{n}": "no space" for n in range(7)} | {"late": "needs job0"}
    monkeypatch.setattr(study, "carry_out", lambda *parts: failed)
    code, _, err = dira("study", str(file))
    assert code == 2
    assert "7 jobs failed (1 others need them): job0: no space; " in err
    assert "and 2 more; mend it, and start the study again" in err
    assert "late" not in err


def test_tables_of_a_study_without_results_are_empty_and_say_so(
    plan: Study, file: Path, dira: Dira, tmp_path: Path
) -> None:
    lay_out(jobs_of(plan), tmp_path / "studies/small")
    code, out, err = dira("study", str(file), "--tables")
    assert code == 0, err
    assert "0 of 6 jobs are done" in out
    assert (tmp_path / "studies/small/results.csv").read_text() == "\n"


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.0, "< 1 min"), (29, "< 1 min"), (61, "1 min"), (7300, "2 h 2 min")]
)
def test_durations_are_told_in_words(seconds: float, said: str) -> None:
    assert study.duration(seconds) == said
