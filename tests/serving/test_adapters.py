"""LoRA adapters: each request gets the tokens of the model that its adapter is merged into."""

import json

import torch
from engines import as_prompts, engine, generated, greedy, random_prompts, save_tiny, served
from safetensors.torch import save_file
from vllm.lora.request import LoRARequest

from modeling_plt import PLTForCausalLM

RANK, ALPHA = 4, 16
TARGETS = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")


def add_adapter(model, folder, seed: int) -> None:
    """Write an adapter as PEFT does, and merge it into the model."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, module in model.named_modules():
        if name.endswith(TARGETS):
            first = 0.3 * torch.randn(RANK, module.in_features, generator=generator)
            second = 0.3 * torch.randn(module.out_features, RANK, generator=generator)
            tensors[f"base_model.model.{name}.lora_A.weight"] = first
            tensors[f"base_model.model.{name}.lora_B.weight"] = second
            module.weight.data += ALPHA / RANK * second @ first
    names = [target.split(".")[1] for target in TARGETS]
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": names, "bias": "none"}
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")


def test_requests_with_two_adapters_in_one_batch_and_without_any(tmp_path):
    """Not both in one batch: on a CPU, vLLM gives the last adapter to requests without one."""
    prompts, expected, adapters = random_prompts(), [], []
    save_tiny(tmp_path / "base", num_loops=3)
    for number in range(2):
        model = PLTForCausalLM.from_pretrained(tmp_path / "base").eval()
        if number == 0:
            without = generated(model, prompts)
        folder = tmp_path / f"adapter-{number}"
        add_adapter(model, folder, seed=number)
        expected.append(generated(model, prompts))
        adapters.append(LoRARequest(folder.name, number + 1, str(folder)))
    assert all(len({*map(tuple, answers)}) == 3 for answers in zip(without, *expected, strict=True))
    requests = [adapters[number % 2] for number in range(len(prompts))]
    with engine(tmp_path / "base", enable_lora=True, max_lora_rank=8, max_loras=2) as llm:
        outputs = llm.generate(as_prompts(prompts), greedy(), use_tqdm=False, lora_request=requests)
        assert served(llm, prompts) == without
    for number, output in enumerate(outputs):
        assert list(output.outputs[0].token_ids) == expected[number % 2][number], number
