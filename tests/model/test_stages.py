"""Stages: what runs how often is said once, by the config, and everything reads it.

Five layers: two run once, two loop, one runs once; and other cuts.
Its maths is that of the reference: what comes out of the first stage is the embedding of every loop, and what comes
out of the last loop, before its norm, goes into the last stage.
"""

import weakref

import pytest
import torch
from reference import ReferencePLT
from three_stages import ADAPTER, CUTS, HUGINN, NUM_AFTER, NUM_BEFORE, OLMO, three_stages
from tiny import ABLATION_ROWS, num_active, tiny_ids, tiny_model

from modeling_plt import PLTCache, PLTStaticCache
from modeling_plt.names_plt import THEIRS

FAMILIES = ("dense", "experts")


RELATIVE_TOLERANCE = 1e-4  # rotary tables and norms are float32, and loops without norms between them amplify that


def expected(model, ids):
    """Logits `[T, V]` of the reference."""
    reference = ReferencePLT(model.config, model.state_dict())
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
        {"num_loops": 2, "loop_norm": False, "norm_placement": "sandwich", "learned_scales": True},
        {"num_loops": 2, "loop_shift": False},
        {"num_loops": 3, "attn_implementation": "eager", "gate_input": "query", "sliding_window": 1},
        HUGINN | {"num_loops": 3},
        HUGINN | {"num_loops": 4, "loop_shift": False, "loop_attention": "own"},
        OLMO | {"num_loops": 3},
        OLMO | {"num_loops": 1},
        ADAPTER | {"num_loops": 3, "loop_attention": "shared", "coda_norm": True},
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


@pytest.mark.parametrize("side", ["none", "left", "right"])
@MODELS
def test_states_of_earlier_loops_are_read_out_through_the_coda(fields, side):
    """Those of loop r are the last states of the same weights with r + 1 loops."""
    model, ids, mask = three_stages(**fields), tiny_ids(2, 9), torch.ones(2, 9, dtype=torch.long)
    if side != "none":
        mask[0, slice(3) if side == "left" else slice(6, 9)] = 0
    num_loops, given = model.config.num_loops, {"attention_mask": mask, "use_cache": True}
    with torch.no_grad():
        found = model(ids, output_loop_hidden_states=True, **given).loop_hidden_states
    assert len(found) == num_loops
    for loop_idx, states in enumerate(found):
        model.config.num_loops = loop_idx + 1
        with torch.no_grad():
            wanted = model.model(ids, **given).last_hidden_state
        torch.testing.assert_close(states[mask.bool()], wanted[mask.bool()], rtol=0, atol=1e-10)
        reference = ReferencePLT(model.config, model.state_dict())
        assert_same(states[1], torch.from_numpy(reference.loop_states(ids[1].tolist())[-1]))


@pytest.mark.parametrize("make", [PLTCache, lambda config: PLTStaticCache(config, 20)], ids=["filled", "static"])
def test_earlier_loops_are_not_read_out_beside_a_cache_that_the_coda_has_filled(make):
    model, ids = three_stages(num_loops=2), tiny_ids(1, 5)
    cache = make(model.config)
    if not cache.is_compileable:
        decoded(model, ids, [5], cache)
    with pytest.raises(NotImplementedError, match="with a coda must read all tokens in one forward"):
        model(ids, output_loop_hidden_states=True, past_key_values=cache)
    # without a coda the head reads them, whatever the cache holds
    model = three_stages(num_loops=2, cut="prelude")
    cache = decoded(model, ids, [5])[1]
    with torch.no_grad():
        states = model(ids[:, :1], output_loop_hidden_states=True, past_key_values=cache).loop_hidden_states
    assert len(states) == 2


@torch.no_grad()
def test_embeddings_in_place_of_ids_are_multiplied_too():
    model, ids = three_stages(num_loops=2, **HUGINN), tiny_ids(1, 5)
    assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, model(ids).logits)


@torch.no_grad()
def test_a_decoded_token_calls_every_layer_once():
    model, ids, calls = three_stages(num_loops=3, **HUGINN), tiny_ids(1, 5), []
    cache = decoded(model, ids, [5])[1]
    for name, module in [*model.model.layers.named_children(), ("adapter", model.model.adapter)]:
        module.register_forward_hook(lambda module, args, output, name=name: calls.append(name))
    model(ids[:, :1], past_key_values=cache)
    assert calls == ["0", "1", "adapter", "2", "3", "4"]


def test_operations_count_looped_layers_once_a_loop():
    inputs = {"input_ids": tiny_ids(2, 7)}
    one, three = (three_stages(num_loops=num_loops) for num_loops in (1, 3))
    layers = three.model.layers[NUM_BEFORE:-NUM_AFTER]
    gates = sum(parameter.numel() for layer in layers for parameter in layer.self_attn.plt_gate.parameters())
    repeated = 2 * num_active(three, layers)
    difference = three.floating_point_ops(inputs) - one.floating_point_ops(inputs)
    assert difference == 6 * 14 * (repeated + gates)


@pytest.mark.parametrize("initial_state, calls", [("none", 2), ("zeros", 3), ("prelude", 3)])
def test_operations_count_an_adapter_once_a_call(initial_state, calls):
    inputs, cut = {"input_ids": tiny_ids(2, 7)}, {"num_loops": 3, "loop_attention": "own"}
    model, without = three_stages(initial_state=initial_state, **cut, **ADAPTER), three_stages(**cut)
    difference = model.floating_point_ops(inputs) - without.floating_point_ops(inputs)
    assert difference == 6 * 14 * calls * 2 * 32 * 32


def test_a_cache_of_other_stages_is_refused():
    model = three_stages(num_loops=2)
    cache = PLTCache(tiny_model(num_loops=2, num_hidden_layers=5).config)
    with pytest.raises(ValueError, match="was made for `num_prelude_layers=0`, the model has `num_prelude_layers=2`"):
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
