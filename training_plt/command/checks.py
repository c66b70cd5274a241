# SPDX-License-Identifier: Apache-2.0
"""What can be refused before a text is read and a tokenizer is trained, which may take hours."""

import os
from pathlib import Path
from tempfile import TemporaryFile

from transformers import TrainingArguments
from transformers.integrations.integration_utils import get_available_reporting_integrations

from configuration_plt import PLTConfig

from ..trainer.arguments import folder_of


def refuse_what_cannot_run(arguments: TrainingArguments, attn_implementation: str | None) -> None:
    """Check what a run needs besides data.

    Raises:
        ValueError: a tracker is not installed, or the folder of the run cannot be written.
        NotImplementedError: attention has no backward on the device, or one process has several GPUs.
    """
    if arguments.n_gpu > 1:
        # Trainer would copy the model to each by `nn.DataParallel`, where no hook sees the states of a whole batch
        raise NotImplementedError(
            f"A process must have one GPU, got {arguments.n_gpu}: start one for each by `accelerate launch`, or set "
            "`CUDA_VISIBLE_DEVICES`."
        )
    missing = sorted(set(arguments.report_to or ()) - set(get_available_reporting_integrations()))
    if missing:
        raise ValueError(f"`--report-to` must be trackers that are installed, got {', '.join(missing)}.")
    if attn_implementation == "flex_attention" and arguments.device.type == "cpu":
        raise NotImplementedError("`--attn-implementation flex_attention` needs a GPU: on a CPU it has no backward.")
    if arguments.process_index == 0:
        refuse_unwritable(folder_of(arguments))


def refuse_unwritable(folder: Path) -> None:
    """Try to write into a folder, or into what it would be made in; makes none, as other runs might find it."""
    try:
        there = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ValueError(f"`--output-dir` must be a folder to write into, got {folder}: {error.strerror}.") from None


def refuse_long_blocks(block_size: int, config: PLTConfig) -> None:
    """A block must not be longer than the model's positions."""
    if block_size > config.max_position_embeddings:
        raise ValueError(
            f"`--block-size` must be at most the {config.max_position_embeddings} of `max_position_embeddings`, got "
            f"{block_size}."
        )
