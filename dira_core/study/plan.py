"""A study as data: which weights meet which tasks, how often. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import (
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from dira_core import toml
from dira_core.components import Options
from dira_core.errors import RecipeError, RunFolderError
from dira_core.files import write_atomic
from dira_core.problems import explain
from dira_core.transfer.plan import Way

STUDY = "study.json"

Arm = Literal["random", "imagenet", "di", "dir", "dira"]
Metric = Literal["auc", "dice_per_image", "iou_per_image"]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Fraction = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Pretraining(Options):
    """What `dira run` is asked for; every key is the flag of that name."""

    preset: str | None = Field(None, description="recipe to start from")
    recipe: str | None = Field(None, description="recipe file, over the preset")
    data: str | None = Field(None, description="folder, file or name of a source of images")
    set: list[str] = Field(default=[], description='texts such as "views.size=64"')


class Task(Options):
    """A labelled task, and how weights are measured on it; as the flags of `dira transfer`."""

    target: str = Field(description="name of a target")
    data: str | None = Field(None, description="its file or folder")
    set: list[str] = Field(default=[], description='texts such as "target.label=finding"')
    ways: list[Way] = Field(default=["fine-tune"], min_length=1, description="of using weights")
    fractions: list[Fraction] = Field(
        default=[1.0], min_length=1, description="of the training labels"
    )
    metric: Metric | None = Field(
        None, description="what tables show; none is auc of labels, dice_per_image of masks"
    )
    features: Literal["re-measured", "plain"] = Field(
        "re-measured",
        description="which frozen features tables show: untrained weights have no batch-norm "
        "statistics of their own",
    )
    truth: str | None = Field(
        None,
        description="CSV file of boxes or masks: Grad-CAM of every fine-tuning is compared with "
        "it, as dira localize does",
    )
    renamed: dict[str, str] = Field(
        default={}, description="what labels of that file are called in the task"
    )


class Study(Options):
    """A grid of pretraining recipes, arms, tasks, label fractions and seeds.

    Seeds, parts and label fractions are the same for all arms.
    """

    arms: list[Arm] = Field(
        default=["random", "di", "dir", "dira"], min_length=1, description="what is compared"
    )
    seeds: list[Seed] = Field(default=[0, 1, 2], min_length=1, description="of transfers")
    pretrain_seeds: Literal["each", "first"] = Field(
        "each",
        description="each: every seed pretrains anew; first: one pretraining is transferred with "
        "every seed, as in the paper; what differs between pretrainings stays unseen, and frozen "
        "features have nothing to vary",
    )
    label_seeds: Literal["each", "first"] = Field(
        "each",
        description="each: every seed draws the labels of a fraction anew, for all arms the same; "
        "first: all seeds have those of the first, and which few labels they are stays unseen",
    )
    pretrain: Pretraining = Field(
        default_factory=Pretraining, description="what all recipes have in common"
    )
    recipes: dict[Name, Pretraining] = Field(default={}, description="pretrainings, by name")
    targets: dict[Name, Task] = Field(min_length=1, description="tasks, by name")
    slurm: dict[str, JsonValue] = Field(
        default={}, description="what submitit asks SLURM for, such as slurm_partition"
    )

    @field_validator("arms")
    @classmethod
    def _in_order(cls, arms: list[Arm]) -> list[Arm]:
        """Bring arms into the order in which each is compared with those before it."""
        return sorted(arms, key=get_args(Arm).index)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in ("arms", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} names something twice")
        if {*self.arms} - {"random", "imagenet"} and not self.recipes:
            raise ValueError("di, dir and dira need a recipe: add a table [recipes.NAME]")
        return self


def read_study(path: Path) -> Study:
    """Read a study file, TOML or JSON.

    Raises:
        RecipeError: One error that lists every problem.
    """
    values = toml.read(path)
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        raise explain(error, Study, values, {}) from error


def keep(study: Study, folder: Path) -> None:
    """Write a study into its folder, from where a report reads it."""
    write_atomic(folder / STUDY, study.model_dump_json(indent=1).encode())


def kept(folder: Path) -> Study:
    """Read the study of a folder.

    Raises:
        RunFolderError: It is damaged.
    """
    path = folder / STUDY
    try:
        return Study.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        way_out = "start the study again, it is written anew"
        raise RunFolderError(f"{path} is damaged: {way_out}") from error


def require_submitit() -> None:
    """See that the library that talks to SLURM is there.

    Raises:
        RecipeError: It is not.
    """
    from importlib.util import find_spec

    if find_spec("submitit") is None:
        raise RecipeError('SLURM needs submitit, not installed here: pip install "dira-ssl[slurm]"')
