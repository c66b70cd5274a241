"""One of two processes that train; the second has a loss that is no number in step 3: `torchrun ... KIND FLAGS`."""

import importlib
import os
import sys

from transformers import Trainer


def spoil(replace, forward: int) -> None:
    """Makes the loss of a forward of training, counted from 1, not a number; `replace(owner, name, value)` sets it."""
    training_step, calls = Trainer.training_step, []

    def spoiled(self, model, inputs, *args):
        calls.append(1)
        loss = training_step(self, model, inputs, *args)
        return loss * float("nan") if len(calls) == forward else loss

    replace(Trainer, "training_step", spoiled)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    if os.environ["RANK"] == "1":
        spoil(setattr, forward=3)
    importlib.import_module(f"training_plt.{sys.argv[1]}.__main__").main(sys.argv[2:])
