# SPDX-License-Identifier: Apache-2.0
"""Inspection of a source and of its target, without reading weights."""

from pathlib import Path

from .error_text import bytes_of
from .plan.plan import make_config, make_plan
from .reading.checkpoint import INDEX_FILE, open_checkpoint, read_json
from .reading.hub import find_folder
from .reading.pickle_weights import PICKLE_INDEX, has_only_pickles
from .sources import find_source


def inspect(source: str, revision: str | None) -> str:
    """Name a source and the config that it would get; tensors are checked too if the weights are local.

    Raises:
        ValueError: it cannot be converted; the message says why.
    """
    folder = find_folder(source, revision, weights=[])
    config = read_json(folder / "config.json")
    found = find_source(config)
    if Path(source).is_dir() and not has_only_pickles(folder):
        plan = make_plan(open_checkpoint(folder), found, None, set())
        found = plan.source
        fields = plan.config.to_diff_dict()
        size = bytes_of(plan.checkpoint.nbytes)
        counts = f"{len(plan.kept)} kept, {plan.num_derived} computed, {len(plan.dropped)} dropped"
        tensors = f"{counts}, {size}"
    else:
        found = found.told_by(dict.fromkeys(names_in_index(folder)))
        fields = make_config(found.config_fields(config, set())).to_diff_dict()
        tensors = "not checked"
    lines = [f"{source}: {found.title} (`{found.model_type}`)", f"becomes: {found.becomes}", f"tensors: {tensors}"]
    lines += [f"note: {note}" for note in found.notes]
    hidden = {"auto_map", "architectures", "model_type", "transformers_version"}
    lines += [f"  {name} = {value!r}" for name, value in sorted(fields.items()) if name not in hidden]
    return "\n".join(lines)


def names_in_index(folder: Path) -> list[str]:
    """The names of a folder's tensors, as far as an index has them."""
    files = [folder / name for name in (INDEX_FILE, PICKLE_INDEX) if (folder / name).is_file()]
    weight_map = read_json(files[0]).get("weight_map") if files else {}
    return list(weight_map) if isinstance(weight_map, dict) else []
