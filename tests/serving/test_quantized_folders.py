"""Folders of compressed-tensors (W8A8) and GPTQ are served as the weights that their tensors stand for."""

import pytest
import torch
from engines import ADAPTER, engine, generated, loaded, logprobs_of, random_prompts, save_tiny, served_with_logprobs
from safetensors.torch import load_file, save_file

from modeling_plt import PLTForCausalLM
from serving_plt.vllm.gpu_checks.quantized import FORMATS, INT4, INT8, quantize, quantize_with

SIZES = {"hidden_size": 64, "intermediate_size": 64}  # the CPU's kernel of 4 bits has multiples of 32
# float32 is not among GPTQ's dtypes. Integers of activations differ where a sum rounds otherwise, which later layers
# enlarge: so half of the log probabilities are equal, and the others near
SETTINGS = {INT8: ("float32", 1e-5, 0.1), INT4: ("float16", 0.02, 0.03)}
LOST = {INT8: "self_attn.k_proj.weight_scale", INT4: "self_attn.k_proj.scales"}


@pytest.mark.parametrize("fields", [{}, ADAPTER], ids=["", "adapter"])
@pytest.mark.parametrize("name", FORMATS)
def test_answers_are_those_of_the_weights_that_are_meant(name, fields, tmp_path):
    """For W8A8, of a reference that quantizes what each projection reads, too."""
    model, prompts = save_tiny(tmp_path, **SIZES | fields), random_prompts()
    unquantized = generated(model, prompts)
    quantize_with(model, tmp_path, name)
    expected = generated(model, prompts)
    assert expected != unquantized
    dtype, median, most = SETTINGS[name]
    with engine(tmp_path, dtype=dtype) as llm:
        for _ in range(2):
            tokens, logprobs = served_with_logprobs(llm, prompts)
            assert sum(ours == theirs for ours, theirs in zip(tokens, expected, strict=True)) >= len(prompts) - 2
            reference = torch.tensor(logprobs_of(model, prompts, tokens)).flatten()
            distances = (torch.tensor(logprobs).flatten() - reference).abs()
            assert distances.median() < median
            assert distances.quantile(0.9) < most


def test_a_folder_of_compressed_tensors_is_read_as_its_publishers_package_does(tmp_path):
    """By transformers: what is written here stands for the same weights there."""
    save_tiny(tmp_path, **SIZES)
    meant = quantize(tmp_path, INT8)
    model = PLTForCausalLM.from_pretrained(tmp_path)
    model(torch.tensor([[5]]))  # before which the integers stay
    read = model.state_dict()
    for name, weight in meant.items():
        assert torch.equal(read[name], weight), name


@pytest.mark.parametrize("name", FORMATS)
def test_names_are_checked(name, tmp_path):
    """A part of a projection, scales, a bias, a tensor of nothing: vLLM itself starts without the first three."""
    save_tiny(tmp_path, **SIZES)
    quantize(tmp_path, name)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = f"model.layers.1.{LOST[name]}"
    whole = [key for key in tensors if key.startswith("model.layers.1.mlp.up_proj.") and not key.endswith("g_idx")]
    kind = lost.rpartition(".")[2]
    cases = {
        f"lacks {lost}.": {key: tensor for key, tensor in tensors.items() if key != lost},
        rf"lacks .*up_proj\.{kind}, ": {
            key: tensor for key, tensor in tensors.items() if not key.endswith(f".{kind}")
        },
        f"lacks {', '.join(sorted(whole))}.": {key: each for key, each in tensors.items() if key not in whole},
        "has a bias model.layers.0.self_attn.q_proj.bias": tensors
        | {"model.layers.0.self_attn.q_proj.bias": torch.ones(128)},
        "extra": tensors | {"model.layers.0.extra.weight": torch.ones(2)},
    }
    for message, changed in cases.items():
        save_file(changed, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=message), loaded(tmp_path, dtype=SETTINGS[name][0]):
            pass
