# SPDX-License-Identifier: Apache-2.0
"""The model card of a converted folder: what it was made from, by which command, and what was measured."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, metadata_load

from ..error_text import one_line
from ..plan.plan import Plan

TAGS = ["plt", "looped-transformer", "parallel-loop-transformer"]
ORIGIN = ("base_model", "license", "license_name", "license_link")  # fields that go from card to card
HUB = "https://huggingface.co"

LOAD_MODEL = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # or the path of this folder
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
"""
TEXT = """\
# {title}, as a Parallel Loop Transformer

Made from {source} (`{model_type}`) by

```
{command}
```

{what}

```python
{loading}```

## Checked when it was written

{checks}
"""


def write_card(folder: Path, source: str, source_folder: Path, plan: Plan, command: str, checks: list[str]) -> None:
    """Write `README.md`; origin and license are those that the source's card names."""
    is_local = Path(source).is_dir()
    origin, unread = origin_of(source_folder / "README.md")
    base = {} if is_local else {"base_model": source}
    data = ModelCardData(library_name="transformers", tags=TAGS, **origin | base)
    text = TEXT.format(
        title=plan.source.title,
        source=f"the folder `{source_folder.resolve().name}`" if is_local else f"[{source}]({HUB}/{source})",
        model_type=plan.source.model_type,
        command=command,
        loading=LOAD_MODEL,
        what="\n\n".join([describe(plan), *plan.source.notes, *plan.notes]),
        checks="\n".join(f"- {check}" for check in checks + unread),
    )
    ModelCard(f"---\n{data}\n---\n\n{text}").save(folder / "README.md")


def describe(plan: Plan) -> str:
    """One sentence about the loops of a PLT."""
    config = plan.config
    stage = config.looped_stage
    around = f", between a prelude of {config.num_prelude_layers} and a coda of {config.num_coda_layers}"
    is_whole = len(stage.layers) == config.num_hidden_layers
    if len(stage.loops) == 1:
        return f"A plain decoder: one loop over {len(stage.layers)} layers{'' if is_whole else around}."
    state = "the previous token's" if config.loop_shift else "its own token's"
    mix = " through an adapter" if config.loop_input == "adapter" else ""
    return (
        f"{len(stage.loops)} loops over {len(stage.layers)} layers{'' if is_whole else around}; a later loop reads "
        f'{state} state{mix} and attends to `"{config.loop_attention}"`.'
    )


def origin_of(card: Path) -> tuple[dict[str, Any], list[str]]:
    """What a card's front matter says of origin and license, and a sentence if it cannot be read."""
    if not card.is_file():
        return {}, []
    try:
        data = metadata_load(card) or {}
    except Exception as error:  # a damaged card is no reason to throw the weights away
        return {}, [f"The license is not named here, as the source's README.md cannot be read: {one_line(error)}"]
    return {name: data[name] for name in ORIGIN if name in data}, []
