"""One of several processes that train, run after run: `torchrun ... scale_out_worker.py FILE`.

The file holds, for each run, the name of a module of `training_plt` and its flags.
"""

import importlib
import json
import os
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from tiny import randomize
from transformers import Trainer

from training_plt.pretrain import __main__ as pretrain

create_accelerator, prepare = Trainer.create_accelerator_and_postprocess, pretrain.prepare


def create_as_on_gpus(self: Trainer) -> None:
    """accelerate shards weights on GPUs only: make it take these CPUs for some."""
    if self.args.fsdp:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    create_accelerator(self)


def prepare_random_weights(*arguments):
    """A new gate would hide its norm from the loss."""
    trainer, checkpoint = prepare(*arguments)
    randomize(trainer.model)
    return trainer, checkpoint


if __name__ == "__main__":
    torch.set_num_threads(1)
    Trainer.create_accelerator_and_postprocess = create_as_on_gpus
    pretrain.prepare = prepare_random_weights
    for module, flags in json.loads(Path(sys.argv[1]).read_text()):
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ.pop("ACCELERATE_USE_FSDP", None)
        importlib.import_module(f"training_plt.{module}.__main__").main(flags)
