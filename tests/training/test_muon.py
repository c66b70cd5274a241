"""Muon steps every expert's matrices as it steps matrices of their own."""

import copy

import pytest
import torch
from three_stages import ADAPTER
from tiny import EXPERTS, tiny_ids, tiny_model
from transformers import TrainingArguments

from training_plt.pretrain.muon import MuonAndAdamW, split_parameters
from training_plt.trainer.decay import decaying_names


def optimizer_of(model, folder):
    training = TrainingArguments(folder, weight_decay=0.1, learning_rate=0.05, report_to=[], use_cpu=True)
    return MuonAndAdamW(model, training, decaying_names(model))


def step(model, optimizer, seed):
    ids = tiny_ids(2, 9, seed)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def test_each_expert_is_stepped_as_matrices_of_its_own(tmp_path):
    model = tiny_model(num_loops=2, **EXPERTS).train()
    experts = model.model.layers[0].mlp.experts
    parts = [
        *experts.gate_up_proj.detach().clone().unflatten(1, (2, -1)).flatten(0, 1),
        *experts.down_proj.detach().clone(),
    ]
    alone = [torch.nn.Parameter(part) for part in parts]
    optimizer = optimizer_of(model, tmp_path)
    ids = tiny_ids(2, 9)
    model(ids, labels=ids).loss.backward()
    gradients = [*experts.gate_up_proj.grad.unflatten(1, (2, -1)).flatten(0, 1), *experts.down_proj.grad]
    for parameter, gradient in zip(alone, gradients, strict=True):
        parameter.grad = gradient.clone()
    torch.optim.Muon(alone, lr=0.05, weight_decay=0.1, adjust_lr_fn="match_rms_adamw").step()
    optimizer.step()
    stepped = [*experts.gate_up_proj.detach().unflatten(1, (2, -1)).flatten(0, 1), *experts.down_proj.detach()]
    for part, expected in zip(stepped, alone, strict=True):
        torch.testing.assert_close(part, expected.detach(), rtol=0, atol=0)


def test_all_weights_have_one_optimizer(tmp_path):
    model = tiny_model(num_loops=2, **EXPERTS)
    optimizer = optimizer_of(model, tmp_path)
    counted = [
        sum(p.numel() for group in each.param_groups for p in group["params"])
        for each in (optimizer.muon, optimizer.adamw)
    ]
    assert sum(counted) == sum(parameter.numel() for parameter in model.parameters())
    of_experts = sum(p.numel() for layer in model.model.layers for p in layer.mlp.experts.parameters())
    shared = sum(p.numel() for layer in model.model.layers for p in layer.mlp.shared_expert.parameters())
    attention = sum(
        p.weight.numel()
        for layer in model.model.layers
        for p in layer.self_attn.modules()
        if isinstance(p, torch.nn.Linear)
    )
    assert counted[0] == of_experts + shared + attention


def test_gradients_are_gone_after_zero_grad(tmp_path):
    model = tiny_model(num_loops=2, **EXPERTS).train()
    step(model, optimizer_of(model, tmp_path), 1)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_saved_state_goes_on_as_before(tmp_path):
    model = tiny_model(num_loops=2, **EXPERTS).train()
    optimizer = optimizer_of(model, tmp_path)
    step(model, optimizer, 1)
    resumed = copy.deepcopy(model)
    other = optimizer_of(resumed, tmp_path)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(model, optimizer, 2)
    step(resumed, other, 2)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(resumed.get_parameter(name), parameter, rtol=0, atol=0, msg=name)


def test_weights_that_have_moved_are_refused(tmp_path):
    model = tiny_model(num_loops=2, **EXPERTS).train()
    optimizer = optimizer_of(model, tmp_path)
    experts = model.model.layers[0].mlp.experts
    experts.gate_up_proj.data = experts.gate_up_proj.data.clone()
    with pytest.raises(RuntimeError, match="must stay where they were"):
        step(model, optimizer, 1)


def test_the_matrix_of_a_loops_input_is_stepped_as_others(tmp_path):
    model = tiny_model(num_loops=2, **ADAPTER)
    matrices, others = split_parameters(model)
    matrices, others = ({id(parameter) for parameter in group} for group in (matrices, others))
    assert id(model.model.adapter.weight) in matrices
    assert {id(model.lm_head.weight), id(model.model.embed_tokens.weight)} <= others
