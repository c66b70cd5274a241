# SPDX-License-Identifier: Apache-2.0
"""A trained model, saved whole wherever its parts are."""

from typing import Any

from transformers import Trainer


def save_whole(trainer: Trainer) -> None:
    """Save model, tokenizer, code and the log of the run in the folder of the run; all processes call it."""
    model: Any = trainer.model
    model.config.use_cache = True  # Trainer switches it off
    if trainer.is_fsdp_enabled:
        save_gathered(trainer)
    else:
        trainer.save_model()
    trainer.save_state()


def save_gathered(trainer: Trainer) -> None:
    """Save what is sharded; gathered, a head that is tied to the embeddings is a tensor of its own, and left out."""
    model: Any = trainer.model
    trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    gathered = trainer.accelerator.get_state_dict(model)
    tied = tuple(model.all_tied_weights_keys)
    if trainer.args.should_save:
        trainer._save(state_dict={name: each for name, each in gathered.items() if not name.endswith(tied)})
