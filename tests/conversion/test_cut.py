"""Some layers of a plain source run once, before and after those that loop; some are left out."""

import copy
import re

import pytest
import torch
from converting import DATA, assert_refused, plain_model, plt_convert, refused
from ravens import raven, write
from tiny import tiny_model
from torch import nn

from conversion_plt.error_text import bytes_of
from conversion_plt.plan import to_plt
from conversion_plt.plan.layer_numbers import read_layers, spans
from modeling_plt import PLTForCausalLM
from modeling_plt.modeling_plt import PLTModel

SPLITS = [(0, 0), (1, 0), (0, 1), (1, 1)]


def ids(length=40):
    return torch.randint(97, (2, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model, input_ids):
    return model.eval()(input_ids, use_cache=False).logits


def load(folder):
    model, report = PLTForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    return model


@pytest.fixture(scope="module", params=["llama", "qwen3_moe", "olmo2"])
def plain(tmp_path_factory, request):
    model, folder = plain_model(request.param), tmp_path_factory.mktemp("plain")
    model.save_pretrained(folder / "source")
    return model, folder / "source"


@pytest.mark.parametrize("loop_input", ["sum", "adapter"])
@pytest.mark.parametrize("split, num_loops", [*((split, 2) for split in SPLITS), ((1, 1), 3)], ids=str)
def test_any_split_starts_with_the_sources_logits(tmp_path, plain, split, num_loops, loop_input, capsys):
    model, source = plain
    options = ["--prelude", split[0], "--coda", split[1], "--loops", num_loops, "--loop-input", loop_input]
    plt_convert(source, tmp_path / "target", "--to-plt", "--window", 4, *options)
    assert "starts far" not in capsys.readouterr().out
    made = load(tmp_path / "target")
    config = made.config
    assert (config.num_prelude_layers, config.num_coda_layers) == split
    assert (config.num_loops, config.loop_input, config.loop_attention) == (num_loops, loop_input, "gated_window")
    assert config.learned_scales == (loop_input == "sum")
    gates = [name for name, _ in made.named_parameters() if name.endswith("plt_gate.weight")]
    assert [int(name.split(".")[2]) for name in gates] == list(range(split[0], 3 - split[1]))
    torch.testing.assert_close(logits(made, ids()), logits(model, ids()), rtol=0, atol=1e-4)


def test_an_adapter_starts_as_the_preludes_output_alone(tmp_path, plain):
    plt_convert(plain[1], tmp_path / "target", "--to-plt", "--loop-input", "adapter", "--prelude", 1)
    weight = load(tmp_path / "target").model.adapter.weight.data
    assert torch.equal(weight, torch.eye(64)[32:])  # the state's columns come first


@pytest.mark.parametrize("loop_input", ["sum", "adapter"])
def test_training_moves_every_parameter(tmp_path, plain, loop_input):
    options = ["--prelude", 1, "--coda", 1, "--loop-input", loop_input, "--window", 4]
    plt_convert(plain[1], tmp_path / "target", "--to-plt", *options)
    model = load(tmp_path / "target").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(15):
        model(ids(), labels=ids()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, value in start.items():
        assert not torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize("split", SPLITS[1:], ids=str)
def test_layers_of_a_plain_source_loop_as_those_of_transformers_do(tmp_path, plain, split, capsys):
    model, source = plain
    before, after = split
    plt_convert(source, tmp_path / "target", "--loops", 3, "--prelude", before, "--coda", after)
    assert "agree with transformers' " in capsys.readouterr().out
    made = load(tmp_path / "target")
    assert (made.config.loop_shift, made.config.loop_attention) == (False, "own")
    whole, decoder = copy.deepcopy(model), model.model
    layers, norm = whole.model.layers, whole.model.norm

    def run(part, states):
        whole.model.layers, whole.model.norm = nn.ModuleList(part), nn.Identity()
        return whole.model(inputs_embeds=states).last_hidden_state

    with torch.no_grad():
        states = run(layers[:before], decoder.embed_tokens(ids()))
        for loop_idx in range(3):
            states = run(layers[before : 3 - after], states if loop_idx == 0 else norm(states))
        expected = model.lm_head(norm(run(layers[3 - after :], states)))
    torch.testing.assert_close(logits(made, ids()), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("options", [[], ["--to-plt", "--prelude", 1], ["--loops", 2, "--coda", 1]], ids=str)
def test_layers_that_are_kept_are_those_of_a_shorter_model(tmp_path, plain, options, capsys):
    model, source = plain
    plt_convert(source, tmp_path / "target", "--layers", "0,2", *options)
    output, made = capsys.readouterr().out, load(tmp_path / "target")
    assert made.config.num_hidden_layers == 2
    for text in (output, (tmp_path / "target" / "README.md").read_text()):
        assert "Of the source's layers, 0,2 were kept: the model starts far from its source" in text
    assert "agree with transformers' " in output
    assert f"Wrote {bytes_of(sum(value.nbytes for value in made.state_dict().values()))} of weights" in output
    for own, theirs in zip(made.model.layers, model.model.layers[::2], strict=True):
        assert torch.equal(own.self_attn.o_proj.weight, theirs.self_attn.o_proj.weight)
    shorter = copy.deepcopy(model)
    del shorter.model.layers[1]
    shorter.config.num_hidden_layers = 2
    if "--loops" not in options:
        torch.testing.assert_close(logits(made, ids()), logits(shorter, ids()), rtol=0, atol=1e-4)
    if "--to-plt" in options:  # measured from the whole source
        rows = torch.randint(97, (2, 256), generator=torch.Generator().manual_seed(0))
        whole, short = (logits(each, rows).log_softmax(-1) for each in (model, shorter))
        divergence = (whole.exp() * (whole - short)).sum(-1).mean().item()
        found = float(re.search(r"KL\(source \|\| PLT\) (\S+) nats", output)[1])
        assert found == pytest.approx(divergence, rel=1e-2) and found > 1e-2


def test_all_layers_are_the_whole_source(tmp_path, plain, capsys):
    plt_convert(plain[1], tmp_path / "target", "--layers", "0-2")
    assert "starts far" not in capsys.readouterr().out
    torch.testing.assert_close(logits(load(tmp_path / "target"), ids()), logits(plain[0], ids()), rtol=0, atol=1e-4)


def test_without_a_class_of_transformers_the_distance_is_from_the_layers_that_are_kept(tmp_path, capsys):
    tiny_model(num_loops=1, num_hidden_layers=3).save_pretrained(tmp_path / "source")
    plt_convert(tmp_path / "source", tmp_path / "target", "--layers", "0-1", "--to-plt")
    assert re.search(r"KL\(kept layers \|\| PLT\) -?\S+e-\d+ nats .* \(kept layers\)", capsys.readouterr().out)


def test_experts_stay_in_the_layers_that_have_them(tmp_path):
    """Whether a layer is sparse depends on its number, which changes."""
    model = plain_model("qwen3_moe")  # its layer 1 has no experts
    model.save_pretrained(tmp_path / "source")
    plt_convert(tmp_path / "source", tmp_path / "target", "--layers", "1-2")
    config = load(tmp_path / "target").config
    assert [config.is_sparse(layer_idx) for layer_idx in range(2)] == [False, True]


@pytest.mark.parametrize("kind", ["huginn", "llama", "olmo"])
def test_a_raven_keeps_adapter_and_loops_and_starts_far(tmp_path, kind, capsys):
    model = raven(kind)
    source = write(tmp_path / "source", model, kind)
    plt_convert(source, tmp_path / "target", "--to-plt", "--window", 4)
    output, made = capsys.readouterr().out, load(tmp_path / "target")
    config = made.config
    assert (config.num_loops, config.loop_shift, config.loop_attention) == (3, True, "gated_window")
    assert (config.loop_input, config.initial_state, config.learned_scales) == ("adapter", "zeros", False)
    assert torch.equal(made.model.adapter.weight, model.model.adapter.weight)
    assert "so the PLT starts far from its source." in output and "KL(source || PLT)" in output
    assert "starts far" in (tmp_path / "target" / "README.md").read_text()
    plt_convert(source, tmp_path / "other", "--to-plt", "--loops", 2)
    assert load(tmp_path / "other").config.num_loops == 2


@pytest.mark.parametrize("num_loops", [1, 2])
def test_a_plt_folder_with_a_core_is_a_source(tmp_path, num_loops):
    """Of its one loop new ones are made, of several the PLT that they are close to."""
    fields = {"num_hidden_layers": 4, "num_prelude_layers": 1, "num_coda_layers": 1, "norm_placement": "sandwich"}
    model = tiny_model(num_loops=num_loops, loop_shift=False, loop_attention="own", **fields)
    model.save_pretrained(tmp_path / "source")
    plt_convert(tmp_path / "source", tmp_path / "exact")
    assert torch.equal(logits(load(tmp_path / "exact"), ids() % 61), logits(model, ids() % 61))
    plt_convert(tmp_path / "source", tmp_path / "target", "--to-plt")
    config = load(tmp_path / "target").config
    assert (config.num_prelude_layers, config.num_coda_layers, config.num_loops) == (1, 1, 2)
    if num_loops == 1:
        made = logits(load(tmp_path / "target"), ids() % 61)
        torch.testing.assert_close(made, logits(model, ids() % 61), rtol=0, atol=1e-4)


def test_a_plt_folder_that_was_loaded_with_one_loop_keeps_what_it_was_trained_with(tmp_path, capsys):
    model = tiny_model(num_loops=3, learned_scales=True)
    model.save_pretrained(tmp_path / "trained")
    one = PLTForCausalLM.from_pretrained(tmp_path / "trained", num_loops=1)
    one.save_pretrained(tmp_path / "source")
    plt_convert(tmp_path / "source", tmp_path / "target")
    made = PLTForCausalLM.from_pretrained(tmp_path / "target", num_loops=3)
    assert torch.equal(logits(made, ids() % 61), logits(model, ids() % 61))
    for options, message in (
        (["--to-plt"], "for models that are not a PLT yet"),
        (["--loops", 2], "is for plain sources"),
        (["--to-plt", "--prelude", 1], "are for plain sources"),
    ):
        assert message in refused(capsys, tmp_path / "source", tmp_path / "other", *options)


def test_a_vanilla_loop_that_was_loaded_with_one_loop_becomes_a_plt_of_all(tmp_path):
    model = tiny_model(num_loops=3, loop_shift=False, loop_attention="own")
    model.save_pretrained(tmp_path / "trained")
    PLTForCausalLM.from_pretrained(tmp_path / "trained", num_loops=1).save_pretrained(tmp_path / "source")
    plt_convert(tmp_path / "source", tmp_path / "target", "--to-plt")
    config = load(tmp_path / "target").config
    assert (config.num_loops, config.trained_loops, config.loop_shift) == (3, None, True)


def test_an_old_plt_folder_with_sandwich_norms_is_a_source(tmp_path):
    model = tiny_model(num_loops=1, norm_placement="sandwich")
    model.save_pretrained(tmp_path / "source")
    file = tmp_path / "source/config.json"
    file.write_text(file.read_text().replace('"norm_placement": "sandwich"', '"sandwich_norm": true'))
    assert "sandwich_norm" in file.read_text()
    plt_convert(tmp_path / "source", tmp_path / "target")
    assert torch.equal(logits(load(tmp_path / "target"), ids() % 61), logits(model, ids() % 61))


@pytest.mark.parametrize(
    "options, message",
    [
        (["--to-plt", "--prelude", 2, "--coda", 1], "must leave a layer to loop, got 2 and 1 of 3"),
        (["--to-plt", "--prelude", 10**9], "must leave a layer to loop"),
        (["--to-plt", "--prelude", -1], "num_prelude_layers"),
        (["--layers", "0-3"], "`--layers` must name layers below 3, the number that the source has, got 3"),
        (["--to-plt", "--layers", "0-1", "--coda", 2], "must leave a layer to loop, got 0 and 2 of 2"),
        (["--to-plt", "--loop-input", "adapter", "--hidden-scale", 1], "are for a sum, got an adapter"),
        (["--to-plt", "--loop-input", "adapter", "--no-learned-scales"], "are for a sum, got an adapter"),
    ],
    ids=str,
)
def test_a_cut_that_cannot_be_meant_is_refused(tmp_path, capsys, options, message):
    plain_model("llama").save_pretrained(tmp_path / "source")
    assert message in assert_refused(capsys, tmp_path / "source", *options)


@pytest.mark.parametrize("options", [["--prelude", 1], ["--coda", 0], ["--layers", "0"]], ids=str)
@pytest.mark.parametrize("name", ["nanbeige", "huginn"])
def test_a_source_that_loops_is_not_cut(tmp_path, capsys, name, options):
    with pytest.raises(SystemExit, match="are for plain sources, got one that loops"):
        plt_convert(DATA / name, tmp_path / "target", "--to-plt", *options)
    with pytest.raises(SystemExit, match="has an input of later loops"):
        plt_convert(DATA / name, tmp_path / "target", "--to-plt", "--loop-input", "adapter")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [["--prelude", 1], ["--coda", 1], ["--loop-input", "sum"], ["--layers", "1,0"], ["--layers", "0-"]],
    ids=str,
)
def test_options_that_nothing_would_read_are_usage_errors(tmp_path, capsys, options):
    with pytest.raises(SystemExit) as raised:
        plt_convert(DATA / "ouro", tmp_path / "target", *options)
    assert raised.value.code == 2
    assert "need --to-plt" in (error := capsys.readouterr().err) or "ever higher numbers of layers" in error


@pytest.mark.parametrize(
    "text, layers",
    [("0", (0,)), ("0-3", (0, 1, 2, 3)), ("0-1,5,7-8", (0, 1, 5, 7, 8)), ("3-3", (3,))],
)
def test_numbers_of_layers_are_read_and_written(text, layers):
    assert read_layers(text) == layers
    assert read_layers(spans(layers)) == layers


@pytest.mark.parametrize(
    "text", ["", "a", "1-", "-1", "1,1", "2-1", "0-3,2-4", "1;2", "1 ,2", "٣", "0-999999", "1--2"]
)
def test_numbers_of_layers_that_are_none_are_refused(text):
    with pytest.raises(ValueError):
        read_layers(text)


def gates_open_halfway(monkeypatch):
    monkeypatch.setattr(to_plt, "EXACT_GATE", 0.5)


def adapter_halves_swapped(monkeypatch):
    start = to_plt.start_value

    def swapped(name, shape, chosen):
        value = start(name, shape, chosen)
        return torch.cat(value.chunk(2, dim=1)[::-1], dim=1) if name.endswith("adapter.weight") else value

    monkeypatch.setattr(to_plt, "start_value", swapped)


def norm_before_the_coda(monkeypatch):
    stage_input = PLTModel.stage_input

    def normed(self, hidden_states, stage):
        states = stage_input(self, hidden_states, stage)
        return self.norm(states) if stage.layers.start == 2 else states

    monkeypatch.setattr(PLTModel, "stage_input", normed)


@pytest.mark.parametrize("bend", [gates_open_halfway, adapter_halves_swapped, norm_before_the_coda])
def test_known_mistakes_move_the_start(tmp_path, monkeypatch, bend):
    model = plain_model("llama")
    model.save_pretrained(tmp_path / "source")
    bend(monkeypatch)
    options = ["--prelude", 1, "--coda", 1, "--loop-input", "adapter", "--window", 4]
    if bend is norm_before_the_coda:  # which the check of logits already sees
        with pytest.raises(SystemExit, match="Logits differ"):
            plt_convert(tmp_path / "source", tmp_path / "target", "--to-plt", *options)
        return
    plt_convert(tmp_path / "source", tmp_path / "target", "--to-plt", *options)
    difference = logits(load(tmp_path / "target"), ids()) - logits(model, ids())
    assert difference.abs().max() > 1e-2
