"""What an override leaves out of a folder is not lost when the model is saved."""

import pytest
import torch
from tiny import tiny_ids, tiny_model

from modeling_plt import PLTForCausalLM, PLTForSequenceClassification, PLTModel

WHOLE = {
    "num_loops": 3,
    "learned_scales": True,
    "qk_norm": "head",
    "norm_placement": "sandwich",
    "attention_bias": True,
    "mlp_bias": True,
}


@pytest.mark.parametrize(
    "override, example",
    [
        ({"loop_attention": "own"}, "model.layers.0.self_attn.plt_gate.bias"),
        ({"loop_attention": "shared"}, "model.layers.0.self_attn.plt_gate.bias"),
        ({"learned_scales": False}, "model.embedding_scale"),
        ({"qk_norm": "none"}, "model.layers.0.self_attn.k_norm.weight"),
        ({"norm_placement": "pre"}, "model.layers.0.input_layernorm_2.weight"),
        ({"attention_bias": False}, "model.layers.0.self_attn.k_proj.bias"),
        ({"attention_output_bias": False}, "model.layers.0.self_attn.o_proj.bias"),
        ({"mlp_bias": False}, "model.layers.0.mlp.down_proj.bias"),
        ({"num_hidden_layers": 1}, "model.layers.1.input_layernorm.weight"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [PLTForCausalLM, PLTModel, PLTForSequenceClassification])
def test_a_model_does_not_save_less_than_it_was_given(tmp_path, kind, override, example):
    tiny_model(**WHOLE).save_pretrained(tmp_path / "whole")
    model = kind.from_pretrained(tmp_path / "whole", **override)
    with pytest.raises(ValueError, match=f"would not have .* tensors of the one that was loaded, such as `{example}`"):
        model.save_pretrained(tmp_path / "less")
    assert not (tmp_path / "less").exists()
    # the way out that the message names
    copy = kind(model.config)
    copy.load_state_dict(model.state_dict())
    copy.save_pretrained(tmp_path / "less")
    again, input_ids = kind.from_pretrained(tmp_path / "less"), tiny_ids(1, 9)
    with torch.no_grad():
        assert torch.equal(again.eval()(input_ids)[0], model.eval()(input_ids)[0])


@pytest.mark.parametrize("override", [{}, {"num_loops": 2}, {"num_loops": 4}, {"sliding_window": 2}], ids=str)
@pytest.mark.parametrize("kind", [PLTForCausalLM, PLTModel, PLTForSequenceClassification])
def test_a_model_with_all_tensors_saves_them(tmp_path, kind, override):
    """A class without the head that the folder has is no override."""
    tiny_model(**WHOLE).save_pretrained(tmp_path / "whole")
    model, info = kind.from_pretrained(tmp_path / "whole", output_loading_info=True, **override)
    assert info["unexpected_keys"] == ({"lm_head.weight"} if kind is not PLTForCausalLM else set())
    model.save_pretrained(tmp_path / "again")
    again = kind.from_pretrained(tmp_path / "again")
    assert again.config.num_loops == override.get("num_loops", 3)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
