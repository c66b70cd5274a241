# SPDX-License-Identifier: Apache-2.0
"""A tiny PLT with X-LoRA: two experts, weighed for each token by what the bare model says of it."""

from pathlib import Path

import peft
import torch
from tiny import tiny_model


def x_lora(folder: Path) -> peft.PeftModel:
    experts = {str(seed): str(folder / str(seed)) for seed in (0, 1)}
    for seed, expert in experts.items():
        torch.manual_seed(int(seed))
        config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        peft.get_peft_model(tiny_model(num_loops=3), config).save_pretrained(expert)
    config = peft.XLoraConfig(hidden_size=32, adapters=experts, layerwise_scalings=True, task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny_model(num_loops=3, use_cache=False), config)  # PEFT demands `use_cache=False`
    torch.nn.init.normal_(model.base_model.internal_xlora_classifier.layers[-1].weight)  # tokens' weights differ
    return model.eval()
