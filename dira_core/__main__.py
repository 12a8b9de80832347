"""Let `python -m dira_core` be `dira`."""

from __future__ import annotations

from dira_core.cli import main

if __name__ == "__main__":
    main()
