"""The configuration says what is allowed, and keeps what it was given."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from three_stages import ADAPTER
from tiny import tiny_config, tiny_ids, tiny_model

from configuration_plt import PLTConfig
from modeling_plt import PLTForCausalLM


@pytest.mark.parametrize(
    "field, value, allowed",
    [
        ("num_loops", 0, "at least 1"),
        ("num_loops", 1.5, "int"),
        ("sliding_window", 0, "at least 1"),
        ("sliding_window", None, "int"),
        ("loop_attention", "window", "gated_window"),
        ("gate_input", "key", "query"),
        ("loop_shift", "yes", "bool"),
        ("loop_norm", None, "bool"),
        ("embedding_scale", float("nan"), "finite"),
        ("hidden_scale", float("inf"), "finite"),
        ("hidden_size", 0, "at least 1"),
        ("num_hidden_layers", -1, "at least 1"),
        ("num_attention_heads", 0, "at least 1"),
        ("head_dim", 7, "even"),
        ("num_key_value_heads", 3, "multiple of `num_key_value_heads`"),
        ("rms_norm_eps", 0.0, "above 0"),
        ("initializer_range", -0.1, "above 0"),
        ("initializer_range", float("inf"), "finite"),
        ("attention_dropout", 1.0, r"\[0, 1\)"),
    ],
)
def test_a_wrong_value_is_refused_by_name(field, value, allowed):
    with pytest.raises(StrictDataclassError, match=allowed) as raised:
        tiny_config(**{field: value})
    assert field in str(raised.value)
    assert str(value) in str(raised.value)


def test_impossible_combinations_are_refused():
    with pytest.raises(StrictDataclassError, match="`embedding_scale` and `hidden_scale` are both 0"):
        tiny_config(embedding_scale=0.0, hidden_scale=0)
    with pytest.raises(StrictDataclassError, match="`hidden_size` must be a multiple of `num_attention_heads`"):
        tiny_config(head_dim=None, hidden_size=30)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_prelude_layers": 1, "num_coda_layers": 1}, "must leave a layer to loop, got 1 and 1 of 2"),
        ({"num_prelude_layers": -1}, "at least 0, got -1"),
        ({"coda_norm": True}, "`coda_norm=True` needs `num_coda_layers`, got 0"),
        ({"initial_state": "zeros"}, '`initial_state="zeros"` needs `loop_input="adapter"`, got \'sum\''),
        ({"loop_input": "adapter"}, "`embedding_scale` is read with .* must be 1.0 with an adapter, got 0.9"),
        (ADAPTER | {"hidden_scale": 0.5}, "`hidden_scale` is read with .* must be 0.02 with an adapter, got 0.5"),
        (
            ADAPTER | {"learned_scales": True},
            "`learned_scales` is read with .* must be False with an adapter, got True",
        ),
        ({"norm_placement": "post"}, "norm_placement"),
        ({"embedding_multiplier": float("inf")}, "finite"),
        ({"trained_loops": 0}, "at least 1, got 0"),
        ({"trained_loops": 1}, "`num_loops` must be 1, got 2"),
    ],
    ids=str,
)
def test_fields_of_a_core_that_nothing_could_read_are_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        tiny_config(**fields)


@pytest.mark.parametrize("sandwich_norm, placement", [(True, "sandwich"), (False, "pre")])
def test_norms_of_older_folders_are_read(tmp_path, sandwich_norm, placement):
    model = tiny_model(norm_placement=placement)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["norm_placement"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"sandwich_norm": sandwich_norm}))
    loaded, ids = PLTForCausalLM.from_pretrained(tmp_path), tiny_ids(1, 5)
    assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)
    loaded.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert saved["norm_placement"] == placement and "sandwich_norm" not in saved


def test_optional_tensors_exist_only_where_they_are_asked_for():
    def names(**overrides):
        return {name.removeprefix("model.layers.0.") for name in tiny_model(**overrides).state_dict()}

    plain = names(num_hidden_layers=1)
    assert names(num_hidden_layers=1, qk_norm=True) - plain == {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}
    norms = {"input_layernorm_2.weight", "post_attention_layernorm_2.weight"}
    assert names(num_hidden_layers=1, norm_placement="sandwich") - plain == norms
    assert names(num_hidden_layers=1, norm_placement="residual") - plain == norms
    alone = {"input_layernorm.weight", "post_attention_layernorm.weight"}
    assert names(num_hidden_layers=1, norm_placement="output") ^ plain == norms | alone
    adapter = {"model.adapter.weight"}
    assert names(num_hidden_layers=1, **ADAPTER) - plain == adapter
    assert names(num_loops=1, initial_state="zeros", **ADAPTER) - names(num_loops=1) == adapter
    assert names(num_loops=1, **ADAPTER) == names(num_loops=1)
    scales = {"model.embedding_scale", "model.hidden_scale"}
    assert names(num_hidden_layers=1, learned_scales=True) - plain == scales
    assert not names(num_loops=1, learned_scales=True) & scales
    biases = {f"self_attn.{name}_proj.bias" for name in "qkvo"}
    assert names(num_hidden_layers=1, attention_bias=True) - plain == biases
    without_output = names(num_hidden_layers=1, attention_bias=True, attention_output_bias=False)
    assert without_output - plain == biases - {"self_attn.o_proj.bias"}


def test_learned_scales_start_at_the_configured_values():
    config = tiny_config(learned_scales=True, embedding_scale=0.7, hidden_scale=0.0)
    model = PLTForCausalLM(config).model
    torch.testing.assert_close((model.embedding_scale.item(), model.hidden_scale.item()), (0.7, 0.0))


def test_defaults_are_those_of_the_papers():
    config = PLTConfig()
    assert (config.num_loops, config.loop_shift, config.loop_attention) == (2, True, "gated_window")
    assert (config.sliding_window, config.gate_input, config.loop_norm) == (64, "hidden", True)
    assert (config.embedding_scale, config.hidden_scale) == (1.0, config.initializer_range)


def test_the_states_scale_is_that_of_new_embeddings_and_saved_as_a_number(tmp_path):
    PLTConfig(initializer_range=0.06).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["hidden_scale"] == 0.06
    # a trained model keeps the scale it was trained with
    assert PLTConfig.from_pretrained(tmp_path, initializer_range=0.5).hidden_scale == 0.06
    assert PLTConfig(hidden_scale=None, initializer_range=0.3).hidden_scale == 0.3
    assert PLTConfig(hidden_scale=1).hidden_scale == 1


def test_a_configuration_that_was_saved_with_another_default_keeps_its_scale():
    assert PLTConfig.from_dict({"hidden_scale": 1.0, "initializer_range": 0.06}).hidden_scale == 1.0


@pytest.mark.parametrize("field", ["hidden_scale", "num_key_value_heads", "attention_output_bias"])
def test_what_a_new_configuration_fills_in_cannot_be_taken_away(tmp_path, field):
    """Which scale would None mean in a trained model: its own, or that of a new one?"""
    model = tiny_model()
    model.save_pretrained(tmp_path)
    expected = f"`{field}` may be None only when a config is made, not in an edit or an override"
    with pytest.raises(StrictDataclassError, match=expected):
        PLTForCausalLM.from_pretrained(tmp_path, **{field: None})
    setattr(model.config, field, None)
    with pytest.raises(StrictDataclassError, match=expected):
        model.save_pretrained(tmp_path)


def test_a_saved_configuration_returns_unchanged(tmp_path):
    config = tiny_config(num_loops=3, loop_attention="own", hidden_scale=0.053, rope_parameters={"rope_theta": 5e5})
    config.save_pretrained(tmp_path)
    loaded = PLTConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.rope_parameters == {"rope_theta": 5e5, "rope_type": "default"}


def test_a_field_can_be_overridden_when_loading(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    assert PLTConfig.from_pretrained(tmp_path, num_loops=4).num_loops == 4
    assert PLTConfig.from_pretrained(tmp_path, num_hidden_layers=1).layer_types == ["full_attention"]


def test_transformers_takes_no_layer_for_a_sliding_one():
    assert tiny_config().layer_types == ["full_attention", "full_attention"]


def test_misspelled_fields_do_not_slip_through_the_test_helper():
    with pytest.raises(TypeError, match="num_loop"):
        tiny_config(num_loop=3)


@pytest.mark.parametrize("field, value", [("sliding_window", 9), ("num_loops", 2), ("attention_dropout", 0.5)])
def test_a_field_can_be_changed_in_a_model(field, value):
    """Every part of the model reads the same config, and so takes the new value."""
    changed, built = tiny_model(num_loops=3), tiny_model(**{"num_loops": 3} | {field: value})
    built.load_state_dict(changed.state_dict())
    setattr(changed.config, field, value)
    input_ids = tiny_ids(2, 12)
    outputs = []
    for model in (changed, built):
        model.set_attn_implementation("eager")
        cache = model(input_ids[:, :11], use_cache=True).past_key_values
        decoded = model(input_ids[:, 11:], past_key_values=cache, output_attentions=True)
        torch.manual_seed(0)
        outputs.append((*decoded.attentions, decoded.logits, model.train()(input_ids, use_cache=False).logits))
    assert len(outputs[0]) == 4
    torch.testing.assert_close(*outputs, rtol=0, atol=0)


@pytest.mark.parametrize("length", [1, 3])
def test_an_empty_batch_gives_empty_logits(length):
    """With `eager`; torch's own kernels take none."""
    model = tiny_model(num_loops=2)
    model.set_attn_implementation("eager")
    assert model(torch.zeros(0, length, dtype=torch.long)).logits.shape == (0, length, 61)


@pytest.mark.parametrize(
    "field, value, allowed",
    [("num_loops", 0, "at least 1"), ("sliding_window", 0, "at least 1"), ("embedding_scale", float("nan"), "finite")],
)
def test_edits_and_overrides_are_checked_too(tmp_path, field, value, allowed):
    model = tiny_model()
    with pytest.raises(StrictDataclassError, match=allowed):
        setattr(model.config, field, value)
    assert getattr(model.config, field) == getattr(tiny_config(), field)
    model.save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError, match=allowed):
        PLTForCausalLM.from_pretrained(tmp_path, **{field: value})


def test_overrides_that_exclude_each_other_are_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError, match="are both 0"):
        PLTForCausalLM.from_pretrained(tmp_path, embedding_scale=0.0, hidden_scale=0.0)


@pytest.mark.parametrize("loop_attention", ["own", "shared"])
def test_a_gated_model_may_leave_its_gates_out(tmp_path, loop_attention):
    """An edit of the config gives what loading with that setting gives."""
    model, input_ids = tiny_model(num_loops=3), tiny_ids(2, 11)
    model.save_pretrained(tmp_path)
    loaded = PLTForCausalLM.from_pretrained(tmp_path, loop_attention=loop_attention).eval()
    gated = model(input_ids).logits
    model.config.loop_attention = loop_attention
    with torch.no_grad():
        expected, logits = loaded(input_ids).logits, model(input_ids).logits
        cache = model(input_ids[:, :7]).past_key_values
        continued = model(input_ids[:, 7:8], past_key_values=cache).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    torch.testing.assert_close(continued, expected[:, 7:8], rtol=0, atol=2e-5)  # summation order
    assert (logits - gated).abs().max() > 0.1


def test_a_misspelled_field_is_refused():
    with pytest.raises(ValueError, match="`num_loop` is no field of PLTConfig; is `num_loops` meant?"):
        PLTConfig(num_loop=3)
    assert PLTConfig(finetuned_from="x", num_labels=3).num_labels == 3


def test_an_unknown_activation_is_refused():
    with pytest.raises(StrictDataclassError, match="`hidden_act` must be an activation of transformers.*'nope'"):
        tiny_config(hidden_act="nope")


def test_layer_types_other_than_full_attention_are_refused():
    assert tiny_config().from_dict({"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}).num_loops == 2
    with pytest.raises(ValueError, match="`layer_types` must be 2 times 'full_attention'"):
        PLTConfig(num_hidden_layers=2, layer_types=["sliding_attention"] * 2)


@pytest.mark.parametrize(
    "fields, weight",
    [({}, 0.0), ({"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}, 0.001)],
    ids=["dense", "experts"],
)
def test_the_balance_loss_has_a_weight_where_there_are_experts(fields, weight):
    """TRL's trainers ask for router logits where it is not 0."""
    assert tiny_config(**fields).router_aux_loss_coef == weight
