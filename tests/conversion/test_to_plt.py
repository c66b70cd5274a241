"""Switching the PLT mechanisms on: where a PLT starts, what is measured, and that training can go on from there."""

import json
import re

import pytest
import torch
from converting import DATA, copy_source, plain_model, plt_convert, refused
from safetensors.torch import load_file
from tiny import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modeling_plt import PLTForCausalLM

NEW = ("plt_gate", "_scale")


def ids(length=60, batch_size=2):
    return torch.randint(97, (batch_size, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model, input_ids):
    return model.eval()(input_ids, use_cache=False).logits


@pytest.fixture(params=["qwen3", "qwen3_moe", "olmoe", "olmo2", "flex_olmo"])
def plain(tmp_path, request):
    model = plain_model(request.param)
    model.save_pretrained(tmp_path / "source")
    return model


@pytest.mark.parametrize("num_loops", [2, 4])
def test_a_plain_source_starts_with_its_own_logits(tmp_path, capsys, plain, num_loops):
    plt_convert(tmp_path / "source", tmp_path / "target", "--to-plt", "--loops", num_loops, "--window", 4)
    model = PLTForCausalLM.from_pretrained(tmp_path / "target")
    config = model.config
    assert (config.num_loops, config.loop_shift, config.loop_attention) == (num_loops, True, "gated_window")
    torch.testing.assert_close(logits(model, ids()), logits(plain, ids()), rtol=0, atol=1e-4)
    assert "KL(source || PLT)" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_moves_every_new_parameter_of_a_plain_source(tmp_path, plain, dtype):
    plt_convert(tmp_path / "source", tmp_path / "target", "--to-plt", "--window", 4)
    model = PLTForCausalLM.from_pretrained(tmp_path / "target").train()
    start = {name: value.clone() for name, value in model.state_dict().items() if any(part in name for part in NEW)}
    assert len(start) == 3 * 3 + 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    losses = []
    for _ in range(15):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model(ids(), labels=ids()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    for name, value in start.items():
        moved = (model.state_dict()[name] - value).abs().max().item()
        assert moved > 1e-4, f"{name} moved by {moved}"


@pytest.mark.parametrize("name", ["nanbeige", "ouro"])
def test_a_vanilla_loop_becomes_a_plt_of_as_many_loops(tmp_path, name):
    plt_convert(DATA / name, tmp_path / "target", "--to-plt")
    model = PLTForCausalLM.from_pretrained(tmp_path / "target")
    config, source = model.config, json.loads((DATA / name / "config.json").read_text())
    assert config.num_loops == source.get("num_loops", source.get("total_ut_steps"))
    assert (config.loop_shift, config.loop_attention, config.sliding_window) == (True, "gated_window", 64)
    old = load_file(DATA / name / "model.safetensors")
    weights = load_file(tmp_path / "target" / "model.safetensors")
    weights = {key: value for key, value in weights.items() if key not in old}
    assert weights and all(any(part in key for part in NEW) for key in weights)
    assert {weights[key].item() for key in weights if "scale" in key} == {0.0, 1.0}
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key] if key in weights else old[key])


@pytest.mark.parametrize("said", [True, False])
def test_how_an_old_plt_ran_is_no_matter_of_its_weights(tmp_path, said):
    tiny_model(loop_shift=False, loop_attention="own").save_pretrained(tmp_path / "source")
    file = tmp_path / "source/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"one_pass": said}))
    plt_convert(tmp_path / "source", tmp_path / "target", "--to-plt")
    assert PLTForCausalLM.from_pretrained(tmp_path / "target").one_pass


def test_every_start_can_be_set(tmp_path):
    options = ["--window", 5, "--embedding-scale", 0.7, "--hidden-scale", 0.05, "--gate-start", 0.3, "--loops", 3]
    plt_convert(DATA / "nanbeige", tmp_path / "target", "--to-plt", "--no-learned-scales", *options)
    model = PLTForCausalLM.from_pretrained(tmp_path / "target")
    config = model.config
    assert (config.sliding_window, config.embedding_scale, config.hidden_scale, config.num_loops) == (5, 0.7, 0.05, 3)
    assert not config.learned_scales
    gate = model.model.layers[1].self_attn.plt_gate
    torch.testing.assert_close(gate.bias.sigmoid(), torch.full((6,), 0.3))
    assert gate.weight.abs().max() == 0 and (gate.gate_norm.weight == 1).all()
    plt_convert(DATA / "nanbeige", tmp_path / "other", "--to-plt", "--learned-scales", "--hidden-scale", 0.25)
    assert PLTForCausalLM.from_pretrained(tmp_path / "other").model.hidden_scale.item() == 0.25


def test_trained_gates_are_kept(tmp_path, capsys):
    plt_convert(DATA / "iquest_loop", tmp_path / "target", "--to-plt")
    model, source = (
        PLTForCausalLM.from_pretrained(tmp_path / "target"),
        load_file(DATA / "iquest_loop" / "model.safetensors"),
    )
    assert (model.config.sliding_window, model.config.gate_input, model.config.loop_shift) == (4, "query", True)
    weight = source["model.gate_projections.1.weight"]
    assert torch.equal(model.model.layers[1].self_attn.plt_gate.weight.data, weight)
    message = refused(capsys, DATA / "iquest_loop", tmp_path / "other", "--to-plt", "--gate-start", 0.5)
    assert "has trained ones" in message


def test_what_makes_no_sense_is_refused(tmp_path, capsys):
    target = tmp_path / "target"
    assert "LoopCoder-V2 is one" in refused(capsys, DATA / "loopcoder_v2", target, "--to-plt")
    assert "between 0 and 1" in refused(capsys, DATA / "nanbeige", target, "--to-plt", "--gate-start", 1)
    assert "'sliding_window'" in refused(capsys, DATA / "nanbeige", target, "--to-plt", "--window", 0)
    assert "is for plain sources" in refused(capsys, DATA / "nanbeige", target, "--loops", 3)
    for option in (
        ["--window", 3],
        ["--hidden-scale", 1],
        ["--gate-start", 0.5],
        ["--text", "x"],
        ["--learned-scales"],
    ):
        assert refused(capsys, DATA / "nanbeige", target, *option) == "2"
        assert "need --to-plt" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_distance_is_measured_on_the_text(tmp_path, capsys):
    source = copy_source("nanbeige", tmp_path / "source")
    words = {f"w{number}": number for number in range(97)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(source)
    input_ids = ids(length=50, batch_size=1)
    (tmp_path / "text").write_text(" ".join(f"w{token}" for token in input_ids[0].tolist()))
    plt_convert(source, tmp_path / "target", "--to-plt", "--text", tmp_path / "text")
    output = capsys.readouterr().out
    assert output.splitlines()[-2] in (tmp_path / "target" / "README.md").read_text()

    plt_convert(source, tmp_path / "exact")
    before, after = (
        logits(PLTForCausalLM.from_pretrained(tmp_path / name), input_ids) for name in ("exact", "target")
    )
    divergence = torch.nn.functional.kl_div(
        after.log_softmax(-1)[0], before.log_softmax(-1)[0], log_target=True, reduction="batchmean"
    )
    losses = [torch.nn.functional.cross_entropy(given[0, :-1], input_ids[0, 1:]).item() for given in (before, after)]
    found = re.search(r"on 50 tokens of text: .* PLT\) (\S+) nats .* loss (\S+) \(source\), (\S+) \(PLT\)", output)
    assert [float(number) for number in found.groups()] == pytest.approx([divergence.item(), *losses], rel=1e-2)
