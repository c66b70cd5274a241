"""Tensors that a publisher fuses, shifts or interleaves are computed, compared one by one, and verified.

The source is a Llama in a format of its own: queries, keys and values in one tensor, with the rotary pairs of a head
next to each other; gate and up projection in one; norms stored as their difference to one; the head in two parts.
"""

import json
import weakref
from dataclasses import replace

import pytest
import torch
from converting import plain_model, plt_convert, refused
from safetensors.torch import load_file, save_file
from transformers.core_model_loading import Chunk, Concatenate, ConversionOps, WeightConverter

import conversion_plt.convert
import conversion_plt.target.write_weights
from conversion_plt.plan.computed import Derivation
from conversion_plt.plan.heads import PairsToHalves, SplitHeads
from conversion_plt.reading.checkpoint import open_checkpoint
from conversion_plt.sources.llama import SOURCE as LLAMA
from modeling_plt import PLTForCausalLM

PAIRS = (0, 4, 1, 5, 2, 6, 3, 7)  # where the rows of a head of 8 are among ours


class AddOne(ConversionOps):
    def convert(self, input_dict, source_patterns, target_patterns, **kwargs):
        ((weight,),) = input_dict.values()
        return {target_patterns[0]: weight + 1}


QKV = [f"self_attn.{letter}_proj.weight" for letter in "qkv"]
CONVERTERS = (
    WeightConverter("attn.Wqkv.weight", QKV, [SplitHeads(), PairsToHalves()]),
    WeightConverter("mlp.fc.weight", ["mlp.gate_proj.weight", "mlp.up_proj.weight"], [Chunk(dim=0)]),
    WeightConverter("norm.weight", "norm.weight", [AddOne()]),
    WeightConverter(["head.first.weight", "head.second.weight"], "lm_head.weight", [Concatenate(dim=0)]),
)
SOURCE = replace(
    LLAMA,
    model_type="fused",
    title="Fused",
    renames=((r"\.attn\.out\.", ".self_attn.o_proj."),),
    converters=CONVERTERS,
    reference_class=None,
)


def fuse(weights):
    """A Llama's tensors as the publisher stores them; the norms first become those that survive the subtraction."""
    fused = {}
    for name, tensor in weights.items():
        if "norm" in name:
            fused[name] = tensor - 1
            weights[name] = fused[name] + 1
        elif "q_proj" in name:
            query, key, value = (weights[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv")
            rows = [head[row] for part in (query, key) for head in part.split(8) for row in PAIRS]
            fused[name.replace("self_attn.q_proj", "attn.Wqkv")] = torch.stack([*rows, *value])
        elif "gate_proj" in name:
            up = weights[name.replace("gate_proj", "up_proj")]
            fused[name.replace("gate_proj", "fc")] = torch.cat([tensor, up])
        elif name == "lm_head.weight":
            fused["head.first.weight"], fused["head.second.weight"] = tensor[:40].clone(), tensor[40:].clone()
        elif not any(part in name for part in ("k_proj", "v_proj", "up_proj")):
            fused[name.replace("self_attn.o_proj", "attn.out")] = tensor
    return fused


def write_source(folder, dtype=torch.float32):
    """The publisher's folder, with two files that share the last layer and the head; returns the Llama's tensors."""
    model = plain_model("llama")
    weights = {name: tensor.to(dtype, copy=True) for name, tensor in model.state_dict().items()}
    tensors = fuse(weights)
    model.load_state_dict(weights)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model.config.to_dict() | {"model_type": "fused"}))
    weight_map = {}
    for number in (0, 1):
        names = [name for name in tensors if ("second" in name or "layers.2.attn" in name) == number]
        file = f"part-{number}.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    input_ids = torch.randint(97, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(input_ids).logits
    save_file({"input_ids": input_ids, "logits": logits}, folder / "expected")
    return weights


@pytest.fixture
def source(tmp_path, monkeypatch):
    """The publisher's folder, whose format is known."""
    write_source(tmp_path / "source")
    use(monkeypatch, SOURCE)
    return tmp_path / "source"


def use(monkeypatch, source):
    monkeypatch.setattr(conversion_plt.convert, "find_source", lambda config: source)


def change_converter(monkeypatch, index, *change):
    converters = list(CONVERTERS)
    converters[index] = WeightConverter(*change)
    use(monkeypatch, replace(SOURCE, converters=tuple(converters)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_tensor_is_the_one_that_it_stands_for(tmp_path, monkeypatch, capsys, dtype):
    weights = write_source(tmp_path / "source", dtype)
    use(monkeypatch, SOURCE)
    plt_convert(tmp_path / "source", tmp_path / "target", "--expected", tmp_path / "source" / "expected")
    written = {name: tensor.load() for name, tensor in open_checkpoint(tmp_path / "target").tensors.items()}
    assert written.keys() == weights.keys()
    for name, tensor in weights.items():
        assert written[name].dtype == dtype and torch.equal(written[name], tensor), name
    output = capsys.readouterr().out
    assert "7 equal to the source's to the bit, 23 computed from the source's, 0 new" in output
    assert "agree with expected" in output
    model, report = PLTForCausalLM.from_pretrained(tmp_path / "target", output_loading_info=True)
    assert not any(report.values())


def test_kept_tensors_are_copied_byte_for_byte(source, tmp_path):
    plt_convert(source, tmp_path / "target")
    stored, written = open_checkpoint(source).tensors, open_checkpoint(tmp_path / "target").tensors
    kept = {"model.embed_tokens.weight": "model.embed_tokens.weight"}
    for number in range(3):
        layer = f"model.layers.{number}."
        kept |= {f"{layer}mlp.down_proj.weight": f"{layer}mlp.down_proj.weight"}
        kept |= {f"{layer}attn.out.weight": f"{layer}self_attn.o_proj.weight"}
    for theirs, ours in kept.items():
        assert torch.equal(stored[theirs].load().view(torch.uint8), written[ours].load().view(torch.uint8))


@pytest.mark.parametrize(
    "index, change",
    [
        (0, ("attn.Wqkv.weight", QKV, [SplitHeads()])),
        (0, ("attn.Wqkv.weight", [QKV[0], QKV[2], QKV[1]], [SplitHeads(), PairsToHalves()])),
        (1, ("mlp.fc.weight", ["mlp.up_proj.weight", "mlp.gate_proj.weight"], [Chunk(dim=0)])),
        (2, ("final_norm.weight", "final_norm.weight", [AddOne()])),
        (3, (["head.second.weight", "head.first.weight"], "lm_head.weight", [Concatenate(dim=0)])),
    ],
    ids=["rotary pairs", "keys as values", "up as gate", "norms", "head"],
)
def test_what_is_computed_wrong_does_not_pass_the_check(source, tmp_path, monkeypatch, capsys, index, change):
    change_converter(monkeypatch, index, *change)
    message = refused(capsys, source, tmp_path / "target", "--expected", source / "expected")
    assert "Logits differ from those of expected" in message


def test_a_computed_tensor_that_was_written_wrong_is_found(source, tmp_path, monkeypatch, capsys):
    verify = conversion_plt.convert.verify_files

    def damage_and_verify(plan, written, keep_nan):
        file = written.folder / "model.safetensors"
        tensors = load_file(file)
        tensors["model.layers.1.self_attn.k_proj.weight"].view(torch.uint8)[-1, -1] ^= 1
        save_file(tensors, file, metadata={"format": "pt"})
        return verify(plan, open_checkpoint(written.folder), keep_nan)

    monkeypatch.setattr(conversion_plt.convert, "verify_files", damage_and_verify)
    message = refused(capsys, source, tmp_path / "target")
    assert "`model.layers.1.self_attn.k_proj.weight` in the written folder differs" in message


def test_what_is_computed_is_in_memory_for_one_file_at_a_time(source, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion_plt.target.write_weights, "LARGEST", 20_000)
    alive, most, compute = [], [], Derivation.compute

    def watched(derivation):
        most.append(sum(tensor.nbytes for reference in alive if (tensor := reference()) is not None))
        made = compute(derivation)
        alive.extend(map(weakref.ref, made.values()))
        return made

    monkeypatch.setattr(Derivation, "compute", watched)
    plt_convert(source, tmp_path / "target")
    assert len(alive) == 2 * 23  # written and verified
    assert 0 < max(most) < 20_000


@pytest.mark.parametrize(
    "index, change, message",
    [
        (0, ("attn.Wqkv.weight", QKV[:2], [SplitHeads()]), "`model.layers.0.self_attn.q_proj.weight` cannot be"),
        (2, ("norm.weight", "normed.weight", [AddOne()]), "missing `model.layers.0.input_layernorm.weight`"),
        (2, ("layernorm.weight", "layernorm.w", [AddOne()]), "missing"),
        (3, (["head.first.weight"], "lm_head.weight", [Concatenate(dim=0)]), "not expected `head.second.weight`"),
        (3, ("head.second.weight", "mlp.down_proj.weight", [AddOne()]), "missing"),
    ],
)
def test_what_does_not_fit_the_config_is_refused(source, tmp_path, monkeypatch, capsys, index, change, message):
    change_converter(monkeypatch, index, *change)
    assert message in refused(capsys, source, tmp_path / "target")


def test_two_that_become_one_are_refused(source, tmp_path, monkeypatch, capsys):
    renames = (*SOURCE.renames, (r"head\.second", "lm_head"))
    change_converter(monkeypatch, 3, "head.first.weight", "lm_head.weight", [AddOne()])
    use(monkeypatch, replace(conversion_plt.convert.find_source(None), renames=renames))
    assert "becomes `lm_head.weight`" in refused(capsys, source, tmp_path / "target")


def test_a_plt_starts_from_computed_tensors_too(source, tmp_path):
    plt_convert(source, tmp_path / "target", "--to-plt")
    model = PLTForCausalLM.from_pretrained(tmp_path / "target").eval()
    expected = load_file(source / "expected")
    with torch.no_grad():
        torch.testing.assert_close(model(expected["input_ids"]).logits, expected["logits"], rtol=0, atol=1e-4)
