"""Stages: what runs how often is said once, by the config, and everything reads it.

A config that overrides `stages` alone cuts five layers: two run once, two loop, one runs once; and other cuts.
Its maths is that of the reference: what comes out of the first stage is the embedding of every loop, and what comes
out of the last loop, before its norm, goes into the last stage.
"""

import weakref

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from reference import ReferencePLT
from test_reference import RELATIVE_TOLERANCE
from three_stages import CUTS, NUM_AFTER, NUM_BEFORE, three_stages
from tiny import ABLATION_ROWS, tiny_config, tiny_ids, tiny_model

from configuration_plt import PLTConfig, Stage
from modeling_plt import PLTCache, PLTForCausalLM, PLTStaticCache
from modeling_plt.names_plt import THEIRS

FAMILIES = ("dense", "experts")


def expected(model, ids):
    """Logits `[T, V]` of the reference."""
    cut = model.config.num_before, model.config.num_after
    reference = ReferencePLT(model.config, model.state_dict(), *cut)
    return torch.from_numpy(reference.logits(ids.tolist()))


def assert_same(logits, wanted):
    torch.testing.assert_close(logits, wanted, rtol=0, atol=RELATIVE_TOLERANCE * wanted.abs().max())


@torch.no_grad()
def decoded(model, ids, sizes, cache=None, **kwargs):
    """Logits `[B, T, V]` of chunks of these sizes; and the cache."""
    cache, logits = PLTCache(model.config) if cache is None else cache, []
    for chunk in ids.split(sizes, dim=1):
        logits.append(model(chunk, past_key_values=cache, **kwargs).logits)
    return torch.cat(logits, dim=1), cache


MODELS = pytest.mark.parametrize(
    "fields",
    [
        *({"num_loops": 3} | row for row in ABLATION_ROWS.values()),
        {"num_loops": 1},
        {"num_loops": 2, "loop_norm": False, "sandwich_norm": True, "learned_scales": True},
        {"num_loops": 2, "loop_shift": False},
        {"num_loops": 3, "attn_implementation": "eager", "gate_input": "query", "sliding_window": 1},
    ],
    ids=str,
)


@pytest.mark.parametrize("cut", CUTS)
@MODELS
def test_every_way_through_the_stages_equals_the_reference(fields, cut):
    model, ids = three_stages(cut=cut, **fields), tiny_ids(1, 14)
    wanted = expected(model, ids[0])
    with torch.no_grad():
        assert_same(model(ids, use_cache=False).logits[0], wanted)
        for num_kept in (1, 2, 5):  # pruned
            assert_same(model(ids, logits_to_keep=num_kept, use_cache=False).logits[0], wanted[-num_kept:])
    for sizes in ([1] * 14, [9, 1, 4], [5, 1, 1, 1, 6]):
        assert_same(decoded(model, ids, sizes)[0][0], wanted)
        assert_same(decoded(model, ids, sizes, PLTStaticCache(model.config, 20))[0][0], wanted)
    model.one_pass = False
    assert_same(decoded(model, ids, [1] * 14)[0][0], wanted)


@pytest.mark.parametrize("cut", CUTS)
@MODELS
def test_a_pruned_prompt_leaves_the_same_cache(fields, cut):
    model, ids = three_stages(cut=cut, **fields), tiny_ids(1, 20)
    wanted = expected(model, ids[0])
    _, cache = decoded(model, ids[:, :15], [15], logits_to_keep=1)
    assert_same(decoded(model, ids[:, 15:], [1, 4], cache)[0][0], wanted[15:])


@MODELS
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_themselves_alone(fields, side):
    model, lengths = three_stages(**fields), (12, 7)
    rows = [tiny_ids(1, length, seed=length)[0] for length in lengths]
    ids, mask = torch.zeros(2, 12, dtype=torch.long), torch.zeros(2, 12, dtype=torch.long)
    for number, row in enumerate(rows):
        columns = slice(12 - len(row), 12) if side == "left" else slice(0, len(row))
        ids[number, columns], mask[number, columns] = row, 1
    cache = PLTCache(model.config)
    with torch.no_grad():
        first = model(ids, attention_mask=mask, past_key_values=cache).logits
        new = torch.tensor([[5], [6]])
        second = model(new, attention_mask=torch.cat((mask, torch.ones_like(new)), 1), past_key_values=cache).logits
    for number, row in enumerate(rows):
        wanted = expected(model, torch.cat((row, new[number])))
        assert_same(first[number][mask[number].bool()], wanted[:-1])
        assert_same(second[number], wanted[-1:])


@MODELS
def test_packed_documents_equal_themselves_alone(fields):
    model, ids = three_stages(**fields), tiny_ids(1, 16)
    positions = torch.cat((torch.arange(9), torch.arange(7)))[None]
    with torch.no_grad():
        logits = model(ids, position_ids=positions, use_cache=False).logits[0]
    assert_same(logits, torch.cat((expected(model, ids[0, :9]), expected(model, ids[0, 9:]))))


def test_tokens_of_all_stages_are_taken_back():
    model, ids = three_stages(num_loops=3), tiny_ids(1, 14)
    cache = PLTCache(model.config)
    cache.activate_past_recording()
    decoded(model, torch.cat((ids[:, :6], ids[:, :5]), dim=1), [6, 5], cache)
    cache.crop(-5)
    assert_same(decoded(model, ids[:, 6:], [3, 1, 4], cache)[0][0], expected(model, ids[0])[6:])


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_gradients_are_the_same(use_reentrant):
    gradients = []
    for checkpointing in (False, True):
        model = three_stages(num_loops=3).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        ids = tiny_ids(2, 11)
        model(ids, labels=ids).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(gradient is not None for gradient in gradients[0].values())
    torch.testing.assert_close(*gradients)


def test_only_looped_layers_hold_gates_and_windows():
    model = three_stages(num_loops=3)
    has_gate = [layer.self_attn.plt_gate is not None for layer in model.model.layers]
    assert has_gate == [False, False, True, True, False]
    cache = decoded(model, tiny_ids(1, 9), [9])[1]
    assert [len(later.layers) for later in cache.later_loops] == [2, 2]
    assert len(PLTStaticCache(model.config, 9).later_loops) == 2


@torch.no_grad()
def test_recorded_states_are_those_of_every_layer_in_its_last_loop():
    model, ids = three_stages(num_loops=3), tiny_ids(1, 9)
    output = model.model(ids, output_hidden_states=True)
    left = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda layer, args, result: left.append(result[0]))
    last = model.model(ids).last_hidden_state
    calls = [0, 1, 6, 7]  # two layers, two layers three times, one layer
    embeds = model.model.embed_tokens(ids)
    torch.testing.assert_close(output.hidden_states, (embeds, *(left[call] for call in calls), last))
    torch.testing.assert_close(last, model.model.norm(left[8]))


def test_the_states_of_loops_that_other_layers_follow_are_refused():
    with pytest.raises(NotImplementedError, match="with layers after the loop"):
        three_stages(num_loops=2)(tiny_ids(1, 5), output_loop_hidden_states=True)


def test_operations_count_looped_layers_once_a_loop():
    inputs = {"input_ids": tiny_ids(2, 7)}
    one, three = (three_stages(num_loops=num_loops) for num_loops in (1, 3))
    layers = three.model.layers[NUM_BEFORE:-NUM_AFTER]
    gates = sum(parameter.numel() for layer in layers for parameter in layer.self_attn.plt_gate.parameters())
    repeated = 2 * sum(parameter.numel() for parameter in layers.parameters())
    difference = three.floating_point_ops(inputs) - one.floating_point_ops(inputs)
    assert difference == 6 * 14 * (repeated + gates)


def test_a_cache_of_other_stages_is_refused():
    model = three_stages(num_loops=2)
    cache = PLTCache(tiny_model(num_loops=2, num_hidden_layers=5).config)
    with pytest.raises(ValueError, match="was made for `stages="):
        model(tiny_ids(1, 3), **{THEIRS: cache})


def test_without_a_loop_there_is_nothing_to_refuse():
    model, ids = three_stages(num_loops=1), tiny_ids(1, 5)
    with torch.no_grad():
        output = model.model(ids, output_loop_hidden_states=True)
    assert len(output.loop_hidden_states) == 1
    torch.testing.assert_close(output.loop_hidden_states[0], output.last_hidden_state)


@pytest.mark.parametrize("fields", [{"num_loops": 1}, {"loop_attention": "own"}, {}], ids=["one loop", "own", "plt"])
def test_without_a_cache_keys_that_no_later_loop_reads_are_let_go(fields):
    model = tiny_model(num_hidden_layers=4, **({"num_loops": 2} | fields))
    keys = weakref.WeakSet()
    alive: list[int] = []

    def note(attention, inputs, output):
        keys.add(output[2].untyped_storage())
        alive.append(len(keys))

    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(note)
    with torch.no_grad():
        model(tiny_ids(1, 5), use_cache=False)
    assert max(alive) == (4 if model.config.looped_stage.shares_keys else 2)  # a layer's, and that of the one before


@pytest.mark.parametrize(
    "stages",
    [
        (Stage(range(2), range(2), "window"), Stage(range(2, 5), range(2), "window")),
        (Stage(range(2), range(1), "all"), Stage(range(3, 5), range(2), "window")),
        (Stage(range(2, 5), range(2), "window"), Stage(range(2), range(1), "all")),
    ],
    ids=["two loops", "a layer left out", "another order"],
)
def test_stages_that_are_no_cut_of_the_layers_are_refused(stages):
    kind = type("Wrong", (PLTConfig,), {"stages": property(lambda self: stages)})
    config = kind(**tiny_config(num_hidden_layers=5).to_diff_dict())
    with pytest.raises(StrictDataclassClassValidationError, match="must hold 5 layers in order"):
        PLTForCausalLM(config)
