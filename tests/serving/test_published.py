"""The published format, LoopCoder-V2's, is served as it is: its config, and its gates' other name."""

import json

import pytest
from engines import engine, generated, random_prompts, save_tiny, served
from safetensors.torch import load_file, save_file

from modeling_plt import PLTForCausalLM

PUBLISHED = {  # what the publisher's config.json says of a tiny model
    "architectures": ["IQuestPLTCoderForCausalLM"],
    "model_type": "iquestpltcoder",
    "plt_num_loops": 2,
    "plt_window_size": [3, 0],
    "plt_emb_scale": 0.9,
    "plt_hidden_scale": 0.6,
    "plt_normalize_per_loop": True,
}
SHARED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
SHARED += ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "hidden_act")


@pytest.mark.parametrize(("gate_input", "num_loops"), [("hidden", 2), ("query", 2), ("hidden", 3), ("hidden", 1)])
def test_greedy_tokens_are_those_of_generate(gate_input, num_loops, tmp_path):
    """With its own number of loops, and with others."""
    save_tiny(tmp_path, gate_input=gate_input)
    model = PLTForCausalLM.from_pretrained(tmp_path, num_loops=num_loops).eval()
    fields = json.loads((tmp_path / "config.json").read_text())
    config = PUBLISHED | {name: fields[name] for name in SHARED}
    config |= {"rope_theta": 10000.0, "plt_gate_use_hidden_states": gate_input == "hidden"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace("plt_gate", "loop_gate_proj"): tensor for name, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
    prompts = random_prompts()
    with engine(tmp_path, hf_overrides={"num_loops": num_loops} if num_loops != 2 else {}) as llm:
        assert served(llm, prompts) == generated(model, prompts)
