"""Folders in the format of Huginn and the Retrofits, made of a PLT's tensors by renaming and fusing them.

For Retrofit-OLMo and for other first states than zeros there are no logits of the publishers' code: those that such a
folder expects are the float64 reference's (`tests/reference.py`), written from the published code's arithmetic.
"""

import json
import re

import torch
from reference import ReferencePLT
from safetensors.torch import save_file
from tiny import tiny_model

LOOP = {"loop_shift": False, "loop_attention": "own", "loop_norm": False, "loop_input": "adapter"}
SIZES = {
    "vocab_size": 97,
    "num_hidden_layers": 7,
    "num_prelude_layers": 2,
    "num_coda_layers": 1,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "embedding_scale": 1.0,  # which an adapter does not read, nor the next
    "hidden_scale": 0.02,
}
# what each family is as a PLT, and what its published configs say beside sizes and what all say
RAVENS = {
    "huginn": (
        {
            "norm_placement": "residual",
            "coda_norm": True,
            "attention_bias": True,
            "attention_output_bias": False,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
            "embedding_multiplier": 5.66,
            "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
        },
        {
            "qk_bias": True,
            "tie_embeddings": True,
            "rope_base": 50000,
            "init_values": {"embed_scale": 5.66, "std": 0.1},
        },
    ),
    "llama": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        {"rope_theta": 10000.0, "n_layers": 16},
    ),
    "olmo": (
        {
            "norm_placement": "output",
            "qk_norm": "whole",
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
        },
        {"rope_theta": 1000.0, "n_layers": 7},
    ),
}
RETROFIT = {
    "qk_bias": False,
    "tie_embeddings": False,
    "rope_base": 500000.0,
    "num_key_value_heads": 2,
    "init_values": {"embed_scale": 1.0, "std": 0.1},
}
# of huginn-0125's config.json, which the Retrofits were made from
PUBLISHED = {
    "activation_checkpoint_impl": "per-iteration",
    "architecture_class_name": "RecurrentGPT",
    "architectures": ["RavenForCausalLM"],
    "auto_map": {"AutoConfig": "raven_config_minimal.RavenConfig"},
    "bias": False,
    "block_class_name": "SandwichBlock",
    "block_size": 64,
    "bos_token_id": 93,
    "effective_expected_depth": 132,
    "eos_token_id": 94,
    "init_orthogonal": False,
    "init_strategy": "takase",
    "injection_type": "linear",
    "mean_backprop_depth": 8,
    "mlp_class_name": "GatedMLP",
    "model_type": "huginn_raven",
    "nonlin_name": "SiLU",
    "norm_class_name": "RMSNorm_llama",
    "norm_eps": 1e-5,
    "pad_token_id": 95,
    "padding_multiple": 4096,
    "sampling_scheme": "poisson-lognormal-filling",
    "state_init": "like-init",
    "test_time_noise": 0,
    "test_time_noise_type": "fixed",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.44.2",
}
NORMS = {
    "huginn": ("input_layernorm", "input_layernorm_2", "post_attention_layernorm", "post_attention_layernorm_2"),
    "llama": ("input_layernorm", "post_attention_layernorm"),
    "olmo": ("input_layernorm_2", "post_attention_layernorm_2"),
}
PLAIN_NAMES = {
    "model.embed_tokens.weight": "transformer.wte.weight",
    "model.norm.weight": "transformer.ln_f.weight",
    "model.adapter.weight": "transformer.adapter.weight",
    "lm_head.weight": "lm_head.weight",
}


def raven(family, **fields):
    """The model that a folder of this family stands for."""
    return tiny_model(**SIZES | LOOP | {"initial_state": "zeros", "num_loops": 3} | RAVENS[family][0] | fields)


def published_config(model, family, **fields):
    """What the publisher's `config.json` says of the model."""
    config = model.config
    core = config.num_hidden_layers - config.num_prelude_layers - config.num_coda_layers
    sizes = {
        "n_embd": config.hidden_size,
        "n_heads": config.num_attention_heads,
        "n_layers": 8,
        "n_layers_in_prelude": config.num_prelude_layers,
        "n_layers_in_recurrent_block": core,
        "n_layers_in_coda": config.num_coda_layers,
        "head_dim": config.head_dim,
        "num_key_value_heads": config.num_key_value_heads,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "padded_vocab_size": config.vocab_size,
        "mean_recurrence": config.num_loops,
    }
    own = RAVENS[family][1] if family == "huginn" else RETROFIT | RAVENS[family][1]
    return PUBLISHED | sizes | own | {"num_key_value_heads": config.num_key_value_heads} | fields


def published_tensors(model, family):
    """The model's tensors under the publisher's names, fused as there."""
    config, tensors = model.config, {}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, tensor in weights.items():
        if (found := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)) is not None:
            layer_idx, leaf = int(found[1]), found[2]
            tensors |= layer_tensor(config, family, place(config, layer_idx), leaf, weights, name)
        else:
            tensors[PLAIN_NAMES[name]] = tensor
    if family == "huginn":
        tensors["freqs_cis"] = table(config)
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    return tensors


def place(config, layer_idx):
    core, coda = config.num_prelude_layers, config.num_hidden_layers - config.num_coda_layers
    if layer_idx < core:
        return f"transformer.prelude.{layer_idx}"
    return f"transformer.core_block.{layer_idx - core}" if layer_idx < coda else f"transformer.coda.{layer_idx - coda}"


def layer_tensor(config, family, prefix, leaf, weights, name):
    """The publisher's tensor that starts with one of ours; none where another of ours starts it."""
    if leaf.split(".")[0] in NORMS[family]:
        return {f"{prefix}.norm_{1 + NORMS[family].index(leaf.split('.')[0])}.weight": weights[name]}
    if leaf == "self_attn.q_proj.weight":
        parts = [weights[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
        if family == "huginn":
            parts[:2] = [neighbours(part, config.head_dim) for part in parts[:2]]
        return {f"{prefix}.attn.Wqkv.weight": torch.cat(parts)}
    if leaf == "self_attn.q_proj.bias":
        biases = [neighbours(weights[name.replace("q_proj", f"{letter}_proj")], config.head_dim) for letter in "qk"]
        return {f"{prefix}.attn.qk_bias": torch.stack(biases).view(2, 1, -1, config.head_dim)}
    if leaf == "mlp.gate_proj.weight":
        return {f"{prefix}.mlp.fc.weight": torch.cat([weights[name], weights[name.replace("gate", "up")]])}
    names = {"self_attn.o_proj.weight": "attn.proj.weight", "mlp.down_proj.weight": "mlp.proj.weight"}
    names |= {f"self_attn.{letter}_norm.weight": f"attn.{letter}_norm.weight" for letter in "qk"}
    return {f"{prefix}.{names[leaf]}": weights[name]} if leaf in names else {}


def neighbours(rows, head_dim):
    """Row d of a head's first half next to row d of its second."""
    order = [half * head_dim // 2 + pair for pair in range(head_dim // 2) for half in (0, 1)]
    return torch.cat([head[order] for head in rows.split(head_dim)])


def table(config):
    """Huginn's stored rotation `[1, T, 1, Dh / 2, 2]`."""
    half = torch.arange(config.head_dim // 2, dtype=torch.float64)
    theta = config.rope_parameters["rope_theta"] ** (-2 * half / config.head_dim)
    angles = torch.arange(config.max_position_embeddings)[:, None] * theta
    return torch.stack((angles.cos(), angles.sin()), dim=-1).float()[None, :, None]


def write(folder, model, family, **fields):
    """A folder of the publisher's, with the reference's logits as `expected.safetensors`; returns it."""
    for name, parameter in model.named_parameters():
        if name.endswith("v_proj.bias"):  # there is none
            parameter.data.zero_()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(published_config(model, family, **fields)))
    save_file(published_tensors(model, family), folder / "model.safetensors", metadata={"format": "pt"})
    input_ids = torch.randint(97, (2, 11), generator=torch.Generator().manual_seed(1))
    write_expected(folder / "expected.safetensors", model, input_ids)
    return folder


def write_expected(file, model, input_ids):
    """The reference's logits for these tokens, in float64."""
    reference = ReferencePLT(model.config, model.state_dict())
    logits = torch.stack([torch.from_numpy(reference.logits(ids.tolist())) for ids in input_ids])
    save_file({"input_ids": input_ids, "logits": logits}, file)
