"""Healing: a converted model becomes as good as its source, by text and by a teacher."""

import json
import re

import datasets
import huggingface_hub
import pytest
import torch
from clean_process import run_in_clean_process
from safetensors.torch import load_file
from tiny import EXPERTS, randomize, tiny_config, tiny_ids, tiny_model
from training_texts import SIZES, as_flags, byte_tokenizer, write_texts
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from command_plt.main import main as plt
from configuration_plt import PLTConfig
from modeling_plt import PLTForCausalLM
from training_plt.heal import __main__ as heal
from training_plt.heal.controls import WORDS
from training_plt.heal.distillation import DistillationArguments, add_teacher

LOOP = {"num_loops": 2, "loop_shift": False, "loop_attention": "own", "embedding_scale": 0.0, "hidden_scale": 1.0}
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
    heal.main(flags(folder, "healed"))
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
    assert f"| teacher | {healed.parent}/source |" in card and "plt heal --model" in card
    saved = json.loads((healed / "config.json").read_text())
    converted = json.loads((healed.parent / "converted/config.json").read_text())
    assert {**saved, "transformers_version": ""} == {**converted, "transformers_version": ""}
    assert {"model.safetensors", "tokenizer.json", "modeling_plt.py", "loss.png"} <= {x.name for x in healed.iterdir()}


def test_a_resumed_run_ends_with_the_same_bits_and_what_was_made(folder, healed, capsys):
    heal.main(flags(folder, "resumed", "--resume-from-checkpoint", healed / "checkpoint-4"))
    one, other = (load_file(each / "model.safetensors") for each in (healed, folder / "resumed"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    card = (healed / "README.md").read_text()
    before, after = re.findall(r"held-out loss(?: before healing|, nats per token) \| ([\d.]+) \|", card)
    *_, made, where, then = capsys.readouterr().out.splitlines()
    assert made == f"Made:  a healed PLT, held-out loss {before} nats per token before and {after} after"
    resumed = folder / "resumed"
    assert where == f"Where: {resumed}" and then.startswith(f"Next:  plt finetune --model {resumed} ")


def test_a_mixture_of_experts_is_healed_towards_its_source(folder):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    routed = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "num_key_value_heads": 2}
    config = Qwen3MoeConfig(
        **sizes, **routed, vocab_size=258, head_dim=8, max_position_embeddings=64, eos_token_id=0, pad_token_id=257
    )
    randomize(Qwen3MoeForCausalLM(config)).save_pretrained(folder / "moe")
    byte_tokenizer().save_pretrained(folder / "moe")
    plt(["convert", str(folder / "moe"), str(folder / "moe-plt"), "--to-plt", "--loops", "2"])
    heal.main(flags(folder, "moe-healed", "--model", folder / "moe-plt", "--teacher", folder / "moe"))
    card = (folder / "moe-healed/README.md").read_text()
    before, after = re.findall(r"held-out loss(?: before healing|, nats per token) \| ([\d.]+) \|", card)
    assert float(after) < float(before)
    one, other = (load_file(folder / name / "model.safetensors") for name in ("moe-plt", "moe-healed"))
    assert one.keys() == other.keys()
    for name in one:
        assert ".mlp." not in name or not torch.equal(one[name], other[name]), name


def packed_batch():
    input_ids, position_ids = tiny_ids(2, 9), torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1], list(range(9))])
    labels = input_ids.masked_fill(position_ids == 0, -100)
    return {"input_ids": input_ids, "position_ids": position_ids, "labels": labels}


@pytest.mark.parametrize("count", [None, 29])
@pytest.mark.parametrize("fields", [{}, EXPERTS | {"router_aux_loss_coef": 1.0}], ids=["dense", "experts"])
def test_the_teachers_divergence_is_that_of_a_naive_computation(count, fields):
    model, teacher = tiny_model(num_loops=2, **fields).double(), tiny_model(seed=5, **LOOP).double()
    model.set_experts_implementation("eager")  # grouped kernels have no float64
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
    if fields:
        expected = expected + 14 / (count or 14) * model(**inputs, output_router_logits=True).aux_loss
    add_teacher(model, teacher, DistillationArguments(kl_weight=0.3, kl_temperature=temperature))
    # `float()` of the logits, as in the loss of transformers, leaves float32
    torch.testing.assert_close(model.train()(**inputs, **given).loss.float(), expected.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.eval()(**inputs, **given).loss, text_loss, rtol=0, atol=0)


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
        (("--kl-weight", "-1"), "`--kl-weight` must be at least 0, got -1.0"),
        (("--kl-temperature", "0"), "`--kl-temperature` must be above 0"),
        (("--new-rate", "0"), "`--new-rate` must be above 0"),
        (("--label-smoothing-factor", "0.1"), "`--teacher` does not go with `--label-smoothing-factor`"),
        (("--block-size", "4096"), "`--block-size` must be at most the 2048"),
        (("--resume-from-checkpoint", "source"), "must be a checkpoint with a trainer_state.json"),
    ],
)
def test_bad_input_is_refused_in_one_sentence_before_training(folder, capsys, monkeypatch, words, message):
    if words[-1] == "other":
        PLTForCausalLM(tiny_config(num_loops=1)).save_pretrained(folder / "other")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # a name of nothing is asked of no hub
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit):
        heal.main(flags(folder, "refused", *words))
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert not (folder / "refused").exists()
