# SPDX-License-Identifier: Apache-2.0
"""The model card of a trained folder: how it was made, by which command, and what came of it."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from conversion_plt.target.card import LOAD_MODEL, TAGS

TEXT = """\
# {title}

Made by

```
{command}
```

| | |
|---|---|
{table}

Loss of training and of held-out text: `loss.png`.

```python
{loading}```
"""


def write_card(
    folder: Path, title: str, command: str, facts: dict[str, Any], loading: str = LOAD_MODEL, **data: Any
) -> None:
    """Write `README.md` into a folder.

    Args:
        title: what the model is, in a few words.
        command: that made it.
        facts: what was trained on, with which settings, and what came of it, by the name of each.
        loading: Python that loads it.
        data: further fields of `ModelCardData`, such as `license` and `base_model`.
    """
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    header = ModelCardData(**{"library_name": "transformers", "tags": TAGS} | data)
    text = TEXT.format(title=title, command=command, table=table, loading=loading)
    ModelCard(f"---\n{header}\n---\n\n{text}").save(folder / "README.md")
