"""The model card beside exported weights: what they are, how to load them, what is not known."""

from __future__ import annotations

import dira_core
from dira_core.escaping import as_markdown
from dira_core.exports.networks import Written
from dira_core.weightfiles import Header


def card(header: Header, to: str, name: str, written: Written) -> str:
    """Return the card, Markdown with the front matter that model hubs read.

    Args:
        header: Of the exported weights.
        to: The target library.
        name: Of the file.
        written: What the target wrote.
    """
    assert header.backbone is not None
    parts = [str(part["name"]) for part in (header.backbone, header.restorer) if part]
    origin = f" It started from {as_markdown(header.origin)}." if header.origin else ""
    history = f"pretrained by self-supervision with dira {dira_core.__version__}.{origin}"
    tags = "self-supervised, medical-imaging, dira"
    if header.imported:
        history = f"not trained with dira, but imported from {as_markdown(header.origin or '')}."
        tags = "dira"
    sides = header.size if isinstance(header.size, int) else " x ".join(map(str, header.size))
    window = header.window if isinstance(header.window, str) else list(header.window)
    return f"""---
library_name: {to}
tags: [{tags}]
---
# {as_markdown(name)}

{" and ".join(parts)}, {history}

## Input

{header.channels} channels, {sides} px, window {window}: {as_markdown(header.preprocessing)}.
The header of the weights says the same under "dira", as JSON.

## Load

```python
{written.code}
```

Note: {written.note}.

## Checked

The same random images through dira and through {to}: outputs differ by at most
{written.difference:.1e} of the largest value.

## To be filled in

What it was trained on, what it is for, its limits and its licence: weights do not know.
"""
