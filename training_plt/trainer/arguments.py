# SPDX-License-Identifier: Apache-2.0
"""The arguments of Trainer, with the defaults of pretraining."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainingArguments

from .finite import refuse_filter

BALANCE = "The balance loss of experts (`router_aux_loss_coef` above 0)"


@dataclass
class PretrainingArguments(TrainingArguments):
    """`TrainingArguments` with the settings of arXiv 2606.18023, evaluation, and speed in the log."""

    learning_rate: float = 4e-4
    adam_beta2: float = 0.95
    weight_decay: float = 0.1
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.05
    logging_steps: float = 10
    eval_strategy: str = "steps"
    eval_steps: float | None = 500
    include_num_input_tokens_seen: str = "all"
    logging_nan_inf_filter: bool = False
    dataloader_pin_memory: bool = torch.accelerator.is_available()  # torch warns where there is none
    remove_unused_columns: bool = False  # the collator reads the lengths of the documents

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_reentrant(self)
        refuse_rate(self)
        refuse_filter(self)
        if self.remove_unused_columns:
            raise ValueError("`--remove-unused-columns` must be false: packed texts have a column of lengths.")
        if self.include_num_input_tokens_seen != "all":
            raise ValueError(
                "`--include-num-input-tokens-seen` must be all, of which the speed is computed, got "
                f"{self.include_num_input_tokens_seen}."
            )


def folder_of(arguments: TrainingArguments) -> Path:
    """The folder of the run."""
    return Path(arguments.output_dir or ".")


def refuse_rate(arguments: TrainingArguments) -> None:
    if not 0 <= arguments.learning_rate < math.inf:
        raise ValueError(f"`--learning-rate` must be a number of at least 0, got {arguments.learning_rate}.")


def refuse_smoothing(arguments: TrainingArguments, added: Mapping[str, object]) -> None:
    """Refuse a smoothed loss, which is computed of the logits, past what the model adds to its own loss.

    Args:
        added: what would be lost, and whether the run has it.
    """
    lost = [name for name, value in added.items() if value]
    if lost and arguments.label_smoothing_factor:
        raise NotImplementedError(f"{lost[0]} does not go with `--label-smoothing-factor`.")


def refuse_reentrant(arguments: TrainingArguments) -> None:
    """Reentrant checkpointing of a layer that runs once a loop gives DDP wrong gradients, without an error."""
    options = arguments.gradient_checkpointing_kwargs
    if arguments.world_size > 1 and isinstance(options, dict) and options.get("use_reentrant"):
        raise NotImplementedError(
            "Checkpointing must leave `use_reentrant` false with several processes: the gradients of layers that run "
            "several times would be wrong."
        )
