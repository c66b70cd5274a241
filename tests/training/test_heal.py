"""Healing: a converted model becomes as good as its source, by text, a teacher, and ramps that leave no trace."""

import json
import math

import datasets
import huggingface_hub
import pytest
import torch
from clean_process import run_in_clean_process
from safetensors.torch import load_file
from tiny import randomize, tiny_config, tiny_ids, tiny_model
from training_texts import SIZES, as_flags, byte_tokenizer, write_texts

from command_plt.main import main as plt
from configuration_plt import PLTConfig
from modeling_plt import PLTForCausalLM
from training_plt import heal
from training_plt.controls import WORDS
from training_plt.distillation import DistillationArguments, add_teacher
from training_plt.healing import RampArguments, Ramps, weight

LOOP = {"num_loops": 2, "loop_shift": False, "loop_attention": "own", "embedding_scale": 0.0, "hidden_scale": 1.0}
MORE = ("--attention_weight", 0.1, "--shared_kv_ramp", 0.5, "--shift_ramp", 0.8, "--window_ramp", 0.8)
LOAD = """
import sys
from transformers import AutoModelForCausalLM
sys.modules["modeling_plt"] = sys.modules["configuration_plt"] = None  # as where the package is not installed
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(model.model).__name__ == "PLTModel"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A vanilla loop with its tokenizer, the PLT that is made of it, and texts."""
    folder = tmp_path_factory.mktemp("heal")
    write_texts(folder / "texts.jsonl")
    tokenizer = byte_tokenizer()
    config = PLTConfig(
        **SIZES | LOOP, vocab_size=258, eos_token_id=0, bos_token_id=0, pad_token_id=257, tie_word_embeddings=True
    )
    randomize(PLTForCausalLM(config)).save_pretrained(folder / "source")
    tokenizer.save_pretrained(folder / "source")
    plt(["convert", str(folder / "source"), str(folder / "converted"), "--to-plt"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        yield folder


def flags(folder, output, *more) -> list[str]:
    """A run of a few steps."""
    values = {
        "model": folder / "converted",
        "teacher": folder / "source",
        "dataset": folder / "texts.jsonl",
        "output_dir": folder / output,
        "block_size": 32,
        "held_out": 4,
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 4,
        "eval_steps": 4,
    }
    return as_flags(values, *more)


@pytest.fixture(scope="module")
def healed(folder):
    heal.main(flags(folder, "healed", *MORE))
    return folder / "healed"


def test_a_run_saves_a_plain_plt_that_loads_anywhere_and_says_how_it_was_made(healed, tmp_path):
    run_in_clean_process(LOAD, healed, cwd=tmp_path)
    card = (healed / "README.md").read_text()
    first = float(card.split("| held-out loss before healing | ")[1].split(" |")[0])
    last = float(card.split("| held-out loss, nats per token | ")[1].split(" |")[0])
    assert last < first
    controls = json.loads((healed / "controls.json").read_text())
    assert round(controls["loss"], 4) == last
    for name, words in WORDS.items():
        assert f"| held-out loss, {words} | {controls[name]:.4f} |" in card
    log = json.loads((healed / "trainer_state.json").read_text())["log_history"]
    assert controls["loops"]["loop_1_gate"] == [entry for entry in log if "eval_loss" in entry][-1]["eval_loop_1_gate"]
    assert f"| teacher | {healed.parent}/source |" in card and "python -m training_plt.heal --model" in card
    saved = json.loads((healed / "config.json").read_text())
    converted = json.loads((healed.parent / "converted/config.json").read_text())
    assert {**saved, "transformers_version": ""} == {**converted, "transformers_version": ""}
    assert {"model.safetensors", "tokenizer.json", "modeling_plt.py", "loss.png"} <= {x.name for x in healed.iterdir()}


def test_a_resumed_run_ends_with_the_same_bits(folder, healed):
    heal.main(flags(folder, "resumed", *MORE, "--resume_from_checkpoint", healed / "checkpoint-4"))
    one, other = (load_file(each / "model.safetensors") for each in (healed, folder / "resumed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def as_plt(source: PLTForCausalLM, gate: float) -> PLTForCausalLM:
    """A PLT with the weights of a vanilla loop, and gates that are all of one value."""
    model = tiny_model(num_loops=source.config.num_loops).double()
    model.load_state_dict(source.state_dict(), strict=False)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.plt_gate.weight.zero_()
            layer.self_attn.plt_gate.bias.fill_(math.log(gate / (1 - gate)))
    return model


@pytest.mark.parametrize("num_loops", [2, 3])
def test_ramps_begin_at_the_vanilla_loop_and_end_at_the_plt(num_loops):
    source = tiny_model(**LOOP | {"num_loops": num_loops}).double()
    model, input_ids = as_plt(source, gate=1 - 1e-12), tiny_ids(2, 9)
    expected = model(input_ids, use_cache=False).logits
    ramps = Ramps(model, RampArguments(shared_kv_ramp=0.5, shift_ramp=0.5), block_size=9)

    def logits_at(step, training=True):
        model.train(training)
        ramps.on_step_begin(None, StateAt(step), None)
        return model(input_ids, use_cache=False).logits

    vanilla = source(input_ids, use_cache=False).logits
    torch.testing.assert_close(logits_at(0), vanilla, atol=1e-9, rtol=0)  # the gate leaves the window 1e-12
    assert (logits_at(2) - vanilla).abs().max() > 1e-3
    assert (logits_at(2) - expected).abs().max() > 1e-3
    torch.testing.assert_close(logits_at(5), expected, atol=0, rtol=0)
    torch.testing.assert_close(logits_at(0, training=False), expected, atol=0, rtol=0)


@pytest.mark.parametrize("gate", [0.2, 0.7])
def test_with_all_ramps_any_gate_begins_at_the_vanilla_loop(gate):
    """Both of its sides see all of the loop's own keys then."""
    source = tiny_model(**LOOP).double()
    model, input_ids = as_plt(source, gate), tiny_ids(2, 9)
    plain = model(input_ids, use_cache=False).logits
    ramps = Ramps(model.train(), RampArguments(shared_kv_ramp=0.5, shift_ramp=0.5, window_ramp=1.0), block_size=9)
    ramps.on_step_begin(None, StateAt(0), None)
    expected = source(input_ids, use_cache=False).logits
    torch.testing.assert_close(model(input_ids, use_cache=False).logits, expected, atol=1e-9, rtol=0)
    ramps.on_step_end(None, StateAt(0), None)
    torch.testing.assert_close(model.eval()(input_ids, use_cache=False).logits, plain, atol=0, rtol=0)


def test_the_window_shrinks_with_the_steps_and_is_the_models_between_them():
    model, windows, saved = tiny_model(), [], []
    ramps = Ramps(model, RampArguments(window_ramp=0.5), block_size=14)
    for step in range(10):
        ramps.on_step_begin(None, StateAt(step), None)
        windows.append(model.model.layers[1].self_attn.config.sliding_window)
        assert model.model.config.sliding_window == windows[-1]
        ramps.on_step_end(None, StateAt(step), None)
        saved.append(model.model.layers[1].self_attn.config.sliding_window)
    assert model.config.sliding_window == 4
    assert windows == [14, 12, 10, 8, 6, 4, 4, 4, 4, 4]
    assert saved == [4] * 10


class StateAt:
    max_steps = 10

    def __init__(self, step):
        self.global_step = step


@pytest.mark.parametrize("part, ramp, expected", [(0, 0, 1), (0, 0.5, 0), (0.25, 0.5, 0.5), (0.5, 0.5, 1), (1, 1, 1)])
def test_weights_of_a_ramp(part, ramp, expected):
    assert weight(part, ramp) == expected


def packed_batch():
    input_ids, position_ids = tiny_ids(2, 9), torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1], list(range(9))])
    labels = input_ids.masked_fill(position_ids == 0, -100)
    return {"input_ids": input_ids, "position_ids": position_ids, "labels": labels}


@pytest.mark.parametrize("count", [None, 29])
def test_the_teachers_divergence_is_that_of_a_naive_computation(count):
    model, teacher = tiny_model(num_loops=2).double(), tiny_model(seed=5, **LOOP).double()
    inputs, temperature = packed_batch() | {"use_cache": False}, 1.7
    given = {} if count is None else {"num_items_in_batch": count}
    text_loss, logits = model(**inputs, **given).loss, model(**inputs).logits
    taught = teacher(**inputs).logits
    total = 0
    for labels, ours, theirs in zip(inputs["labels"], logits, taught, strict=True):
        for column in range(1, 9):
            if labels[column] != -100:
                p = (theirs[column - 1] / temperature).softmax(-1)
                q = (ours[column - 1] / temperature).softmax(-1)
                total = total + (p * (p / q).log()).sum()
    expected = text_loss + 0.3 * temperature**2 * total / (count or 14)
    add_teacher(model, teacher, DistillationArguments(kl_weight=0.3, kl_temperature=temperature))
    # `float()` of the logits, as in the loss of transformers, leaves float32
    torch.testing.assert_close(model.train()(**inputs, **given).loss.float(), expected.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.eval()(**inputs, **given).loss, text_loss, rtol=0, atol=0)


def attention_outputs(model, inputs) -> list:
    """What each call of an attention adds, in the order of the calls."""
    outputs = []
    handles = [
        layer.self_attn.register_forward_hook(lambda _, __, output: outputs.append(output[0]))
        for layer in model.model.layers
    ]
    model(**inputs)
    for handle in handles:
        handle.remove()
    return outputs


@pytest.mark.parametrize("given", [{}, {"num_items_in_batch": 28}], ids=["alone", "half of a batch"])
def test_attention_outputs_are_compared_layer_by_layer_and_loop_by_loop(given):
    model, teacher = tiny_model(num_loops=2).double(), tiny_model(seed=5, **LOOP).double()
    inputs = packed_batch() | {"use_cache": False}
    text_loss = model(**inputs, **given).loss
    pairs = list(zip(attention_outputs(model, inputs), attention_outputs(teacher, inputs), strict=True))
    assert len(pairs) == 4, "two layers, two loops"
    expected = sum((ours - theirs).square().sum() / theirs.square().sum() for ours, theirs in pairs) / 4
    add_teacher(model, teacher, DistillationArguments(kl_weight=0.0, attention_weight=0.7))
    loss = model.train()(**inputs, **given).loss
    share = 0.5 if given else 1.0  # of 28 labels, there are 14
    torch.testing.assert_close(loss.float(), (text_loss + 0.7 * share * expected).float(), rtol=1e-5, atol=1e-6)


def test_accumulated_batches_have_the_gradients_of_one():
    model, teacher = tiny_model(num_loops=2).double(), tiny_model(seed=5, **LOOP).double()
    add_teacher(model.train(), teacher, DistillationArguments(kl_weight=0.3))

    def gradients(batches):
        model.zero_grad()
        for batch in batches:
            model(**batch, use_cache=False, num_items_in_batch=14).loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    tensors = packed_batch()
    halves = [{name: part[entry : entry + 1] for name, part in tensors.items()} for entry in (0, 1)]
    torch.testing.assert_close(gradients(halves), gradients([tensors]), rtol=1e-4, atol=1e-6)


def test_what_is_new_has_a_learning_rate_of_its_own(folder):
    texts = heal.TextArguments(str(folder / "texts.jsonl"), held_out=4, block_size=32)
    training = heal.HealingArguments(
        str(folder / "rates"), use_cpu=True, max_steps=2, learning_rate=1e-3, warmup_steps=0
    )
    arguments = heal.HealArguments(model=str(folder / "converted"), new_rate=7.0)
    trainer, _ = heal.prepare(arguments, texts, training)
    groups = trainer.create_optimizer().param_groups
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    rates = {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}
    assert rates.keys() == set(names.values()), "each in one group"
    new = {name for name, rate in rates.items() if rate == 7e-3}
    expected = {"plt_gate.weight", "plt_gate.bias", "plt_gate.gate_norm.weight", "embedding_scale", "hidden_scale"}
    assert new == {name for name in rates if name.endswith(tuple(expected))} and len(new) == len(expected)
    assert {rates[name] for name in rates.keys() - new} == {1e-3}


@pytest.mark.parametrize(
    "words, message",
    [
        (("--model", "source"), "`--model` must be a PLT, which `plt convert"),
        (("--model", "nothing"), "must be a folder or hub id of a saved PLT, got"),
        (("--teacher", "nothing"), "`--teacher` must be a model that transformers can load"),
        (("--teacher", "other"), "`--teacher` must have the model's vocabulary of 258, got 61"),
        (("--teacher", "deep", "--attention_weight", "1"), "needs a teacher in this package's format"),
        (("--shift_ramp", "2"), "`--shift_ramp` must be from 0 to 1, got 2.0"),
        (("--kl_temperature", "0"), "`--kl_temperature` must be above 0"),
        (("--new_rate", "0"), "`--new_rate` must be above 0"),
        (("--block_size", "4096"), "`--block_size` must be at most the 2048"),
        (("--resume_from_checkpoint", "source"), "must be a checkpoint with a trainer_state.json"),
    ],
)
def test_bad_input_is_refused_in_one_sentence_before_training(folder, capsys, monkeypatch, words, message):
    if words[-1] == "other":
        PLTForCausalLM(tiny_config(num_loops=1)).save_pretrained(folder / "other")
    if words[1] == "deep":
        config = PLTConfig.from_pretrained(folder / "source", num_hidden_layers=2)
        PLTForCausalLM(config).save_pretrained(folder / "deep")
        byte_tokenizer().save_pretrained(folder / "deep")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # a name of nothing is asked of no hub
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit):
        heal.main(flags(folder, "refused", *words))
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert not (folder / "refused").exists()
