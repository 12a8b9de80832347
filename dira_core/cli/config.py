"""`dira config`, and the flags it shares with every command that needs a recipe."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from dira_core import toml
from dira_core.layering import Layer, flag_layers, gather
from dira_core.plugins import installed


def _flag(flag: str, text: str, kind: str | None = None) -> Any:
    """Make an option; names of a kind of component complete in the shell."""

    def complete(typed: str) -> list[str]:
        return [name for name in installed().names(str(kind)) if name.startswith(typed)]

    return typer.Option(flag, help=text, autocompletion=complete if kind else None)


def layers(
    disc: Annotated[str | None, _flag("--disc", "Discriminator, or none.", "discriminator")] = None,
    res: Annotated[str | None, _flag("--res", "Restorer, or none.", "restorer")] = None,
    adv: Annotated[str | None, _flag("--adv", "Adversary, or none.", "adversary")] = None,
    mode: Annotated[
        str | None,
        _flag("--mode", "di: no Restorer, no Adversary; dir: no Adversary; dira: all three."),
    ] = None,
    no_distort: Annotated[
        bool, typer.Option("--no-distort", help="Leave views.distort out, whatever the mode.")
    ] = False,
    backbone: Annotated[str | None, _flag("--backbone", "Encoder.", "backbone")] = None,
    init: Annotated[
        str | None,
        _flag("--init", "Initial weights: imagenet, a run folder, a file of weights, or none."),
    ] = None,
    data: Annotated[
        str | None, _flag("--data", "Folder, file, or name of a source of images.", "source")
    ] = None,
    size: Annotated[int | None, _flag("--size", "Side of a crop in px.")] = None,
    epochs: Annotated[int | None, _flag("--epochs", "Passes over the images.")] = None,
    batch_size: Annotated[int | None, _flag("--batch-size", "Images a step.")] = None,
    lr: Annotated[float | None, _flag("--lr", "Learning rate of the model.")] = None,
    seed: Annotated[int | None, _flag("--seed", "Of every random number of the run.")] = None,
    precision: Annotated[str | None, _flag("--precision", "auto, fp32, bf16 or fp16.")] = None,
    strategy: Annotated[
        str | None, _flag("--strategy", "Of several processes: ddp or fsdp.")
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile backbone and decoder.")
    ] = False,
    workers: Annotated[int | None, _flag("--workers", "Processes that read images.")] = None,
    preset: Annotated[
        str | None, _flag("--preset", "Recipe to start from, or none.", "preset")
    ] = None,
    recipe: Annotated[Path | None, _flag("--recipe", "TOML or JSON file, over the preset.")] = None,
    assignments: Annotated[
        list[str] | None, _flag("--set", "key.key=value, over the file; can be repeated.")
    ] = None,
) -> list[Layer]:
    """Return the layers of a recipe, lowest first, that flags ask for."""
    flags: dict[str, tuple[str, object]] = {
        "--disc": ("discriminator", disc),
        "--res": ("restorer", res),
        "--adv": ("adversary", adv),
        "--no-distort": ("views.distort", [] if no_distort else None),
        "--backbone": ("backbone", backbone),
        "--init": ("init", init),
        "--size": ("views.size", size),
        "--epochs": ("train.epochs", epochs),
        "--batch-size": ("train.batch_size", batch_size),
        "--lr": ("optimizer.lr", lr),
        "--seed": ("seed", seed),
        "--precision": ("train.precision", precision),
        "--strategy": ("train.strategy", strategy),
        "--compile": ("train.compile", compile or None),
        "--workers": ("loader.workers", workers),
    }
    return gather(
        flag_layers(flags),
        preset=preset,
        recipe=recipe,
        assignments=assignments or [],
        data=data,
        mode=mode,
    )


def recipe_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags that describe a recipe.

    Args:
        command: Takes the layers of the recipe first, `list[Layer]`, then flags of its own.
    """
    shared, own = _parameters(layers), _parameters(command)[1:]

    @functools.wraps(command)
    def with_flags(**given: Any) -> None:
        asked = {parameter.name: given.pop(parameter.name) for parameter in shared}
        command(layers(**asked), **given)

    parameters = [*shared, *own]
    with_flags.__dict__.pop("__wrapped__")  # typer would read the command's own signature
    with_flags.__annotations__ = {p.name: p.annotation for p in parameters}
    with_flags.__dict__["__signature__"] = inspect.Signature(parameters)
    return with_flags


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(function, include_extras=True)
    return [
        parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(function).parameters.values()
    ]


@recipe_flags
def config(
    asked: list[Layer],
    why: Annotated[bool, typer.Option("--why", help="Say where each value comes from.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="JSON schema of recipe files.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of TOML.")] = False,
) -> None:
    """Print the recipe that these flags would run."""
    from dira_core.recipe import recipe_schema, to_toml
    from dira_core.resolving import resolve

    if schema:
        typer.echo(json.dumps(recipe_schema(), indent=2))
        return
    resolved = resolve(asked)
    if as_json:
        document = resolved.recipe.model_dump(mode="json")
        origins = {key: origin for key, _, origin in resolved.explained()}
        typer.echo(json.dumps({"recipe": document, "why": origins} if why else document, indent=2))
    elif why:
        for key, value, origin in resolved.explained():
            typer.echo(f"{key} = {toml.value(value)}  # {origin}")
    else:
        typer.echo(to_toml(resolved.recipe), nl=False)
