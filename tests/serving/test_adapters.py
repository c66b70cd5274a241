"""LoRA adapters: those requests that have one get the tokens of the merged model, next to requests without."""

import json

import torch
from engines import as_prompts, engine, generated, greedy, random_prompts, save_tiny
from safetensors.torch import save_file
from vllm.lora.request import LoRARequest

RANK, ALPHA = 4, 16
TARGETS = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")


def add_adapter(model, folder) -> None:
    """Write an adapter as PEFT does, and merge it into the model."""
    generator, tensors = torch.Generator().manual_seed(4), {}
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


def test_adapted_and_other_requests_in_one_batch(tmp_path):
    model, prompts = save_tiny(tmp_path / "base", num_loops=3), random_prompts()
    expected = [generated(model, prompts)]
    add_adapter(model, tmp_path / "adapter")
    expected.append(generated(model, prompts))
    adapter = LoRARequest("one", 1, str(tmp_path / "adapter"))
    requests = [adapter if number % 2 else None for number in range(len(prompts))]
    with engine(tmp_path / "base", enable_lora=True, max_lora_rank=8) as llm:
        outputs = llm.generate(as_prompts(prompts), greedy(), use_tqdm=False, lora_request=requests)
    for number, output in enumerate(outputs):
        assert list(output.outputs[0].token_ids) == expected[number % 2][number], number
    assert all(one != other for one, other in zip(*expected, strict=True))
