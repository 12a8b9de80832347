"""The libraries that scores rest on come with an extra."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from dira_core.errors import DiraError

LIBRARIES = {"sklearn": "scikit-learn", "scipy": "scipy"}
"""What is imported, and what it is called where packages are installed."""

HEAT_MAPS = {"captum": "captum", "scipy": "scipy"}


def require(libraries: Mapping[str, str] | None = None) -> None:
    """See that libraries are there, before hours are spent on what they are to judge.

    Args:
        libraries: As `LIBRARIES`, which is the default.

    Raises:
        DiraError: One of them is missing; the message has the command that installs all.
    """
    wanted = LIBRARIES if libraries is None else libraries
    missing = [name for module, name in wanted.items() if find_spec(module) is None]
    if missing:
        raise DiraError(
            f'scores need {" and ".join(missing)}, not installed here: pip install "dira-ssl[eval]"'
        )
