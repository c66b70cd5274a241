# SPDX-License-Identifier: Apache-2.0
"""A run that continues from a checkpoint, with the settings that it was started with."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from .arguments import folder_of

STATE_FILE = "trainer_state.json"  # which Trainer writes last
SETTINGS_FILE = "run_settings.json"
ABSENT = object()
OPTIMIZATION = (
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "optim",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
)


def find_checkpoint(arguments: TrainingArguments) -> Path | None:
    """The checkpoint that `--resume-from-checkpoint` names, which is a folder, or `true` for the last of the run.

    Raises:
        ValueError: there is none.
    """
    value = arguments.resume_from_checkpoint
    if value is None or str(value).lower() == "false":
        return None
    if str(value).lower() == "true":
        output = folder_of(arguments)
        value = get_last_checkpoint(output) if output.is_dir() else None
        if value is None:
            raise ValueError(f"`--resume-from-checkpoint true` needs a checkpoint in {output}, got none.")
    folder = Path(value)
    if not (folder / STATE_FILE).is_file():
        raise ValueError(f"`--resume-from-checkpoint` must be a checkpoint with a {STATE_FILE}, got {folder}.")
    return folder


def refuse_other_settings(checkpoint: Path, settings: dict[str, Any]) -> None:
    """Refuse to continue a run with other settings than it was started with.

    Raises:
        ValueError: they differ, or the checkpoint does not tell.
    """
    file = checkpoint / SETTINGS_FILE
    if not file.is_file():
        raise ValueError(f"`--resume-from-checkpoint` must be a checkpoint with a {SETTINGS_FILE}, got {checkpoint}.")
    kept = json.loads(file.read_text(encoding="utf-8"))
    if kept.keys() != settings.keys():
        names = ", ".join(f"`{name}`" for name in sorted(kept.keys() ^ settings.keys()))
        raise ValueError(f"`--resume-from-checkpoint` must be of this release, got {file} of another, by its {names}.")
    before, now = flat(kept), flat(json.loads(json.dumps(settings)))
    others = [
        f"`{name}` is {before.get(name, 'not told')!r} and not {now.get(name, 'not told')!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name, ABSENT) != now.get(name, ABSENT)
    ]
    if others:
        raise ValueError(f"A resumed run must have the settings of its checkpoint, where {', '.join(others)}.")


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of fields by a name of their own, as `config.num_loops`."""
    fields: dict[str, Any] = {}
    for name, value in settings.items():
        inner = flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {}
        fields |= inner or {f"{prefix}{name}": value}
    return fields


def optimization(arguments: TrainingArguments) -> dict[str, Any]:
    """What the optimizer and the schedule of a checkpoint hold, which take nothing else from a resumed run."""
    return {name: getattr(arguments, name) for name in OPTIMIZATION}


def entries_of_a_step(arguments: TrainingArguments) -> int:
    """How many batch entries all processes read for one step of the optimizer."""
    return arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size


class KeepSettings(TrainerCallback):
    """Writes the settings of a run into each checkpoint, and the tokenizer, which sharded ones lack otherwise.

    How often a resumed run logs, evaluates and saves is what its arguments say, and not what its checkpoint says.
    """

    def __init__(self, settings: dict[str, Any]):
        self.settings = settings

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        state.compute_steps(args, state.max_steps)

    def on_save(  # type: ignore[override]  # Trainer gives what follows by name
        self, args: Any, state: TrainerState, control: TrainerControl, processing_class: Any, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            processing_class.save_pretrained(folder)
            (folder / SETTINGS_FILE).write_text(json.dumps(self.settings, indent=2), encoding="utf-8")
