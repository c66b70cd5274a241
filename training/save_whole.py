# SPDX-License-Identifier: Apache-2.0
"""A trained model, saved whole wherever its parts are."""

from transformers import Trainer


def save_whole(trainer: Trainer) -> None:
    """Save model, tokenizer, code and the log of the run in the folder of the run; all processes call it."""
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.model.config.use_cache = True  # Trainer switches it off
    trainer.save_model()
    trainer.save_state()
