"""What examples/ shows for SLURM and Kubernetes, and torchrun, on this machine with tiny runs."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from kit import SMALL, kit

from dira_core.launch import GRACE_S
from dira_core.lines import read_lines
from dira_core.signals import EXIT_PREEMPTED

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PROGRAMS = {
    "dira": f'#!/bin/sh\nexec {sys.executable} -m dira_core "$@"\n',
    # one task on each node; hands signals on, and ends with the highest exit code
    "srun": """#!/bin/bash
pids=()
for ((node = 0; node < SLURM_NNODES; node++)); do "$@" & pids+=($!); done
trap 'kill -USR1 "${pids[@]}"' USR1
highest=0
for pid in "${pids[@]}"; do
    wait "$pid"; code=$?
    while kill -0 "$pid" 2>/dev/null; do wait "$pid"; code=$?; done
    ((code > highest)) && highest=$code
done
exit "$highest"
""",
    "scontrol": """#!/bin/sh
if [ "$1" = show ]; then echo localhost; echo other; else echo "$@" >> requeued; fi
""",
}


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Enter a folder; return an environment with the kit, and SLURM's programs on the path."""
    monkeypatch.chdir(tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in PROGRAMS.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    with kit(tmp_path / "kit"):
        yield os.environ | {
            "OMP_NUM_THREADS": "1",
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }


def ended(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Return exit codes and output of processes."""
    said = [process.communicate(timeout=200)[0] for process in processes]
    return [(process.returncode, out) for process, out in zip(processes, said, strict=True)]


def started(words: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def only_run(steps: int = 8) -> dict[str, Any]:
    """Return the status of the one run in `runs`, which logged every step once."""
    [folder] = Path("runs").iterdir()
    assert [line["step"] for line in read_lines(folder / "metrics.jsonl")] == [*range(1, steps + 1)]
    status: dict[str, Any] = json.loads((folder / "status.json").read_text())
    return status


def processes_of(folder: Path) -> int:
    recipe = (folder / "recipe.toml").read_text()
    found = re.search(r"^processes = (\d+)$", recipe, re.MULTILINE)
    assert found
    return int(found[1])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


SCRIPTS = [("one-node", 1, 2), ("several-nodes", 2, 1)]
"""Name, nodes, processes on each."""


@pytest.mark.parametrize(("name", "nodes", "processes"), SCRIPTS)
def test_a_slurm_job_on_all_its_nodes_saves_before_its_time_is_up_and_goes_on(
    environment: dict[str, str], name: str, nodes: int, processes: int
) -> None:
    slurm = {
        "SLURM_JOB_ID": str(free_port()),
        "SLURM_NNODES": str(nodes),
        "SLURM_JOB_NODELIST": "localhost,other",
        "SLURM_GPUS_ON_NODE": str(processes),
    }
    steps = ["--batch-size", "2", "--epochs", "6"]
    words = ["bash", str(EXAMPLES / f"slurm/{name}.sbatch"), *SMALL, *steps]
    job = started(words, environment | slurm | {"KIT_STEP_S": "0.5"})
    while not [*Path("runs").glob("*/metrics.jsonl")] and job.poll() is None:
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    [(code, said)] = ended([job])
    assert code == EXIT_PREEMPTED, said
    once = f"requeue {slurm['SLURM_JOB_ID']}\n"
    assert Path("requeued").read_text() == once
    [folder] = Path("runs").iterdir()
    assert json.loads((folder / "status.json").read_text())["status"] == "preempted"
    [(code, said)] = ended([started(words, environment | slurm)])
    assert code == 0, said
    assert "resumed from step-" in said
    status = only_run(24)
    assert (status["status"], status["job"]) == ("done", slurm["SLURM_JOB_ID"])
    assert processes_of(folder) == 2
    assert Path("requeued").read_text() == once  # not again at its end


def test_scripts_say_when_to_signal_and_that_they_may_be_queued_again() -> None:
    for name, nodes, _ in SCRIPTS:
        path = EXAMPLES / f"slurm/{name}.sbatch"
        text = path.read_text()
        for option in (f"nodes={nodes}", "signal=B:USR1@120", "requeue", "ntasks-per-node=1"):
            assert f"\n#SBATCH --{option}\n" in text
        done = subprocess.run(["bash", "-n", str(path)], check=False)
        assert done.returncode == 0


@pytest.fixture
def manifests() -> dict[str, Any]:
    """Return the objects of the Kubernetes example, by kind."""
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load_all((EXAMPLES / "kubernetes/job.yaml").read_text())
    return {each["kind"]: each for each in found}


def test_the_kubernetes_job_meets_at_its_first_pod(manifests: dict[str, Any]) -> None:
    service, job = manifests["Service"], manifests["Job"]
    spec = job["spec"]
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    options = dict(word.removeprefix("--").split("=", 1) for word in container["args"])
    name, [port] = service["metadata"]["name"], service["spec"]["ports"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()
    assert pod["subdomain"] == name
    assert options["rendezvous"] == f"{job['metadata']['name']}-0.{name}:{port['port']}"
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(options["machines"])
    assert pod["terminationGracePeriodSeconds"] > GRACE_S
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy asks for it
    ignored, _, failed = spec["podFailurePolicy"]["rules"]
    assert ignored["onExitCodes"]["values"] == [EXIT_PREEMPTED]
    assert EXIT_PREEMPTED not in failed["onExitCodes"]["values"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert {options["data"], options["out"]} <= mounts.keys()


def test_the_kubernetes_command_line_trains_as_two_machines(
    environment: dict[str, str], manifests: dict[str, Any]
) -> None:
    [container] = manifests["Job"]["spec"]["template"]["spec"]["containers"]
    [job] = [each["value"] for each in container["env"] if each["name"] == "JOB"]
    here = {"data": "small-set", "out": "runs", "batch-size": "2", "workers": "0"}
    here |= {"rendezvous": f"localhost:{free_port()}", "job": job}
    options = dict(word.removeprefix("--").split("=", 1) for word in container["args"])
    words = [*container["command"], *SMALL]
    words += [f"--{name}={value}" for name, value in (options | here).items()]
    for code, said in ended([started(words, environment) for _ in range(int(options["machines"]))]):
        assert code == 0, said
    status = only_run()
    assert (status["status"], status["job"]) == ("done", job)
    [folder] = Path("runs").iterdir()
    assert processes_of(folder) == 2


def test_plain_torchrun_starts_the_same_run(environment: dict[str, str]) -> None:
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    words += ["--master-port", str(free_port()), "-m", "dira_core", "run", *SMALL]
    [(code, said)] = ended([started([*words, "--batch-size", "2"], environment)])
    assert code == 0, said
    assert only_run()["status"] == "done"
    [folder] = Path("runs").iterdir()
    assert processes_of(folder) == 2
