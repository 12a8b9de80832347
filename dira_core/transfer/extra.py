"""The libraries that scores rest on come with an extra."""

from __future__ import annotations

from importlib.util import find_spec

from dira_core.errors import DiraError

LIBRARIES = {"sklearn": "scikit-learn", "scipy": "scipy"}
"""What is imported, and what it is called where packages are installed."""


def require() -> None:
    """See that scikit-learn and scipy are there, before hours are spent on what they score.

    Raises:
        DiraError: One of them is missing; the message has the command that installs both.
    """
    missing = [name for module, name in LIBRARIES.items() if find_spec(module) is None]
    if missing:
        raise DiraError(
            f'scores need {" and ".join(missing)}, not installed here: pip install "dira-ssl[eval]"'
        )
