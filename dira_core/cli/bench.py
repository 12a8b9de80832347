"""`dira bench`: how fast is it here."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from dira_core.cli.config import recipe_flags
from dira_core.layering import Layer
from dira_core.resolving import resolve

app = typer.Typer(help="Measure speed on this machine.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure speed on this machine, against hand-written loops of the same mathematics."""


Rounds = Annotated[int, typer.Option("--rounds", min=1, help="Times each is measured.")]
Out = Annotated[Path, typer.Option("--out", help="A folder on the disk to measure.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("step")
@recipe_flags
def step(asked: list[Layer], rounds: Rounds = 7, as_json: AsJson = False) -> None:
    """Compare a training step with a bare loop, plain fp32, recomputing, and a whole run.

    All are alternated in one process; times are medians, ratios medians of the rounds' ratios;
    memory is the peak of a step above what a process has before it, in processes of their own.
    """
    from dira_core.bench.step import step as measure

    found = measure(resolve(asked).recipe, rounds)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for name, ms in found.pop("ms").items():
        typer.echo(f"{name:32}{ms:10.1f} ms")
    for name, mib in found.pop("MiB").items():
        typer.echo(f"{name + ', peak':32}{mib:10.0f} MiB" if mib else "")
    for name, value in found.items():
        typer.echo(f"{name:32}{value if isinstance(value, str) else format(value, '10.3f'):>10}")


@app.command("save")
@recipe_flags
def save(
    asked: list[Layer], rounds: Rounds = 7, out: Out = Path(), as_json: AsJson = False
) -> None:
    """Compare saving and loading a run's whole state with torch.save and torch.load.

    "hold" is what a step waits while a thread saves; "load" maps the files, "load, verified" also
    reads every byte of them. Times are medians (least to most), ratios medians of the rounds'.
    """
    from dira_core.bench.save import save as measure

    found = measure(resolve(asked).recipe, rounds, out)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for name, ms in found.pop("ms").items():
        typer.echo(f"{name:32}{_spread(ms)}")
    for name, value in found.items():
        typer.echo(f"{name:32}{value:10.3f}")


@app.command("losses")
def losses(rounds: Rounds = 7, as_json: AsJson = False) -> None:
    """Compare losses and the teacher's update with their published forms, and with float64.

    The arms of each are alternated in one process; times are medians (least to most), ratios
    medians of the rounds' ratios; memory is the peak above the inputs, in a process of its own.
    """
    from dira_core.bench.losses import losses as measure

    found = measure(rounds)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        if not isinstance(value, dict):
            typer.echo(f"{name:32}{value:10.3f}")
            continue
        typer.echo(name)
        for arm in value["ms"]:
            typer.echo(f"  {arm:12}{_row(value, arm)}")


@app.command("data")
def data(
    size: Annotated[int, typer.Option("--size", min=76, help="Side of a view in px.")] = 224,
    side: Annotated[int, typer.Option("--side", min=64, help="Side of an image in px.")] = 1024,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images a step.")] = 64,
    rounds: Rounds = 7,
    as_json: AsJson = False,
) -> None:
    """Compare reading and distorting images with the public code's way, stage by stage.

    From made-up PNG files and from a cache of them to view 1, view 2 and the target, in one process
    and one thread. All are alternated; times are processor time an image: medians (least to most),
    images a second, and how many times as fast as the public code that is.
    """
    from dira_core.bench.data import data as measure

    found = measure(side, size, batch_size, rounds)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for name, times in found["us"].items():
        faster = found["times public code"].get(name)
        note = "" if faster is None else f", {faster:.1f} times"
        typer.echo(f"{name:26}{_spread(times, 'us')}, {found['images/s'][name]:.0f}/s{note}")
        for stage, of_stage in found["stages us"].get(name, {}).items():
            typer.echo(f"  {stage:24}{_spread(of_stage, 'us')}")
    for name in ("dB to Pillow", "cores used", "rounds"):
        typer.echo(f"{name:26}{found[name]:10.4g}")


@app.command("scale")
@recipe_flags
def scale(
    asked: list[Layer],
    rounds: Rounds = 7,
    processes: Annotated[
        list[int], typer.Option("--processes", min=1, help="Numbers of processes, repeated.")
    ] = [1, 2, 4],  # noqa: B006 - typer reads it, nobody writes to it
    as_json: AsJson = False,
) -> None:
    """Compare steps of 1, 2 and 4 processes (DDP, FSDP2) on this machine, and what they exchange.

    --batch-size is the global batch, the same for all; the cores are shared out as threads. All
    arms are alternated, each a team of processes that waits for its turn; times are medians (least
    to most), ratios medians of the rounds' ratios.
    """
    from dira_core.bench.scale import scale as measure

    found = measure(resolve(asked).recipe, rounds, processes, len(os.sched_getaffinity(0)))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        if not isinstance(value, dict):
            typer.echo(f"{name:32}{value}")
            continue
        typer.echo(name)
        for arm, measured in value.items():
            typer.echo(f"  {arm:24}{_measured(measured)}")


def _measured(value: float | dict[str, float]) -> str:
    return _spread(value) if isinstance(value, dict) else f"{value:10.2f}"


def _row(found: dict[str, Any], arm: str) -> str:
    ms, mib, times = found["ms"][arm], found["MiB"][arm], found["times dira"].get(arm)
    parts = [
        _spread(ms),
        f"error {found['error'][arm]:.1e}",
        "" if mib is None else f"{mib:.1f} MiB",
        "" if times is None else f"{times:.2f} times dira",
    ]
    return ", ".join(part for part in parts if part)


def _spread(times: dict[str, float], unit: str = "ms") -> str:
    return f"{times['median']:10.1f} {unit} ({times['min']:.1f} to {times['max']:.1f})"
