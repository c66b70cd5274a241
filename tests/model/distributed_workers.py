"""What each process of `test_distributed.py` runs: `torchrun ... distributed_workers.py TASK FOLDER`."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tiny import tiny_ids
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers.distributed import DistributedConfig

from modeling_plt import PLTForCausalLM


def loss_of(model, input_ids):
    return model(input_ids, labels=input_ids, use_cache=False).loss


def gradients(model):
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: grad.full_tensor() if hasattr(grad, "full_tensor") else grad for name, grad in grads.items()}


def assert_same_gradients(model, alone):
    expected = gradients(alone)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-4, msg=name)  # summation order


def tensor_parallel(folder):
    """Layers split by heads give what one process gives: logits, tokens of generation, gradients."""
    model, alone = PLTForCausalLM.from_pretrained(folder, tp_plan="auto"), PLTForCausalLM.from_pretrained(folder)
    attention, input_ids = model.model.layers[0].self_attn, tiny_ids(2, 9)
    split = [attention.q_proj.weight, attention.k_proj.weight]
    if attention.plt_gate is not None and model.config.qk_norm != "whole":  # there, every process has all heads
        split += attention.plt_gate.parameters()
    split = [part for part in split if part.shape != torch.Size([32])]  # the norm of the gate is whole
    assert [2 * part.to_local().shape[0] for part in split] == [part.shape[0] for part in split]
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids).logits, alone(input_ids).logits, rtol=0, atol=5e-5)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(input_ids, **settings), alone.generate(input_ids, **settings))
    for each in (model.train(), alone.train()):
        loss_of(each, input_ids).backward()
    assert_same_gradients(model, alone)


def expert_parallel(folder):
    """Each process has half of the experts, whole, beside half of the heads: logits and gradients are those of one."""
    plan = DistributedConfig(tp_size=2, ep_size=2)
    model = PLTForCausalLM.from_pretrained(folder, distributed_config=plan)
    alone, input_ids = PLTForCausalLM.from_pretrained(folder), tiny_ids(2, 9)
    of_all, here = (each.model.layers[0].mlp.experts.down_proj for each in (alone, model))
    assert here.to_local().shape == (len(of_all) // 2, *of_all.shape[1:])
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids).logits, alone(input_ids).logits, rtol=0, atol=5e-5)
    for each in (model.train(), alone.train()):
        loss_of(each, input_ids).backward()
    assert_same_gradients(model, alone)


def hybrid_sharding(folder):
    """Two replicas that accumulate gradients, and exchange them with the last batch only."""
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    model, alone = PLTForCausalLM.from_pretrained(folder).train(), PLTForCausalLM.from_pretrained(folder).train()
    for part in (*model.model.layers, model):
        fully_shard(part, mesh=mesh)
    for step in range(3):
        model.set_requires_all_reduce(step == 2)
        input_ids = tiny_ids(4, 9, seed=step)
        loss_of(model, input_ids.chunk(2)[dist.get_rank()]).backward()
        loss_of(alone, input_ids).backward()
    assert_same_gradients(model, alone)


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for folder in sorted(Path(sys.argv[2]).iterdir()):
        {task.__name__: task for task in (tensor_parallel, expert_parallel, hybrid_sharding)}[sys.argv[1]](folder)
    dist.destroy_process_group()
