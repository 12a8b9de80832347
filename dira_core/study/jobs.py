"""The jobs of a study: each a folder, directed, done where its result.json is. No torch here."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dira_core.errors import RecipeError, RunFolderError
from dira_core.files import read_record, write_atomic
from dira_core.layering import Layer, assignment, gather
from dira_core.recipe import Recipe
from dira_core.resolving import resolve
from dira_core.study.plan import Arm, Study, Task
from dira_core.transfer.plan import Way, transfer_plan

DECIDED = {
    "seed": "seeds",
    "label_seed": "seeds and label_seeds",
    "way": "ways",
    "fraction": "fractions",
}
"""Keys of a transfer that a study decides, and by which of its own."""

JOBS, ASKED, RESULT, ERROR, LOG = "jobs", "asked.json", "result.json", "error.txt", "log.txt"
RUN, TRANSFER, LOCALIZED = "run", "transfer", "localize"


@dataclass(frozen=True)
class Cell:
    """Where in the grid a transfer stands; arms without pretraining have no recipe."""

    recipe: str
    arm: Arm
    target: str
    way: Way
    fraction: float
    seed: int


@dataclass(frozen=True)
class Job:
    """One piece of work.

    Attributes:
        name: Its folder, below the study's `jobs/`.
        asked: All that decides what it does.
        after: Name of the pretraining it needs.
        cell: Of a transfer.
    """

    name: str
    asked: dict[str, Any]
    after: str | None = None
    cell: Cell | None = None

    def folder(self, study: Path) -> Path:
        """Return where it is done."""
        return study / JOBS / self.name

    def done(self, study: Path) -> bool:
        """Say whether it need not be done again."""
        return (self.folder(study) / RESULT).is_file()

    def result(self, study: Path) -> dict[str, Any]:
        """Read what it left when it was done.

        Raises:
            RunFolderError: That is damaged.
        """
        path = self.folder(study) / RESULT
        keys = ["seconds"] if self.cell is None else ["seconds", "scores", "pretraining"]
        found = read_record(path)
        if found is None or any(key not in found for key in keys):
            raise RunFolderError(f"{path} is damaged: remove it, and start the study again")
        return found


@dataclass(frozen=True)
class Weights:
    """One set of weights to be transferred.

    Attributes:
        recipe: Of the pretraining; empty without one.
        arm: Which arm they are.
        seed: Of the transfer.
        source: As `dira transfer` takes it; of a pretraining "run".
        after: Name of the pretraining.
        first: Whether they are another set than those of earlier seeds.
    """

    recipe: str
    arm: Arm
    seed: int
    source: str
    after: str | None
    first: bool


def jobs_of(study: Study) -> list[Job]:
    """Return all jobs, in the order they are best done: pretrainings, then what is soon compared.

    Where seeds share weights and labels, frozen features are measured with the first seed alone:
    the others could not but find the same.

    Raises:
        RecipeError: A recipe or a task is wrong, or recipes cannot be compared.
        PluginError: A plugin they name is broken.
    """
    network = network_of({name: recipe_of(study, name) for name in study.recipes})
    for name, task in study.targets.items():
        _check_set(name, task, network)
    again = study.pretrain_seeds == "each"
    found: dict[str, Job] = {}
    several: list[Weights] = []
    for seed, arm in itertools.product(study.seeds, study.arms):
        first = seed == study.seeds[0]
        if arm == "random":
            several.append(Weights("", arm, seed, f"random:{seed}", None, True))
        elif arm == "imagenet":
            several.append(Weights("", arm, seed, arm, None, first))
        else:
            for name in study.recipes:
                job = _pretraining(study, name, arm, seed if again else study.seeds[0])
                found[job.name] = job
                several.append(Weights(name, arm, seed, RUN, job.name, first or again))
    places = [
        (name, way, fraction)
        for name, task in study.targets.items()
        for way, fraction in itertools.product(task.ways, task.fractions)
    ]
    for name, way, fraction in sorted(places, key=lambda p: (p[1] == "fine-tune", p[2])):
        drawn = fraction < 1 and study.label_seeds == "each"
        for weights in several:
            if way == "fine-tune" or weights.first or drawn:
                cell = Cell(weights.recipe, weights.arm, name, way, fraction, weights.seed)
                labels = cell.seed if drawn else study.seeds[0]
                plan = _plan(study.targets[name], cell, labels, network)
                job = _transfer(study.targets[name], cell, weights, plan)
                found[job.name] = job
    return [*found.values()]


def recipe_of(study: Study, name: str, arm: Arm | None = None, seed: int = 0) -> Recipe:
    """Resolve the recipe of a pretraining: its own keys over those of all."""
    shared, own = study.pretrain, study.recipes[name]
    if shared.recipe and own.recipe:
        raise RecipeError(f"recipes.{name}.recipe: pretrain.recipe is a file already: keep one")
    file = own.recipe or shared.recipe
    layers = gather(
        [Layer.at("seed", ("seed",), seed)],
        preset=own.preset or shared.preset,
        recipe=Path(file) if file else None,
        assignments=[*shared.set, *own.set],
        data=own.data or shared.data,
        mode=arm,
    )
    try:
        return resolve(layers).recipe
    except RecipeError as error:
        raise RecipeError(f"recipes.{name}: {error}") from error


def network_of(recipes: dict[str, Recipe]) -> list[Layer]:
    """Return what of a plan all recipes share, so that untrained networks are the same ones.

    Raises:
        RecipeError: They differ in it.
    """
    found: dict[str, Any] = {}
    for name, recipe in recipes.items():
        whole = recipe.model_dump(mode="json")
        shape = {
            "backbone": whole["backbone"],
            "decoder": whole["restorer"],
            "size": whole["views"]["size"],
            "channels": whole["views"]["channels"],
            "window": getattr(recipe.data.options, "window", None),
        }
        shape = {key: value for key, value in shape.items() if value is not None}
        differing = [key for key in found if key in shape and found[key] != shape[key]]
        if differing:
            raise RecipeError(
                f"recipes.{name} has another {' and '.join(differing)} than the recipes before: "
                "the arm random would not be the same for all, make it a study of its own"
            )
        found |= shape
    return [Layer(key, {key: value}) for key, value in found.items()]


def _pretraining(study: Study, name: str, arm: Arm, seed: int) -> Job:
    recipe = recipe_of(study, name, arm, seed)
    asked = {"kind": "pretrain", "recipe": recipe.model_dump(mode="json")}
    return Job(f"pretrain/{name}-{arm}-seed{seed}", asked)


def _transfer(task: Task, cell: Cell, weights: Weights, plan: dict[str, Any]) -> Job:
    label = f"{cell.recipe}-{cell.arm}" if cell.recipe else cell.arm
    asked: dict[str, Any] = {
        "kind": "transfer",
        "weights": weights.source,
        "after": weights.after,
        "plan": plan,
    }
    if task.truth is not None and cell.way == "fine-tune":
        asked["localize"] = {"truth": task.truth, "renamed": task.renamed}
    place = f"{cell.target}/{cell.way}-{cell.fraction:g}/{label}-seed{cell.seed}"
    return Job(f"transfer/{place}", asked, weights.after, cell)


def _check_set(name: str, task: Task, network: Sequence[Layer]) -> None:
    """Refuse keys of a task that the study decides, or its recipes."""
    networks = {key for layer in network for key in layer.values} & {"backbone", "decoder"}
    decided = DECIDED | dict.fromkeys(networks, "recipes")
    try:
        for key in itertools.chain(*(assignment(text).values for text in task.set)):
            if key in decided:
                raise RecipeError(f"set: {key} is decided by {decided[key]} of the study")
    except RecipeError as error:
        raise RecipeError(f"targets.{name}: {error}") from error


def _plan(task: Task, cell: Cell, label_seed: int, network: Sequence[Layer]) -> dict[str, Any]:
    flags = [
        Layer.at("seeds", ("label_seed",), label_seed),
        Layer.at("ways", ("way",), cell.way),
        Layer.at("fractions", ("fraction",), cell.fraction),
        Layer.at("seeds", ("seed",), cell.seed),
    ]
    try:
        plan = transfer_plan(task.target, task.data, task.set, flags, network)
    except RecipeError as error:
        raise RecipeError(f"targets.{cell.target}: {error}") from error
    return plan.model_dump(mode="json")


def lay_out(jobs: Sequence[Job], study: Path) -> None:
    """Write what each job is asked for into its folder; anew where it never began.

    Raises:
        RunFolderError: A folder holds another job of that name: the study was changed. Or what it
            holds is damaged.
    """
    for job in jobs:
        folder, text = job.folder(study), json.dumps(job.asked, indent=1)
        path = folder / ASKED
        if path.is_file() and any(each.name != ASKED for each in folder.iterdir()):
            before = read_record(path)
            if before is None:
                raise RunFolderError(
                    f"{path} is damaged: remove {folder}, and start the study again"
                )
            changed = [key for key in job.asked if before.get(key) != job.asked[key]]
            if changed:
                raise RunFolderError(
                    f"{folder} was asked for something else ({', '.join(changed)} changed since): "
                    "take the change back, remove that folder, or use another --out"
                )
            if job.done(study):
                job.result(study)  # damage is told now, not after hours of other jobs
            continue
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.encode())
