"""The bounds beside the figures of `plt bench` are those that one computes by hand."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts, Qwen3MoeTopKRouter

from laboratory.costs.arithmetic import multiplications, with_bound
from laboratory.costs.decode import measure_decoding
from laboratory.costs.many_tokens import training_step
from laboratory.costs.step_bytes import experts_read, share_alike, step_bytes
from measuring_plt.greedy import all_logits, first_token
from measuring_plt.models import Setup, SharedWeights, empty_model, random_ids
from measuring_plt.rows import PLAIN, ROWS
from measuring_plt.sizes import SIZES

TINY = Setup(SIZES["tiny"], torch.device("cpu"), torch.float32, "sdpa")
# the first of two layers has 5 experts of width 16, and one more that every token has
ROUTED = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "mlp_only_layers": [1]}
EXPERTS = replace(TINY, fields=TINY.fields | ROUTED | {"shared_expert_intermediate_size": 24})
# elements of a tiny model: two layers of width 64, 2 heads and 1 KV head of 32, an MLP of 128, 256 words, window 8
PROJECTIONS = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
LAST_NORM = 64  # counted once
NORMS = 2 * 2 * 64 + LAST_NORM
GATES = 2 * (2 * 64 + 2 + 64)
HEAD = 256 * 64
COLUMN, STATE, POSITION = (
    2 * 2 * 1 * 32,
    64,
    8,
)  # of a KV cache: keys and values of a token, its states, bytes of its position
BATCH, CONTEXT = 3, 20


@pytest.mark.parametrize(
    ("row", "weights", "cache"),
    [
        ("plain", PROJECTIONS + NORMS + HEAD, COLUMN * 20 + STATE),
        ("llama", PROJECTIONS + NORMS + HEAD, COLUMN * 20),
        ("loop-2", 2 * (PROJECTIONS + NORMS) - LAST_NORM + HEAD, COLUMN * 2 * 20 + 2 * STATE),
        ("shift-2", PROJECTIONS + NORMS + HEAD, COLUMN * 2 * 20 + 2 * STATE),
        ("shared-2", PROJECTIONS + NORMS + HEAD, COLUMN * 20 + 2 * STATE),
        ("plt-2", PROJECTIONS + NORMS + GATES + HEAD, COLUMN * (20 + 7) + 2 * STATE),
        ("plt-3", PROJECTIONS + NORMS + GATES + HEAD, COLUMN * (20 + 2 * 7) + 3 * STATE),
        ("deep-2", 2 * PROJECTIONS + NORMS + 2 * 2 * 64 + HEAD, 2 * COLUMN * 20 + STATE),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_reads_weights_once_in_each_pass_and_the_cache(row, weights, cache, dtype):
    model = SharedWeights(replace(TINY, dtype=dtype)).build_for_decoding(ROWS[row])
    position = 0 if row == "llama" else POSITION
    assert step_bytes(model, BATCH, CONTEXT) == dtype.itemsize * (weights + BATCH * cache) + BATCH * position


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(("packed", "size"), [(None, 4), ("same", 4), ("float16", 2), ("int8", 1)])
def test_packed_weights_are_read_as_they_are_packed(packed, size, tied):
    setup = replace(TINY, packed=packed, fields=TINY.fields | {"tie_word_embeddings": tied})
    weights = SharedWeights(setup)
    cache = BATCH * (4 * (COLUMN * CONTEXT + STATE) + POSITION)
    plain = step_bytes(weights.build_for_decoding(PLAIN), BATCH, CONTEXT)
    assert plain == size * (PROJECTIONS + HEAD) + 4 * NORMS + cache
    llama = step_bytes(weights.build_for_decoding(ROWS["llama"]), BATCH, CONTEXT)
    assert llama == 4 * (PROJECTIONS + HEAD + NORMS + BATCH * COLUMN * CONTEXT)


def test_loops_in_turn_read_the_layers_anew():
    model = SharedWeights(TINY).build_for_decoding(ROWS["plt-3"])
    together = step_bytes(model, BATCH, CONTEXT)
    model.one_pass = False
    in_turn = step_bytes(model, BATCH, CONTEXT)
    assert in_turn - together == 2 * 4 * (PROJECTIONS + NORMS - LAST_NORM + GATES)


@pytest.mark.parametrize(("row", "passes", "rows"), [("plain", 1, 3), ("plt-2", 1, 6), ("loop-2", 2, 3)])
def test_a_step_reads_the_experts_that_its_rows_are_expected_to_be_sent_to(row, passes, rows):
    dense, sparse = (step_bytes(SharedWeights(setup).build(ROWS[row]), BATCH, CONTEXT) for setup in (TINY, EXPERTS))
    expert, shared, router = 3 * 64 * 16, 3 * 64 * 24 + 64, 5 * 64
    read = 5 * (1 - (3 / 5) ** rows) * expert + shared + router
    assert sparse - dense == pytest.approx(4 * passes * (read - 3 * 64 * 128), abs=passes)


def test_loops_that_choose_alike_read_the_experts_of_one():
    weights = SharedWeights(EXPERTS)
    plain, alike, apart = (
        step_bytes(weights.build(ROWS[row]), BATCH, CONTEXT, share)
        for row, share in (("plain", 0), ("plt-2", 1), ("plt-2", 0))
    )
    window = BATCH * (COLUMN * 7 + STATE)
    assert alike - plain == 4 * (GATES + window) < apart - plain


@pytest.mark.parametrize("num_loops", [1, 2, 3])
@pytest.mark.parametrize("alike", [0.0, 0.4, 1.0])
def test_experts_read_are_those_of_a_draw(num_loops, alike):
    """Three sequences, whose loops are sent to 2 of 16 experts."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(4000, num_loops, 3, 16, generator=generator).topk(2).indices
    copies = torch.rand(4000, num_loops - 1, 3, 1, generator=generator) < alike
    chosen = torch.cat((drawn[:, :1], torch.where(copies, drawn[:, :1], drawn[:, 1:])), dim=1)
    counts = torch.zeros(4000, 16).scatter(1, chosen.flatten(1), 1).sum(dim=1)
    assert experts_read(16, 2, 3, num_loops, alike) == pytest.approx(counts.mean().item(), rel=0.01)
    if num_loops > 1:
        sent = torch.zeros(4000, num_loops, 3, 16).scatter(3, chosen, 1)
        overlap = (sent[:, 0] * sent[:, 1]).sum(-1).mean().item() / 2
        assert share_alike(overlap, 16, 2) == pytest.approx(alike, abs=0.03)


def test_the_bound_of_a_step_is_its_bytes_over_the_faster_measured_bandwidth(monkeypatch):
    bandwidths = iter([4e9, 2e9])
    monkeypatch.setattr("laboratory.costs.decode.read_bandwidth", lambda device: next(bandwidths))
    monkeypatch.setattr(
        "laboratory.timing.take_turns", lambda *_: pd.DataFrame({"plain": [0.5, 0.7, 9], "plt-2": [1, 1, 1]})
    )
    weights = SharedWeights(TINY)
    table = measure_decoding(weights, [PLAIN, ROWS["plt-2"]], [1, 3], [20], rounds=3)
    read = [step_bytes(weights.build(ROWS[name]), batch, 20) for batch in (1, 3) for name in ("plain", "plt-2")]
    assert table["read, MB"].tolist() == pytest.approx([number / 1e6 for number in read])
    assert table["bound, ms"].tolist() == pytest.approx([number / 4e6 for number in read])
    shares = [number / 4e6 / ms for number, ms in zip(read, [0.7, 1, 0.7, 1], strict=True)]
    assert table["bound / time"].tolist() == pytest.approx(shares)


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
@pytest.mark.parametrize("length", [2, 5, 30])
@pytest.mark.parametrize("make_sample", [first_token, all_logits, training_step])
@pytest.mark.parametrize("setup", [TINY, EXPERTS], ids=["dense", "experts"])
def test_multiplications_are_those_that_the_model_does(row, length, make_sample, setup):
    if row.is_llama and setup is EXPERTS:
        pytest.skip("Llama has none")
    model, counts = SharedWeights(setup).build(row), []

    def note(module, inputs, output):
        counts.append(module.weight.numel() * inputs[0].shape[:-1].numel())

    def note_experts(experts, inputs, output):
        of_one = sum(parameter[0].numel() for parameter in experts.parameters())
        counts.append(of_one * inputs[1].numel())  # the choices of all rows

    for module in model.modules():
        if isinstance(module, nn.Linear | Qwen3MoeTopKRouter):
            module.register_forward_hook(note)
        if isinstance(module, Qwen3MoeExperts):
            module.register_forward_hook(note_experts)
    make_sample(model, random_ids(length, TINY))()
    assert sum(counts) == multiplications(model, length, num_outputs=1 if make_sample is first_token else 0)


@pytest.mark.parametrize(
    ("num_outputs", "length", "bounds"),
    [(1, 4096, {"plain": 1, "plt-2": 1.14, "loop-2": 2.06}), (1, 16384, {"plain": 1, "plt-2": 1.03})]
    + [(0, length, {"plain": 1, "llama": 1, "plt-2": 1.9, "plt-3": 2.79}) for length in (256, 4096)],
)
def test_bounds_of_half_a_billion_parameters_are_those_of_the_page(num_outputs, length, bounds):
    setup = replace(TINY, fields=SIZES["0.5b"])
    models = {ROWS[name]: empty_model(setup, ROWS[name]) for name in bounds}
    table = with_bound(pd.DataFrame({"row": list(bounds), "n": length}), models, "n", num_outputs)
    assert table["bound"].round(2).tolist() == list(bounds.values())
