"""`dira transfer`: what weights are worth on a labelled task. `dira targets`: which tasks."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from dira_core.cli.telling import tell
from dira_core.escaping import printable
from dira_core.layering import flag_layers
from dira_core.plugins import installed
from dira_core.transfer.plan import Plan, transfer_plan


def _targets(typed: str) -> list[str]:
    return [name for name in installed().names("target") if name.startswith(typed)]


def transfer(
    weights: Annotated[
        str, typer.Argument(help="Run folder, file of weights, imagenet, random or random:SEED.")
    ],
    target: Annotated[
        str,
        typer.Option(
            "--target", help="The labelled task; see `dira targets`.", autocompletion=_targets
        ),
    ],
    data: Annotated[str | None, typer.Option("--data", help="The target's file or folder.")] = None,
    way: Annotated[
        str | None, typer.Option("--way", help="fine-tune (default), linear or knn.")
    ] = None,
    fraction: Annotated[
        float | None, typer.Option("--fraction", help="Of the training labels: 0.01 is 1 %.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of new layers, of order and of crops.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option("--backbone", help="Encoder, where the weights do not say.")
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", help="Side of an image in px; by default the weights'.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="Of fine-tune, at most; it stops by itself.")
    ] = None,
    seen: Annotated[
        str | None,
        typer.Option("--seen", help="Where pretraining saw test images: warn (default), refuse."),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="key.key=value, for example target.label=finding; repeatable."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the result; by default transfers/NAME."),
    ] = None,
) -> None:
    """Measure what weights are worth on a labelled task.

    fine-tune trains all parameters, and stops when the loss on a tenth of the training part (whole
    patients) stops falling, or where that is too few images, after a fixed number of passes; masks
    take the decoder along. linear: logistic regression on frozen features. knn: their nearest
    neighbours. Both report features as they are ("plain"), and with batch-norm statistics measured
    on the training images ("re-measured").

    Compare with the same command on `random:SEED`, the untrained network of a run, and `imagenet`.
    Test images are the same for every seed and fraction, and are looked at once. Started again, it
    goes on where it was. Needs pip install "dira-ssl[eval]".

    \b
    dira transfer runs/NAME --target csv --data labels.csv --set target.label=finding --way linear
    dira transfer runs/NAME --target masks --data images --set target.masks=masks
    """
    flags: dict[str, tuple[str, object]] = {
        "--way": ("way", way),
        "--fraction": ("fraction", fraction),
        "--seed": ("seed", seed),
        "--backbone": ("backbone", backbone),
        "--size": ("size", size),
        "--epochs": ("training.epochs", epochs),
        "--seen": ("seen", seen),
    }
    plan = transfer_plan(target, data, assignments or [], flag_layers(flags))
    from dira_core.transfer.measure import measure_transfer

    folder = out or Path("transfers") / title(weights, plan)
    done = measure_transfer(weights, plan, folder, tell)
    for line in table(done.result["scores"]):
        typer.echo(line)
    tell(f"result      {folder}/result.json")


def targets() -> None:
    """List the labelled tasks, the files each expects, and its options."""
    for component in installed().components("target"):
        typer.echo(f"{component.name:14}{component.summary}")
        for line in inspect.cleandoc(component.options.__doc__ or "").splitlines()[2:]:
            typer.echo(f"          {line}")
        for name, field in component.options.model_fields.items():
            typer.echo(f"          target.{name}: {field.description}")


def title(weights: str, plan: Plan) -> str:
    """Return what a transfer's folder is called by default."""
    parts = [Path(weights).name.replace(":", "-"), plan.target.name]
    path = dict(plan.target.options).get("path")
    parts += [] if path is None else [Path(path).name if Path(path).is_dir() else Path(path).stem]
    parts += [plan.way, f"{plan.fraction:g}", f"seed{plan.seed}"]
    return "-".join(part for part in parts if part)


def table(scores: Mapping[str, Any]) -> Iterator[str]:
    """Lay scores out: a line for each number, a column for each way they were measured."""
    columns = {name: dict(_lines(each)) for name, each in scores.items()}
    labels = list(dict.fromkeys(label for column in columns.values() for label in column))
    width = max(len(label) for label in labels) + 2
    yield f"{'':{width}}" + "".join(f"{name:>13}" for name in columns)
    for label in labels:
        cells = (column.get(label) for column in columns.values())
        yield f"{label:{width}}" + "".join(
            f"{'not defined' if cell is None else f'{cell:.4f}':>13}" for cell in cells
        )


def _lines(scores: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    for name, score in scores.items():
        if isinstance(score, Mapping) and "mean" in score:
            by_class = score["by_class"]
            if len(by_class) > 1:
                yield f"{name}, mean of classes", score["mean"]
            for of, value in by_class.items():
                yield f"{name} {printable(of)}", value
        elif isinstance(score, float):
            yield name, score
