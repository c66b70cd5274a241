"""Diagnostics equal a naive computation, token by token; the command writes them, and refuses what it cannot read."""

import json

import numpy as np
import pytest
import torch
from reference import ReferencePLT
from three_stages import HUGINN, three_stages
from tiny import ABLATION_ROWS, EXPERTS, tiny_ids, tiny_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from modeling_plt import PLTForCausalLM
from training_plt.diagnose.__main__ import main, reading
from training_plt.diagnose.diagnostics import choose_loops, diagnose
from training_plt.diagnose.plots import plot_gates

SEQUENCES = [tiny_ids(1, length, seed=length)[0] for length in (9, 5, 1)]
OF_EXPERTS = {"expert_overlap", "expert_load"}
KEYS = {"step_size", "update_cosine", "effective_rank", "offset_cost", "refinement_gain", "mean_gate", "loss"}


class Watched(ReferencePLT):
    """The reference, whose gates are kept in the order of its calls: positions, later loops, layers."""

    def __init__(self, *args):
        super().__init__(*args)
        self.gates = []

    def gate(self, *args):
        self.gates.append(super().gate(*args))
        return self.gates[-1]


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def naive(model, sequences):
    """Each definition written out for one token after another; NaN where there is none."""
    config, weights = model.config, model.state_dict()
    num_loops, head = config.num_loops, weights["lm_head.weight"].double().numpy()
    values = {name: [[] for _ in range(num_loops)] for name in KEYS - {"mean_gate", "effective_rank"}}
    rows = [[] for _ in range(num_loops)]
    num_looped = config.num_hidden_layers - config.num_prelude_layers - config.num_coda_layers
    gates = np.full((num_looped, num_loops, 0), np.nan)
    for input_ids in sequences:
        reference = Watched(config, weights)
        states = reference.loop_states(input_ids.tolist())
        for i in range(len(input_ids)):
            for r in range(num_loops):
                h, p = states[r][i], softmax(head @ states[r][i])
                rows[r].append(h)
                if i + 1 < len(input_ids):
                    values["loss"][r].append(-np.log(p[input_ids[i + 1]]))
                if r >= 1:
                    update = h - states[r - 1][i]
                    before = softmax(head @ states[r - 1][i])
                    values["step_size"][r].append(np.sqrt((update**2).sum()))
                    values["refinement_gain"][r].append((p * (np.log(p) - np.log(before))).sum())
                if r >= 1 and i >= 1:
                    offset = states[r - 1][i] - states[r - 1][i - 1]
                    values["offset_cost"][r].append(np.sqrt((offset**2).sum()))
                # before, loop r of a shifted model repeats the loop before it
                if r >= 2 and i >= r - 1 + (config.initial_state == "zeros"):
                    last = states[r - 1][i] - states[r - 2][i]
                    cosine = update @ last / np.sqrt((update @ update) * (last @ last))
                    values["update_cosine"][r].append(cosine)
        if reference.gates:
            calls = np.array(reference.gates).reshape(len(input_ids), num_loops - 1, num_looped, -1)
            calls = np.pad(calls.transpose(2, 1, 0, 3), ((0, 0), (1, 0), (0, 0), (0, 0)), constant_values=np.nan)
            gates = np.concatenate((gates, calls.reshape(*calls.shape[:2], -1)), axis=2)
    means = {name: [np.mean(of) if of else np.nan for of in lists] for name, lists in values.items()}
    singular_values = [np.linalg.svd(np.array(states), compute_uv=False) for states in rows]
    shares = [numbers / numbers.sum() for numbers in singular_values]
    means["effective_rank"] = [np.exp(-(s[s > 0] * np.log(s[s > 0])).sum()) for s in shares]
    means["mean_gate"] = gates.mean(axis=2) if gates.size else np.full(gates.shape[:2], np.nan)
    return means


def assert_equals_naive(model, sequences):
    results, expected = diagnose(model, iter(sequences)), naive(model, sequences)
    assert results.keys() == KEYS | OF_EXPERTS
    assert [results.pop(name) for name in sorted(OF_EXPERTS)] == [[], []]
    for name, values in results.items():
        numbers = np.array(values, dtype=float)  # None becomes NaN
        assert numbers.shape[-1] == model.config.num_loops, name
        # the model's norms round to float32, and mean cosines are near 0
        wanted = np.array(expected[name], dtype=float)
        np.testing.assert_allclose(numbers, wanted, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("num_loops", [1, 2, 4])
@pytest.mark.parametrize("row", ABLATION_ROWS)
def test_diagnostics_equal_a_naive_computation(row, num_loops):
    assert_equals_naive(tiny_model(num_loops=num_loops, **ABLATION_ROWS[row]).double(), SEQUENCES)


@pytest.mark.parametrize("fields", [{"loop_norm": False}, {"gate_input": "query"}, {"one_pass": False}], ids=str)
def test_diagnostics_of_other_settings_equal_a_naive_computation(fields):
    assert_equals_naive(tiny_model(num_loops=3, **fields).double(), SEQUENCES)


@pytest.mark.parametrize("row", ABLATION_ROWS)
@pytest.mark.parametrize("cut", ["prelude", "prelude and coda"])
def test_diagnostics_of_a_loop_among_other_layers_are_of_the_looped_ones(row, cut):
    """Each loop is read out through the coda."""
    assert_equals_naive(three_stages(cut, num_loops=3, **ABLATION_ROWS[row]), SEQUENCES)


def test_diagnostics_of_a_loop_with_an_adapter_equal_a_naive_computation():
    assert_equals_naive(three_stages(num_loops=3, **HUGINN | {"norm_placement": "pre"}), SEQUENCES)


def test_gates_are_drawn_under_the_numbers_of_their_layers():
    labels = plot_gates([[None, 0.5], [None, 0.6]], range(2, 4)).axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["2", "3"]


def test_more_tokens_than_the_states_are_wide():
    assert_equals_naive(tiny_model(num_loops=2).double(), [tiny_ids(1, 25, seed=seed)[0] for seed in (1, 2)])


def test_a_model_is_left_as_it_was():
    model = tiny_model(num_loops=3)
    expected = model(SEQUENCES[0][None]).logits
    diagnose(model, SEQUENCES)
    assert torch.equal(model(SEQUENCES[0][None]).logits, expected)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    "effective_rank, chosen", [([5.0], 1), ([5.0, 6.0], 2), ([5.0, 5.0], 1), ([5.0, 6.0, 5.5, 9.0], 2)], ids=str
)
def test_a_loop_is_added_only_while_effective_rank_rises(effective_rank, chosen):
    assert choose_loops(effective_rank) == chosen
    line = reading(effective_rank)
    assert f": {chosen} of {len(effective_rank)}, as" in line and "\n" not in line


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("def wrap(text, width):\n    return [text, width]\n" * 20)
    return path


def test_the_command_writes_what_it_measured(chat_folder, text, tmp_path, capsys):
    output = tmp_path / "output"
    main([*("--model", str(chat_folder), "--text", str(text), "--output", str(output)), "--sequence-length=32"])
    content = json.loads((output / "diagnostics.json").read_text())
    input_ids = AutoTokenizer.from_pretrained(chat_folder)(text.read_text(), return_tensors="pt").input_ids[0]
    model = PLTForCausalLM.from_pretrained(chat_folder).eval()
    for name, values in diagnose(model, input_ids.split(32)).items():
        assert content[name] == values, name
    assert content["setting"]["tokens"] == len(input_ids)
    assert content["setting"]["config"]["num_loops"] == 3
    printed = capsys.readouterr().out
    *_, reading, made, where, then = printed.splitlines()
    assert reading == content["reading"]
    assert made == f"Made:  diagnostics of {chat_folder}, num_loops=3, on {len(input_ids)} tokens"
    assert where == f"Where: {output}" and f"num_loops={content['chosen_loops']}" in then
    assert f"{content['loss'][2]:.4g}" in printed
    for name in ("loops.png", "gates.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG")


def test_a_plain_decoder_is_diagnosed_too(chat_folder, text, tmp_path):
    folder = tmp_path / "plain"
    tokenizer = AutoTokenizer.from_pretrained(chat_folder)
    tokenizer.save_pretrained(folder)
    tiny_model(num_loops=1, vocab_size=len(tokenizer)).to(torch.bfloat16).save_pretrained(folder)
    arguments = ["--dtype=auto", "--max-sequences=1", "--sequence-length=16"]
    main(["--model", str(folder), "--text", str(text), "--output", str(folder), *arguments])
    content = json.loads((folder / "diagnostics.json").read_text())
    assert content["chosen_loops"] == 1 and content["setting"]["tokens"] == 16
    assert content["step_size"] == [None] and content["mean_gate"] == [[None], [None]]
    assert not (folder / "gates.png").exists()


@pytest.fixture
def refused(chat_folder, text, tmp_path, capsys):
    """The sentence by which the command refuses a model or a text."""

    def refused(model=chat_folder, content=None):
        if content is not None:
            text.write_text(content)
        with pytest.raises(SystemExit):
            main(["--model", str(model), "--text", str(text), "--output", str(tmp_path / "output")])
        assert not (tmp_path / "output").exists()
        return capsys.readouterr().err.splitlines()[-1]

    return refused


def test_texts_in_which_nothing_follows_are_refused(refused):
    assert "at least 2 tokens, got 0" in refused(content="")
    assert "at least 2 tokens, got 1" in refused(content="def")


def test_models_of_other_packages_are_refused(refused, tmp_path):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)).save_pretrained(tmp_path / "llama")
    assert "with the `model_type` 'llama'" in refused(tmp_path / "llama")
    assert "a saved PLT, got ./nothing" in refused("./nothing")
    (tmp_path / "empty").mkdir()
    assert f"a saved PLT, got {tmp_path / 'empty'}" in refused(tmp_path / "empty")


def test_tokenizers_that_are_missing_or_do_not_fit_are_refused(refused, chat_folder, tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    assert "must come with its tokenizer" in refused(tmp_path / "model")
    AutoTokenizer.from_pretrained(chat_folder).save_pretrained(tmp_path / "model")
    assert "ids from 0 to 60, as the model has embeddings, got ids up to 2" in refused(tmp_path / "model")


@pytest.mark.parametrize("argument", ["--sequence-length=1", "--max-sequences=0", "--dtype=int8"])
def test_wrong_arguments_are_refused(argument, capsys):
    with pytest.raises(SystemExit):
        main(["--model", "m", "--text", "t", "--output", "o", argument])
    assert argument.partition("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize("cut", [None, "prelude", "prelude and coda"])
@pytest.mark.parametrize("num_loops", [1, 3])
def test_routing_equals_that_of_the_reference(num_loops, cut):
    fields = {"num_loops": num_loops, "decoder_sparse_step": 2, **EXPERTS}
    model = three_stages(cut, **fields) if cut else tiny_model(num_hidden_layers=4, **fields).double()
    model.set_experts_implementation("batched_mm")  # grouped kernels have no float64
    results = diagnose(model, SEQUENCES)
    stage, k = model.config.looped_stage, EXPERTS["num_experts_per_tok"]
    sparse = [layer_idx for layer_idx in stage.layers if layer_idx % 2 == 1]
    chosen = {layer_idx: [] for layer_idx in sparse}  # of each token: the sets of its loops
    for input_ids in SEQUENCES:
        reference = ReferencePLT(model.config, model.state_dict())
        reference.loop_states(input_ids.tolist())
        for layer_idx in sparse:
            sets = [set(of) for name, _, of in reference.routed if name == f"model.layers.{layer_idx}.mlp"]
            chosen[layer_idx] += [sets[start : start + num_loops] for start in range(0, len(sets), num_loops)]
    for layer_idx, overlap, load in zip(sparse, results["expert_overlap"], results["expert_load"], strict=True):
        tokens = chosen[layer_idx]
        common = [np.mean([len(loops[0] & loops[r]) / k for loops in tokens]) for r in range(1, num_loops)]
        assert overlap[0] is None and overlap[1:] == pytest.approx(common)
        choices = [expert for loops in tokens for experts in loops for expert in experts]
        assert load == pytest.approx([choices.count(expert) / len(choices) for expert in range(5)])
