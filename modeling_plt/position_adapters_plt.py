# SPDX-License-Identifier: Apache-2.0
"""Adapters of PEFT for which it matters which positions a call holds, where a PLT has loops, pads and pruning.

With them, loops run in turn and at all positions, so that each call holds the tokens once, as a Llama's does.
"""

from torch import nn

from .pads_plt import Pads

COUNTS, AVERAGES, WEIGHS = "aLoRA", "Lily", "X-LoRA"


def position_adapters(module: nn.Module) -> set[str]:
    """Which of them are anywhere in a module.

    They are known by names, because PEFT may be absent. Every step of decoding asks: `modules()` takes three times
    as long.
    """
    found: set[str] = set()
    remaining = [module]
    while remaining:
        module = remaining.pop()
        if "base_layer" in module._modules:
            found |= adapters_of(module)
        remaining += [child for child in module._modules.values() if child is not None]
    return found


def adapters_of(layer: nn.Module) -> set[str]:
    """Of an adapted layer: aLoRA counts tokens from the end, Lily averages over all, X-LoRA has weights for each."""
    variants = [type(variant).__name__ for variant in vars(layer).get("lora_variant", {}).values()]
    replaced = getattr(vars(layer).get("forward"), "__self__", None)
    is_there = {
        COUNTS: "ALoraLinearVariant" in variants,
        AVERAGES: "lily_router" in layer._modules,
        WEIGHS: type(replaced).__name__ == "XLoraLinearLayer",
    }
    return {name for name, is_found in is_there.items() if is_found}


def refuse_misplaced(adapters: set[str], pads: Pads | None, is_checkpointing: bool) -> None:
    """What is wrong even if loops run in turn and at all positions."""
    if pads is not None and adapters & {COUNTS, WEIGHS}:
        raise NotImplementedError(
            f"{' and '.join(sorted(adapters & {COUNTS, WEIGHS}))} knows tokens by their place in a row, so pads must "
            "come before the tokens, got an `attention_mask` with pads after or between them: inside the layers of a "
            "PLT they come first."
        )
    if is_checkpointing and COUNTS in adapters:
        raise NotImplementedError(
            "aLoRA cannot be trained with gradient checkpointing: PEFT withdraws the invocation's place after a "
            "layer's first backward, and every loop has one."
        )
