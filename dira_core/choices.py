"""Types of the keys of a recipe that choose a component."""

from __future__ import annotations

from typing import Annotated

from dira_core.components import Choice
from dira_core.plugins import Chosen

DiscriminatorChoice = Annotated[Choice | None, Chosen("discriminator", optional=True)]
RestorerChoice = Annotated[Choice | None, Chosen("restorer", optional=True)]
AdversaryChoice = Annotated[Choice | None, Chosen("adversary", optional=True)]
DistortionChoice = Annotated[Choice, Chosen("distortion")]
TargetChoice = Annotated[Choice, Chosen("target")]
BackboneChoice = Annotated[Choice, Chosen("backbone")]
SourceChoice = Annotated[Choice, Chosen("source")]
TrackerChoice = Annotated[Choice, Chosen("tracker")]
