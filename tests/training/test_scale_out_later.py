"""Healing and fine-tuning in two processes are those of one: teacher, rates of their own, adapters, merging."""

import json

import datasets
import pytest
import torch
from safetensors.torch import load_file
from scale_out import ONE_STEP, run_in_two_processes, sharding, weights
from test_finetune import SETTINGS, write_chats
from test_heal import LOOP
from tiny import randomize
from training_texts import SIZES, as_flags, chat_tokenizer, write_texts

from command_plt.main import main as plt
from configuration_plt import PLTConfig
from modeling_plt import PLTForCausalLM
from training_plt.finetune import __main__ as finetune
from training_plt.heal import __main__ as heal

pytestmark = pytest.mark.slow
KINDS = ("copies", "sharded")
LORA = ["--use-peft", "--lora-dropout", 0, "--lora-r", 4, "--lora-target-modules", "q_proj", "down_proj", "--merge"]
CHATS = [
    [{"role": "user", "content": f"def f{'x' * number}"}, {"role": "assistant", "content": f"({number}, width):"}]
    for number in range(24)
]


def heal_flags(folder, output, batch_size, *more) -> list[str]:
    """A step of 8 packed entries in two batches."""
    values = {
        "model": folder / "converted",
        "teacher": folder / "source",
        "kl_temperature": 2,
        "new_rate": 3,
        "dataset": folder / "texts.jsonl",
        "output_dir": folder / output,
        "block_size": 32,
        "held_out": 4,
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": 2,
        "eval_strategy": "no",
        "per_device_eval_batch_size": 1,  # what fills up a longer batch of one of two processes is in its mean
    }
    return as_flags(values, *ONE_STEP, *more)


def chat_flags(folder, output, batch_size, *more) -> list[str]:
    values = SETTINGS | {
        "model": folder / "converted",
        "dataset": folder / "chats.jsonl",
        "output_dir": folder / output,
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": 2,
    }
    return [f"--{name}={value}" for name, value in values.items()] + [*map(str, [*ONE_STEP, *more])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes, and one, made of a converted loop with random weights."""
    folder = tmp_path_factory.mktemp("later")
    write_texts(folder / "texts.jsonl")
    write_chats(folder / "chats.jsonl", [{"messages": messages} for messages in CHATS])
    tokenizer = chat_tokenizer()
    config = PLTConfig(
        **SIZES | LOOP, vocab_size=258, eos_token_id=0, bos_token_id=0, pad_token_id=257, tie_word_embeddings=True
    )
    randomize(PLTForCausalLM(config)).save_pretrained(folder / "source")
    tokenizer.save_pretrained(folder / "source")
    plt(["convert", str(folder / "source"), str(folder / "converted"), "--to-plt"])
    # a new gate would hide its norm from the loss
    randomize(PLTForCausalLM.from_pretrained(folder / "converted")).save_pretrained(folder / "converted")
    runs = []
    for kind in KINDS:
        runs.append(["heal", heal_flags(folder, f"heal-{kind}", 2, *sharding(kind))])
        runs.append(["finetune", chat_flags(folder, f"full-{kind}", 2, *sharding(kind))])
        runs.append(["finetune", chat_flags(folder, f"lora-{kind}", 2, *LORA, *sharding(kind))])
    run_in_two_processes(folder, runs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        heal.main(heal_flags(folder, "heal-alone", 4))
        finetune.main(chat_flags(folder, "full-alone", 4))
        finetune.main(chat_flags(folder, "lora-alone", 4, *LORA))
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", ["heal", "full", "lora"])
def test_a_step_of_two_processes_is_that_of_one(folder, training, kind):
    before = weights(folder / "converted")
    place = "{}-{}/merged" if training == "lora" else "{}-{}"
    alone, together = (weights(folder / place.format(training, each)) for each in ("alone", kind))
    assert together.keys() == alone.keys() == before.keys()
    changed = {name for name in before if (alone[name] - before[name]).abs().max() > 1e-4}
    assert changed == {name for name in before if training != "lora" or "q_proj" in name or "down_proj" in name}
    for name, weight in together.items():
        torch.testing.assert_close(weight, alone[name], rtol=0, atol=5e-5, msg=name)  # summation order


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_of_two_processes_is_that_of_one(folder, kind):
    alone, together = (load_file(folder / f"lora-{each}/adapter_model.safetensors") for each in ("alone", kind))
    assert together.keys() == alone.keys() and any("lora_B" in name for name in alone)
    for name, weight in together.items():
        torch.testing.assert_close(weight, alone[name], rtol=0, atol=5e-5, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_the_controls_of_two_processes_are_those_of_one(folder, kind):
    alone, together = (json.loads((folder / f"heal-{each}/controls.json").read_text()) for each in ("alone", kind))
    loops = [each.pop("loops") for each in (alone, together)]
    assert together == pytest.approx(alone, abs=2e-3) and loops[1] == pytest.approx(loops[0], abs=2e-3)


@pytest.mark.parametrize("training", ["heal", "full", "lora"])
def test_the_folder_of_two_processes_has_its_card(folder, training):
    for kind in KINDS:
        assert "Parallel Loop Transformer" in (folder / f"{training}-{kind}/README.md").read_text()
