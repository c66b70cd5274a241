"""Mixture of experts: one loop is transformers' own model, and what routing adds is right for several loops."""

import json

import pytest
import torch
from reference import ReferencePLT
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import EXPERTS, tiny_config, tiny_ids, tiny_model
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from configuration_plt import PLTConfig
from modeling_plt import PLTForCausalLM

IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")
SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "router_aux_loss_coef": 0.5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
OWN = {"num_loops": 1, "intermediate_size": 40, "output_router_logits": True}
ROUTED = {"num_experts": 6, "num_experts_per_tok": 2}
SPARSE = ROUTED | {"moe_intermediate_size": 24, "norm_topk_prob": True}
SHARED = SPARSE | {"shared_expert_intermediate_size": 16, "norm_topk_prob": False, "mlp_only_layers": [1]}
# the class and its config; fields of the config, and of ours, beside SHAPE
PEERS = {
    "qwen3_moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig, SPARSE | {"head_dim": 8}, SPARSE | {"qk_norm": "head"}),
    "qwen3_moe, sparse by steps": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig,
        SPARSE | {"head_dim": 8, "decoder_sparse_step": 2, "intermediate_size": 40},
        SPARSE | {"qk_norm": "head", "decoder_sparse_step": 2},
    ),
    "qwen2_moe": (
        Qwen2MoeForCausalLM,
        Qwen2MoeConfig,
        SHARED | {"intermediate_size": 40},
        SHARED | {"attention_bias": True, "attention_output_bias": False},
    ),
    "olmoe": (
        OlmoeForCausalLM,
        OlmoeConfig,
        ROUTED | {"intermediate_size": 24, "norm_topk_prob": False},
        SPARSE | {"norm_topk_prob": False, "qk_norm": "whole"},
    ),
    "mixtral": (
        MixtralForCausalLM,
        MixtralConfig,
        {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 24, "sliding_window": None},
        SPARSE,
    ),
}


def make_pair(peer, implementation):
    """transformers' model and a PLT of one loop with its weights."""
    kind, config, fields, ours = PEERS[peer]
    theirs = kind(config(**SHAPE | fields, output_router_logits=True)).eval()
    model = PLTForCausalLM(PLTConfig(**SHAPE | OWN | ours)).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "norm" in name:  # ones say nothing about which norm it is
                parameter.normal_(1, 0.3)
    model.load_state_dict(theirs.state_dict())
    for one in (theirs, model):
        one.set_experts_implementation(implementation)
    return theirs, model


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("side", ["no", "left", "right"])
@pytest.mark.parametrize("peer", PEERS)
def test_one_loop_is_transformers_own_model(peer, side, implementation):
    theirs, model = make_pair(peer, implementation)
    ids, mask = tiny_ids(2, 9), torch.ones(2, 9, dtype=torch.long)
    if side != "no":
        mask[1, slice(3) if side == "left" else slice(6, None)] = 0
    labels = ids.masked_fill(mask == 0, -100)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    with torch.no_grad():
        expected, output = theirs(**inputs, labels=labels), model.train()(**inputs, labels=labels)
    real = mask.bool()
    torch.testing.assert_close(output.logits[real], expected.logits[real], rtol=0, atol=2e-5)  # pads take other rows
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.aux_loss, expected.aux_loss, rtol=0, atol=1e-5)
    assert len(output.router_logits) == sum(logits is not None for logits in expected.router_logits)
    for ours, router in zip(output.router_logits, expected.router_logits, strict=True):
        torch.testing.assert_close(ours[real.flatten()], router[real.flatten()], rtol=0, atol=2e-5)


@pytest.mark.parametrize("fields", [{}, {"norm_topk_prob": False}, {"shared_expert_gate": False}], ids=str)
def test_options_of_routing_match_the_reference(fields):
    model = tiny_model(num_loops=3, **EXPERTS | fields).double()
    model.set_experts_implementation("eager")  # grouped kernels have no float64
    ids = tiny_ids(1, 9)
    expected = torch.from_numpy(ReferencePLT(model.config, model.state_dict()).logits(ids[0].tolist()))
    with torch.no_grad():
        logits = model(ids).logits[0]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * expected.abs().max())


@pytest.mark.parametrize("side", ["no", "left", "right"])
@pytest.mark.parametrize("num_loops", [1, 3])
def test_the_balance_loss_is_that_of_all_loops_and_real_tokens(num_loops, side):
    model = tiny_model(num_loops=num_loops, num_hidden_layers=3, **EXPERTS | {"mlp_only_layers": [1]})
    ids, mask = tiny_ids(2, 9), torch.ones(2, 9, dtype=torch.long)
    if side != "no":
        mask[1, slice(3) if side == "left" else slice(6, None)] = 0
    with torch.no_grad():
        output = model(ids, attention_mask=mask, output_router_logits=True)
    reference = ReferencePLT(model.config, model.state_dict())
    for row, of_row in zip(ids, mask.bool(), strict=True):
        reference.logits(row[of_row].tolist())
    assert float(output.aux_loss) == pytest.approx(reference.balance_loss(), abs=1e-5)
    assert [tuple(logits.shape) for logits in output.router_logits] == 2 * num_loops * [(18, 5)]


def test_router_logits_are_those_of_loops_in_turn_and_in_one_pass():
    model = tiny_model(num_loops=3, **EXPERTS)
    ids = tiny_ids(2, 6)
    with torch.no_grad():
        together = model(ids, output_router_logits=True).router_logits
        cache, decoded = None, []
        for token in ids.split(1, dim=1):
            output = model(token, past_key_values=cache, use_cache=True, output_router_logits=True)
            cache, decoded = output.past_key_values, [*decoded, output.router_logits]
    assert len(together) == 6
    for number, logits in enumerate(together):
        in_steps = torch.stack([step[number] for step in decoded], dim=1).flatten(0, 1)
        torch.testing.assert_close(in_steps, logits, rtol=0, atol=2e-5)  # sums of other lengths in float32


def test_router_logits_of_earlier_loops_come_first():
    """No loop changes an earlier one, so a model of fewer loops has the first of them."""
    model, ids = tiny_model(num_loops=3, **EXPERTS), tiny_ids(2, 6)
    with torch.no_grad():
        whole = model(ids, output_router_logits=True).router_logits
        for model.config.num_loops in (1, 2):
            fewer = model(ids, output_router_logits=True).router_logits
            assert len(fewer) == 2 * model.config.num_loops
            for expected, logits in zip(fewer, whole, strict=False):
                torch.testing.assert_close(logits, expected, rtol=0, atol=0)


def test_router_logits_are_those_of_all_positions_where_few_outputs_are_wanted():
    model, ids = tiny_model(num_loops=3, **EXPERTS), tiny_ids(2, 30)
    with torch.no_grad():
        expected, output = (model(ids, output_router_logits=True, logits_to_keep=n) for n in (0, 1))
    assert output.logits.shape[1] == 1
    for logits, all_logits in zip(output.router_logits, expected.router_logits, strict=True):
        torch.testing.assert_close(logits, all_logits, rtol=0, atol=0)
    assert torch.equal(output.aux_loss, expected.aux_loss)


def test_experts_and_routers_start_as_other_weights_do():
    model = PLTForCausalLM(tiny_config(initializer_range=0.3, **EXPERTS | {"num_experts": 40}))
    mlp = model.model.layers[0].mlp
    for weight in (mlp.gate.weight, mlp.experts.gate_up_proj, mlp.experts.down_proj, mlp.shared_expert.up_proj.weight):
        assert weight.std().item() == pytest.approx(0.3, rel=0.1) and abs(weight.mean().item()) < 0.05


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_leaves_loss_and_gradients_as_they_are(use_reentrant):
    ids, losses, gradients = tiny_ids(2, 7), [], []
    for is_checkpointing in (False, True):
        model = tiny_model(num_loops=3, router_aux_loss_coef=1.0, **EXPERTS).train()
        if is_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(*losses, rtol=0, atol=0)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("fields", [{}, {"shared_expert_gate": False}, {"mlp_only_layers": [0]}], ids=str)
@pytest.mark.parametrize("num_loops", [1, 2])
def test_every_parameter_has_a_gradient(num_loops, fields):
    model = tiny_model(num_loops=num_loops, **EXPERTS | fields).train()
    ids = tiny_ids(4, 16)
    model(ids, labels=ids).loss.backward()
    without = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert not without


def test_the_balance_loss_is_added_in_training_only():
    model = tiny_model(num_loops=2, router_aux_loss_coef=1.0, **EXPERTS)
    ids = tiny_ids(2, 9)
    with torch.no_grad():
        reported = model(ids, labels=ids, output_router_logits=True)
        assert model(ids, labels=ids).aux_loss is None  # nothing asks for it
        trained = model.train()(ids, labels=ids)
        model.config.router_aux_loss_coef = 0.0
        without = model(ids, labels=ids)
    torch.testing.assert_close(reported.loss, without.loss, rtol=0, atol=1e-6)
    torch.testing.assert_close(trained.loss, without.loss + reported.aux_loss, rtol=0, atol=1e-6)
    assert without.aux_loss is None


def test_micro_batches_weigh_the_balance_loss_as_one_batch():
    """`Trainer` adds the losses of micro-batches, each divided by all labels of the step."""
    model = tiny_model(num_loops=2, router_aux_loss_coef=1.0, **EXPERTS).train()
    ids = tiny_ids(1, 9).expand(3, -1)
    num_items = 3 * 8
    whole = model(ids, labels=ids).loss
    parts = [model(row[None], labels=row[None], num_items_in_batch=num_items).loss for row in ids]
    torch.testing.assert_close(sum(parts), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_chosen_implementation_runs(implementation, monkeypatch):
    from transformers.integrations import moe

    called = []
    for name in IMPLEMENTATIONS[1:]:
        kernel = moe.ALL_EXPERTS_FUNCTIONS[name]

        def noted(*args, name=name, kernel=kernel, **kwargs):
            called.append(name)
            return kernel(*args, **kwargs)

        monkeypatch.setitem(moe.ALL_EXPERTS_FUNCTIONS, name, noted)
    model = tiny_model(num_loops=2, **EXPERTS)
    model.set_experts_implementation(implementation)
    with torch.no_grad():
        model(tiny_ids(1, 3))
    assert set(called) == {implementation} - {"eager"}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
def test_kernels_give_the_same_logits_and_gradients_of_several_loops(implementation):
    ids, found = tiny_ids(2, 9), []
    for name in ("eager", implementation):
        model = tiny_model(num_loops=3, **EXPERTS).train()
        model.set_experts_implementation(name)
        model(ids, labels=ids, use_cache=False).loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        cache = model.eval()(ids[:, :7], use_cache=True).past_key_values
        with torch.no_grad():
            decoded = [model(ids[:, n : n + 1], past_key_values=cache).logits for n in (7, 8)]
        found.append((torch.cat(decoded, dim=1), gradients))
    (expected, exact), (logits, gradients) = found
    torch.testing.assert_close(logits, expected, rtol=0, atol=5e-5)  # sums of another order, in float32
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, exact[name], rtol=1e-3, atol=1e-5, msg=name)


def test_files_hold_a_matrix_per_expert(tmp_path):
    model = tiny_model(num_loops=2, **EXPERTS)
    model.save_pretrained(tmp_path / "first")
    with safe_open(tmp_path / "first" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {
        f"model.layers.0.mlp.experts.{n}.{kind}_proj.weight" for n in range(5) for kind in ("gate", "up", "down")
    } <= names
    assert not any("gate_up" in name for name in names)
    loaded = PLTForCausalLM.from_pretrained(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "second")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert "base_model_ep_plan" not in json.loads((tmp_path / "first" / "config.json").read_text())
    with torch.no_grad():
        torch.testing.assert_close(loaded(tiny_ids(1, 5)).logits, model(tiny_ids(1, 5)).logits, rtol=0, atol=5e-5)


def test_a_file_loads_into_a_model_as_trainer_does_it(tmp_path):
    model = tiny_model(num_loops=2, **EXPERTS)
    model.save_pretrained(tmp_path)
    other = tiny_model(num_loops=2, seed=1, **EXPERTS)
    assert not any(other.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True))
    for name, parameter in model.named_parameters():
        assert torch.equal(other.get_parameter(name), parameter), name
    assert not any(other.load_state_dict(model.state_dict(), strict=True))  # the model's own names too


def test_experts_are_saved_apart_after_a_dense_model_was_built(tmp_path):
    model = tiny_model(num_loops=2, **EXPERTS)
    tiny_model()
    model.save_pretrained(tmp_path)
    assert "model.layers.0.mlp.experts.0.up_proj.weight" in load_file(tmp_path / "model.safetensors")


def test_experts_load_after_other_code_has_registered_the_model_type(tmp_path):
    """The code of an older folder says of this `model_type`, for the whole process, that no weights are fused."""
    from transformers import conversion_mapping

    model = tiny_model(num_loops=2, **EXPERTS)
    model.save_pretrained(tmp_path)
    conversion_mapping.register_checkpoint_conversion_mapping("plt", [], overwrite=True)
    loaded, info = PLTForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    with torch.no_grad():
        torch.testing.assert_close(loaded(tiny_ids(1, 5)).logits, model(tiny_ids(1, 5)).logits, rtol=0, atol=5e-5)


def test_operations_count_the_experts_that_a_token_is_sent_to():
    fields = EXPERTS | {"shared_expert_intermediate_size": None, "mlp_only_layers": [1]}
    model = tiny_model(num_loops=2, **fields)
    dense = tiny_model(num_loops=2)
    inputs = {"input_ids": tiny_ids(1, 1)}
    of_dense, of_experts = 3 * 32 * 48, 2 * 3 * 32 * 24 + 5 * 32  # its MLP; two experts and the router
    expected = dense.floating_point_ops(inputs) + 6 * 2 * (of_experts - of_dense)
    assert model.floating_point_ops(inputs) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts": -1}, "at least 0"),
        ({"num_experts": 4}, "needs `num_experts_per_tok`"),
        ({"num_experts": 4, "num_experts_per_tok": 2}, "needs `moe_intermediate_size`"),
        (EXPERTS | {"num_experts_per_tok": 6}, "at most `num_experts`, got 6 and 5"),
        (EXPERTS | {"mlp_only_layers": [2]}, "layers below 2, got"),
        (EXPERTS | {"mlp_only_layers": [0, 1]}, "needs a sparse layer"),
        (EXPERTS | {"decoder_sparse_step": 3}, "needs a sparse layer"),
        (
            EXPERTS | {"shared_expert_intermediate_size": None, "shared_expert_gate": False},
            "needs `shared_expert_intermediate_size`",
        ),
        ({"norm_topk_prob": True}, "`norm_topk_prob` needs experts"),
        ({"router_aux_loss_coef": 0.1}, "`router_aux_loss_coef` needs experts"),
        ({"mlp_only_layers": [0]}, "`mlp_only_layers` needs experts"),
    ],
    ids=str,
)
def test_wrong_fields_are_refused_by_name(fields, message):
    from huggingface_hub.errors import StrictDataclassError

    with pytest.raises(StrictDataclassError, match=message):
        tiny_config(**fields)


def test_router_logits_of_a_dense_model_are_refused():
    with pytest.raises(ValueError, match="needs experts"):
        tiny_model()(tiny_ids(1, 3), output_router_logits=True)
