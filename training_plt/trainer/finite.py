# SPDX-License-Identifier: Apache-2.0
"""A run ends at the first loss that is no number, before anything of it is saved."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class NotFinite(ArithmeticError):
    """A loss or the norm of the gradients is infinite or not a number."""


class StopAtNonFinite(TrainerCallback):
    """Raises `NotFinite`, in all processes, when a loss or a norm of gradients that is logged is not finite.

    The loss that is logged is the mean of all steps since the log before, of all processes. Reading it waits for the
    device, so no other step is looked at; a log comes before each evaluation and each checkpoint, and at the end.
    """

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        if control.should_evaluate or control.should_save or control.should_training_stop:
            control.should_log = True
        return control

    on_epoch_end = on_step_end

    def on_log(  # type: ignore[override]  # Trainer gives what follows by name
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        for name, value in logs.items():
            # fp16 scales the loss until gradients fit: a step in which they do not is left out
            is_watched = name.endswith("loss") or (name == "grad_norm" and not args.fp16)
            if is_watched and not math.isfinite(value):
                raise NotFinite(
                    f"Training stopped at step {state.global_step}: `{name}` must be a finite number, got {value}. "
                    f"Nothing was saved since the last checkpoint; a lower `--learning-rate` may help."
                )


def refuse_filter(arguments: TrainingArguments) -> None:
    """Trainer can log the mean of earlier losses for one that is no number.

    Raises:
        ValueError: it is told to.
    """
    if arguments.logging_nan_inf_filter:
        raise ValueError("`--logging-nan-inf-filter` must be false: a run stops at a loss that is no number.")


@contextmanager
def stopping() -> Iterator[None]:
    """Ends the program with one sentence at what `StopAtNonFinite` raises; for what trains and evaluates."""
    try:
        yield
    except NotFinite as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
