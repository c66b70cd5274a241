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
ROUTED = {"num_experts": 10, "num_experts_per_tok": 3, "moe_intermediate_size": 72}
SHARED = {"shared_expert_intermediate_size": 400}
MORE_OF_EXPERTS = [{"num_experts": 200}, {"num_experts_per_tok": 8}, {"moe_intermediate_size": 256}, SHARED]
MORE_OF_EXPERTS += [SHARED | {"shared_expert_gate": False}]
KINDS = {
    "dense": {},
    "experts": ROUTED | {"mlp_only_layers": [1], "intermediate_size": 1600},
    "shared": ROUTED | SHARED,
}
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
@pytest.mark.parametrize(
    "num_loops, kind", [(1, "dense"), (2, "dense"), (3, "dense"), (1, "experts"), (2, "experts"), (2, "shared")]
)
def test_a_step_needs_what_is_computed(num_loops, kind, bf16, checkpointing):
    config = PLTConfig(**SIZES | KINDS[kind], num_loops=num_loops)
    computed = bytes_of_step(config, Training(BATCH * LENGTH, bf16, checkpointing))["total"]
    share = measured(config, bf16, checkpointing) / computed
    assert (0.7 if checkpointing else 0.93) < share < 1.05, share


@pytest.mark.parametrize(
    "changes",
    [{"hidden_size": 64}, {"intermediate_size": 96}, {"head_dim": 64}, {"sliding_window": 64}]
    + [ROUTED, *(ROUTED | more for more in MORE_OF_EXPERTS)],
    ids=str,
)
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_what_a_layer_keeps_grows_as_computed_with_each_size(changes, bf16):
    sizes = SIZES | changes
    kept = [saved_bytes(PLTConfig(**sizes | {"num_hidden_layers": count}), bf16) for count in (1, 2)]
    config = PLTConfig(**sizes)
    parameters = PLTForCausalLM(config).model.layers[0].named_parameters()
    layer = sum(parameter.numel() for name, parameter in parameters if "mlp.experts" not in name)
    casts = 2 * layer if bf16 else 0  # of the weights, once per layer
    assert kept[1] - kept[0] - casts == pytest.approx(
        BATCH * LENGTH * sum(bytes_of_layer(config, config.stages[0], 0, bf16)), rel=0.02
    )


def test_autocast_has_no_copy_of_experts_but_shards_are_gathered_whole():
    config = PLTConfig(**SIZES | KINDS["experts"])
    weights, experts = PLTForCausalLM(config).num_parameters(), 2 * 10 * 3 * 72 * 128  # of the first and third layer
    casts = [bytes_of_step(config, Training(8, shards=shards))["casts"] for shards in (1, 2)]
    assert casts == [2 * (weights - experts), 2 * weights]
    assert bytes_of_step(config, Training(8, bf16=False))["casts"] == 0


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
        BATCH * LENGTH * sum(bytes_of_layer(config, config.stages[0], 0, bf16=False)), rel=0.01
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
