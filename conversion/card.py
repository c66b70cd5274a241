# SPDX-License-Identifier: Apache-2.0
"""The model card of a converted folder: what it was made from, by which command, and what was measured."""

import re
from pathlib import Path

from .plan import Plan

LICENSE_LINES = re.compile(r"^(?:license|license_name|license_link):.*$", flags=re.MULTILINE)
HUB = "https://huggingface.co"

CARD = """\
---
library_name: transformers
tags: [plt, looped-transformer, parallel-loop-transformer]
{header}---

# {title}, as a Parallel Loop Transformer

Made from {source} (`{model_type}`) by

```
{command}
```

{what}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # or where this folder lies
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
```

## Checked when it was written

{checks}
"""


def write_card(folder: Path, source: str, source_folder: Path, plan: Plan, command: str, checks: list[str]) -> None:
    """Write `README.md`; the license is named as the source's card names it."""
    config = plan.config
    if config.num_loops == 1:
        what = "A plain decoder: one loop."
    else:
        state = "the previous token's" if config.loop_shift else "its own token's"
        what = (
            f"{config.num_loops} loops over {config.num_hidden_layers} layers; a later loop reads {state} state and "
            f'attends to `"{config.loop_attention}"`.'
        )
    is_local = Path(source).is_dir()
    header = "".join(f"{line}\n" for line in license_lines(source_folder / "README.md"))
    if not is_local:
        header += f"base_model: {source}\n"
    text = CARD.format(
        header=header,
        title=plan.source.title,
        source=f"the folder `{source_folder.resolve().name}`" if is_local else f"[{source}]({HUB}/{source})",
        model_type=plan.source.model_type,
        command=command,
        what="\n\n".join([what, *plan.source.notes]),
        checks="\n".join(f"- {check}" for check in checks),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def license_lines(card: Path) -> list[str]:
    """The lines of a card's front matter that name its license."""
    if not card.is_file():
        return []
    front_matter = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), flags=re.DOTALL)
    return LICENSE_LINES.findall(front_matter[1]) if front_matter else []
