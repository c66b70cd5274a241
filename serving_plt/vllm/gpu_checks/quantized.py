# SPDX-License-Identifier: Apache-2.0
"""Quantized checkpoints as their publishers write them: the tensors of each projection, and what config.json says.

Of compressed-tensors (llmcompressor) W8A8, an integer for each weight and a scale for each output; activations are
quantized anew for each token. Of GPTQ (GPTQModel), four bits for each weight, packed in int32, and a scale for each
group of inputs.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modeling_plt import PLTForCausalLM

GROUP = 32
EIGHT_BITS = {"num_bits": 8, "type": "int", "symmetric": True}
W8A8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head", "re:.*mlp.gate$", "re:.*shared_expert_gate$"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": EIGHT_BITS | {"strategy": "channel", "dynamic": False},
            "input_activations": EIGHT_BITS | {"strategy": "token", "dynamic": True},
        }
    },
}
GPTQ = {
    "quant_method": "gptq",
    "checkpoint_format": "gptq",
    "bits": 4,
    "group_size": GROUP,
    "desc_act": False,
    "sym": True,
    "lm_head": False,
}


def w8a8(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The stored tensors of a projection `[out, in]`, and the weights that they stand for."""
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    whole = (weight / scale).round().clamp(-128, 127)
    return {"weight": whole.to(torch.int8), "weight_scale": scale}, whole * scale


def gptq(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """As `w8a8`. Files hold inputs by outputs, and a zero of 8 as 7."""
    outputs, inputs = weight.shape
    groups = weight.T.reshape(inputs // GROUP, GROUP, outputs)
    scale = (groups.abs().amax(dim=1) / 7).half()
    whole = (groups / scale[:, None]).round().clamp(-8, 7)
    stored = {
        "qweight": pack((whole + 8).flatten(0, 1).int().T).T.contiguous(),
        "qzeros": pack(torch.full(scale.shape, 7, dtype=torch.int32)),
        "scales": scale,
        "g_idx": torch.arange(inputs, dtype=torch.int32) // GROUP,
    }
    return stored, (whole * scale[:, None]).flatten(0, 1).T.contiguous()


def pack(values: Tensor) -> Tensor:
    """Eight numbers of 4 bits in an int32, the first one lowest: `[a, 8 * b]` -> `[a, b]`."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int64)
    packed = (values.long().unflatten(-1, (-1, 8)) << shifts).sum(dim=-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).int()


INT8, INT4 = "compressed-tensors W8A8", "GPTQ"
FORMATS = {INT8: (w8a8, W8A8), INT4: (gptq, GPTQ)}
STORED = ("_proj", ".adapter")  # ends of the names of what is quantized


def quantize(folder: Path, name: str) -> dict[str, Tensor]:
    """Write projections and adapter of a saved model in a format; returns the weights that its tensors stand for."""
    store, config = FORMATS[name]
    tensors: dict[str, Tensor] = {}
    meant: dict[str, Tensor] = {}
    for key, tensor in load_file(folder / "model.safetensors").items():
        module, _, kind = key.rpartition(".")
        if module.endswith(STORED) and kind == "weight":
            stored, meant[key] = store(tensor)
            tensors |= {f"{module}.{part}": each for part, each in stored.items()}
        else:
            tensors[key] = meant[key] = tensor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"quantization_config": config}))
    return meant


def to_int8(states: Tensor) -> Tensor:
    """What a row `[..., in]` stands for as integers with one scale."""
    scale = states.abs().amax(dim=-1, keepdim=True) / 127
    return (states / scale).round() * scale


def quantize_with(model: PLTForCausalLM, folder: Path, name: str) -> PLTForCausalLM:
    """Quantize a folder, and let the model that is saved there compute as the folder does; returns the model."""
    model.load_state_dict(quantize(folder, name))
    for key, module in model.named_modules():
        if name == INT8 and key.endswith(STORED) and isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: (to_int8(inputs[0]),))
    return model
