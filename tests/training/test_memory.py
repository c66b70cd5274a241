"""The bytes of a step, computed, against those of a step on a CPU."""

import pytest
import torch
from tiny import tiny_ids
from torch.distributed._tools.mem_tracker import MemTracker

from configuration_plt import PLTConfig
from modeling_plt import PLTForCausalLM
from training_plt.memory import Training, bytes_of_layer, bytes_of_step

SIZES = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 4, "head_dim": 24}
SIZES |= {"num_key_value_heads": 2, "sliding_window": 16, "num_hidden_layers": 3, "tie_word_embeddings": True}
BATCH, LENGTH = 2, 256


def measured(config: PLTConfig, bf16: bool, checkpointing: bool) -> int:
    """The peak of the second step, when the optimizer has its states."""
    model = PLTForCausalLM(config).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    optimizer, tracker, input_ids = torch.optim.AdamW(model.parameters()), MemTracker(), tiny_ids(BATCH, LENGTH)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(input_ids, labels=input_ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    tracker.track_external(model, optimizer)
    with tracker:
        step()
        tracker.reset_mod_stats()
        step()
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointing"])
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("num_loops", [1, 2, 3])
def test_a_step_needs_what_is_computed(num_loops, bf16, checkpointing):
    config = PLTConfig(**SIZES, num_loops=num_loops)
    computed = bytes_of_step(config, Training(BATCH * LENGTH, bf16, checkpointing))["total"]
    share = measured(config, bf16, checkpointing) / computed
    assert (0.7 if checkpointing else 0.93) < share < 1.05, share


@pytest.mark.parametrize(
    "name, value", [("hidden_size", 64), ("intermediate_size", 96), ("head_dim", 64), ("sliding_window", 64)]
)
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_what_a_layer_keeps_grows_as_computed_with_each_size(name, value, bf16):
    sizes = SIZES | {name: value}
    kept = [saved_bytes(PLTConfig(**sizes | {"num_hidden_layers": count}), bf16) for count in (1, 2)]
    config = PLTConfig(**sizes)
    layer = sum(parameter.numel() for parameter in PLTForCausalLM(config).model.layers[0].parameters())
    casts = 2 * layer if bf16 else 0  # of the weights, once per layer
    assert kept[1] - kept[0] - casts == pytest.approx(
        BATCH * LENGTH * sum(bytes_of_layer(config, config.stages[0], bf16)), rel=0.03
    )


@pytest.mark.parametrize("loop_attention", ["own", "shared"])
def test_what_a_later_loop_keeps_depends_on_its_attention(loop_attention):
    config = PLTConfig(**SIZES, num_loops=2, loop_attention=loop_attention)
    kept = [
        saved_bytes(
            PLTConfig(**SIZES | {"num_loops": 2, "num_hidden_layers": n}, loop_attention=loop_attention), False
        )
        for n in (1, 2)
    ]
    assert kept[1] - kept[0] == pytest.approx(
        BATCH * LENGTH * sum(bytes_of_layer(config, config.stages[0], bf16=False)), rel=0.01
    )


def saved_bytes(config: PLTConfig, bf16: bool) -> int:
    """Of all tensors that the backward will read, but parameters."""
    model, input_ids = PLTForCausalLM(config).train(), tiny_ids(BATCH, LENGTH)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = model(input_ids, labels=input_ids, use_cache=False)
    assert output.loss.requires_grad
    return sum(storage.nbytes() for storage in saved.values())
