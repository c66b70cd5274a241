"""What cannot work says so, and says why."""

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from tiny import tiny_ids, tiny_model
from transformers import DynamicCache, StaticCache
from transformers.generation.continuous_batching import PagedAttentionCache

from modeling_plt import PLTCache, PLTStaticCache


@pytest.mark.parametrize("make", [lambda config: DynamicCache(), lambda config: StaticCache(config, 20)])
def test_a_foreign_cache_is_refused(make):
    model = tiny_model()
    with pytest.raises(TypeError, match="must be a `PLTCache` or a `PLTStaticCache`, got"):
        model(tiny_ids(1, 4), past_key_values=make(model.config))
    with pytest.raises(TypeError, match="must be a `PLTCache` or a `PLTStaticCache`, got"):
        model.generate(tiny_ids(1, 4), past_key_values=make(model.config), max_new_tokens=2)


@pytest.mark.parametrize(
    "field, value",
    [
        ("num_loops", 2),
        ("loop_shift", False),
        ("loop_attention", "own"),
        ("sliding_window", 8),
        ("num_hidden_layers", 1),
    ],
)
def test_a_cache_that_was_made_for_another_model_is_refused(field, value):
    cache = PLTCache(tiny_model(**({"num_loops": 3} | {field: value})).config)
    with pytest.raises(ValueError, match=f"made for `{field}={value}`, the model has `{field}="):
        tiny_model(num_loops=3)(tiny_ids(1, 4), past_key_values=cache)


def test_prefix_tuning_is_refused():
    model = get_peft_model(tiny_model(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(TypeError, match="Prefix tuning"):
        model(tiny_ids(1, 4))


@pytest.mark.parametrize("name", ["quantized", "offloaded", "offloaded_static"])
def test_other_cache_implementations_are_refused(name):
    with pytest.raises(NotImplementedError, match=f"cache_implementation='{name}'"):
        tiny_model().generate(tiny_ids(1, 4), cache_implementation=name, max_new_tokens=2)


def test_continuous_batching_is_refused():
    model = tiny_model()
    with pytest.raises(NotImplementedError, match="continuous batching"):
        model.generate_batch([[5, 6]])
    assert not hasattr(model, "init_continuous_batching")
    with pytest.raises(NotImplementedError, match="Continuous batching"):
        model(tiny_ids(1, 4), cache=object.__new__(PagedAttentionCache), use_cache=False)


def test_bidirectional_attention_is_refused():
    with pytest.raises(NotImplementedError, match="is_causal=False"):
        tiny_model()(tiny_ids(1, 4), is_causal=False)


@pytest.mark.parametrize("shape", [(1, 1, 6, 6), (2, 5), (2, 7), (6,), (1, 6)])
def test_a_mask_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"`attention_mask` must be \[batch, cached \+ new tokens\].*\[2, 6\] here"):
        tiny_model()(tiny_ids(2, 6), attention_mask=torch.ones(shape))


def test_a_mask_must_cover_the_cached_tokens_too():
    model = tiny_model()
    cache = model(tiny_ids(2, 6), use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"\[2, 8\] here, got \[2, 2\]"):
        model(tiny_ids(2, 2), attention_mask=torch.ones(2, 2), past_key_values=cache)


@pytest.mark.parametrize("num_loops", [1, 2])
def test_a_document_that_starts_after_a_filled_cache_is_refused(num_loops):
    model = tiny_model(num_loops=num_loops)
    cache = model(tiny_ids(1, 5), use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"holds 5 tokens and ends at positions \[4\] .* start at \[0\]"):
        model(tiny_ids(1, 4), position_ids=torch.arange(4)[None], past_key_values=cache)
    with pytest.raises(NotImplementedError, match="after a filled cache"):
        model(tiny_ids(1, 4), position_ids=torch.tensor([[5, 6, 0, 1]]), past_key_values=cache)


def test_position_ids_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"`position_ids` must be \[batch, new tokens\], \[2, 6\] here, got \[2, 5\]"):
        tiny_model()(tiny_ids(2, 6), position_ids=torch.zeros(2, 5, dtype=torch.long))


def test_ids_and_embeddings_exclude_each_other():
    model, input_ids = tiny_model(), tiny_ids(1, 4)
    with pytest.raises(ValueError, match="Exactly one of `input_ids` and `inputs_embeds`"):
        model()
    with pytest.raises(ValueError, match="Exactly one of `input_ids` and `inputs_embeds`"):
        model(input_ids, inputs_embeds=model.get_input_embeddings()(input_ids))


def test_a_cache_is_refused_when_training_with_checkpointing():
    model = tiny_model().train()
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient checkpointing"):
        model(tiny_ids(1, 4), past_key_values=PLTCache(model.config))


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("mask", [None, torch.ones(2, 8)], ids=["no mask", "all ones"])
def test_several_tokens_after_left_padding_need_its_mask(mask, static):
    model, input_ids = tiny_model(num_loops=2), tiny_ids(2, 8)
    padded = torch.tensor([[1] * 5, [0, 0, 0, 1, 1]])
    cache = PLTStaticCache(model.config, 12) if static else PLTCache(model.config)
    model(input_ids[:, :5], attention_mask=padded, past_key_values=cache)
    with pytest.raises(ValueError, match=r"holds \[0, 3\] pads in its batch, but the `attention_mask` marks \[0, 0\]"):
        model(input_ids[:, 5:], attention_mask=mask, past_key_values=cache)
    model(input_ids[:, 5:], attention_mask=torch.cat((padded, torch.ones(2, 3)), dim=1), past_key_values=cache)


def test_the_mask_of_one_token_covers_a_static_cache():
    model = tiny_model()
    cache = PLTStaticCache(model.config, 12)
    model(tiny_ids(1, 8), past_key_values=cache)
    with pytest.raises(ValueError, match=r"\[1, 9\] here, got \[1, 1\]"):
        model(tiny_ids(1, 1), attention_mask=torch.ones(1, 1), past_key_values=cache)


@pytest.mark.parametrize("kind", ["prompt_lookup_num_tokens", "assistant_model"])
def test_lookup_and_assistance_do_not_continue_a_cache(kind):
    model, prompt = tiny_model(num_loops=3), tiny_ids(1, 6)
    kwargs = {kind: 3 if kind == "prompt_lookup_num_tokens" else tiny_model(num_loops=1)}
    cache = model(prompt[:, :5], use_cache=True).past_key_values
    with pytest.raises(NotImplementedError, match="cannot continue from a filled `past_key_values`"):
        model.generate(prompt, past_key_values=cache, max_new_tokens=4, **kwargs)


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(ValueError, match=r"at least one token, got \[2, 0\]"):
        tiny_model()(torch.zeros(2, 0, dtype=torch.long))


def test_logits_beyond_the_last_position_are_refused():
    model, input_ids = tiny_model(), tiny_ids(2, 6)
    for wanted in (torch.tensor([[0, 6], [1, 2]]), torch.tensor([[0, -7], [1, 2]]), torch.tensor([6])):
        with pytest.raises(IndexError):
            model(input_ids, logits_to_keep=wanted)


def test_a_model_without_gates_cannot_be_given_a_gated_window():
    for model in (tiny_model(loop_attention="shared"), tiny_model(num_loops=1)):
        model.config.loop_attention, model.config.num_loops = "gated_window", 2
        with pytest.raises(ValueError, match="needs gates, which this model was built without"):
            model(tiny_ids(1, 4))


def test_positions_that_were_counted_must_continue_those_of_the_cache():
    model, input_ids = tiny_model(num_loops=2), tiny_ids(2, 8)
    cache = PLTCache(model.config)
    model(input_ids[:, :5], position_ids=torch.arange(5)[None] + 7, past_key_values=cache)
    with pytest.raises(ValueError, match=r"ends at positions \[11, 11\] .*counted to start at \[5, 5\]"):
        model(input_ids[:, 5:], past_key_values=cache)


@pytest.mark.parametrize("make", [PLTCache, lambda config: PLTStaticCache(config, 9)], ids=["dynamic", "static"])
def test_a_cache_is_not_filled_layer_by_layer(make):
    model = tiny_model()
    cache, states = make(model.config), torch.zeros(1, 2, 5, 8)
    for others in ((), ({"cache_position": torch.arange(5)},)):  # as caches of other models take them
        with pytest.raises(NotImplementedError, match="is called by the model only.*fill the cache by a forward"):
            cache.update(states, states, 0, *others)


@pytest.mark.parametrize("make", [PLTCache, lambda config: PLTStaticCache(config, 9)], ids=["dynamic", "static"])
def test_a_cache_is_not_gathered_from_replicas(make):
    """As `torch.nn.parallel.scatter_gather.gather` does it with what it does not know."""
    model = tiny_model()
    caches = [make(model.config) for _ in range(2)]
    for cache in caches:
        model(tiny_ids(1, 4), past_key_values=cache)
    with pytest.raises(TypeError, match="nor gathered by `nn.DataParallel`, where forwards need `use_cache=False`"):
        type(caches[0])(map(list, zip(*caches, strict=True)))


def test_a_static_cache_that_was_reset_takes_the_same_batch_only():
    model, input_ids = tiny_model(), tiny_ids(2, 6)
    cache = PLTStaticCache(model.config, 9)
    expected = model(input_ids, past_key_values=cache).logits
    cache.reset()
    address = cache.layers[0].keys.data_ptr()
    with pytest.raises(ValueError, match="holds a batch of 2, the input is one of 1"):
        model(input_ids[:1], past_key_values=cache)
    with pytest.raises(ValueError, match="was filled in torch.float32, the embeddings are torch.float64"):
        tiny_model().double()(input_ids, past_key_values=cache)
    assert torch.equal(model(input_ids, past_key_values=cache).logits, expected)
    assert cache.layers[0].keys.data_ptr() == address


ROPES = {
    "default": {},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": 16},
    "longrope": {
        "factor": 2.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 16,
    },
}


@pytest.mark.parametrize("rope_type", ROPES)
@torch.no_grad()
def test_rope_that_is_changed_in_a_built_model_is_refused(rope_type, tmp_path):
    rope = {"rope_type": rope_type, "rope_theta": 10000.0} | ROPES[rope_type]
    model, input_ids = tiny_model(max_position_embeddings=32, rope_parameters=rope), tiny_ids(1, 40)
    expected = model(input_ids).logits  # longer than the model is for: dynamic types change what they compute
    model.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path)
    reloaded.config.validate()
    for _ in range(2):
        torch.testing.assert_close(reloaded(input_ids).logits, expected)
    for change in (
        lambda: reloaded.config.rope_parameters.update(rope_theta=5e5),
        lambda: setattr(reloaded.config, "rope_parameters", rope | {"rope_theta": 3e5}),
    ):
        change()
        with pytest.raises(ValueError, match="`rope_parameters` must stay those that the model was built with"):
            reloaded(input_ids)
        with pytest.raises(ValueError, match="load it with them"):
            reloaded.generate(input_ids, max_new_tokens=2)
    other = type(model).from_pretrained(tmp_path, rope_parameters=rope | {"rope_theta": 5e5})
    assert (other(input_ids).logits - expected).abs().max() > 1e-3
