# SPDX-License-Identifier: Apache-2.0
"""Adapters that count positions from the end of what a layer gets, where a PLT has loops and pads to spare."""

from torch import nn

from .pads_plt import Pads


def counts_positions(module: nn.Module) -> bool:
    """Whether PEFT's activated LoRA (aLoRA) is anywhere in a module: it adapts a row from its invocation on.

    The class is asked for by name, because PEFT may be absent.
    """
    variants = vars(module).get("lora_variant", {}).values()
    if any(type(variant).__name__ == "ALoraLinearVariant" for variant in variants):
        return True
    # half the time of `modules()`: every step of decoding asks
    return any(child is not None and counts_positions(child) for child in module._modules.values())


def refuse_counting(pads: Pads | None, is_checkpointing: bool) -> None:
    """Where counting from the end is wrong even if loops run in turn."""
    if pads is not None:
        raise NotImplementedError(
            "aLoRA counts tokens from the end of a row, so pads must come before the tokens, got an `attention_mask` "
            "with pads after or between them: inside the layers of a PLT they come first."
        )
    if is_checkpointing:
        raise NotImplementedError(
            "aLoRA cannot be trained with gradient checkpointing: PEFT withdraws the invocation's place after a "
            "layer's first backward, and every loop has one."
        )
