# SPDX-License-Identifier: Apache-2.0
"""Trainers of TRL on a PLT."""

from pathlib import Path

import pytest
import torch
from chat_folder import ascii_tokenizer
from datasets import Dataset
from peft import LoraConfig
from tiny import tiny_ids, tiny_model
from train_tiny import losses

from modeling_plt import PLTForCausalLM, PLTForSequenceClassification

trl = pytest.importorskip("trl", reason="needs the extra `tools`")

DOCUMENTS = [tiny_ids(1, length, seed=length)[0].tolist() for length in (6, 4, 9, 5, 7)]
ARGUMENTS = {
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "logging_steps": 1,
    "learning_rate": 5e-3,
    "gradient_checkpointing": False,
    "seed": 0,
}


def loss_of_documents(model, documents) -> float:
    """Of each token of each document that has one before it."""
    total = sum(
        model(ids, labels=ids).loss * (ids.shape[1] - 1) for ids in map(torch.tensor, [[d] for d in documents])
    )
    return total.item() / sum(len(document) - 1 for document in documents)


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(settings, marks=pytest.mark.proves(tool="trl", what=f"SFT: {what}"), id=what)
        for what, settings in {
            "packing (bfd)": {"packing": True, "eval_packing": True, "packing_strategy": "bfd", "max_length": 16},
            "padding-free": {"padding_free": True, "max_length": None},
            "right padding": {"max_length": 16},
        }.items()
    ],
)
@torch.no_grad()
def test_documents_in_one_row_or_batch_are_as_documents_alone(tmp_path, settings, attn_implementation):
    model = tiny_model(num_loops=3, attn_implementation=attn_implementation)
    arguments = trl.SFTConfig(tmp_path, per_device_eval_batch_size=8, **ARGUMENTS, **settings)
    dataset = Dataset.from_dict({"input_ids": DOCUMENTS})
    trainer = trl.SFTTrainer(
        model, arguments, train_dataset=dataset, eval_dataset=dataset, processing_class=ascii_tokenizer()
    )
    (batch,) = trainer.get_eval_dataloader()
    assert len(batch["input_ids"]) == (5 if settings == {"max_length": 16} else 1)
    expected = loss_of_documents(model, DOCUMENTS)
    assert trainer.compute_loss(model, batch).item() == pytest.approx(expected, abs=1e-4)


def prompts_and_completions(key: str, *completions: str) -> dict[str, list]:
    return {"prompt": [f"def f{number}(" for number in range(16)], key: list(completions) * (16 // len(completions))}


@pytest.mark.proves(tool="trl", what="SFT: loss of completions only")
@torch.no_grad()
def test_only_completions_count(tmp_path):
    tokenizer = ascii_tokenizer()
    model = tiny_model(num_loops=3, vocab_size=len(tokenizer))
    dataset = Dataset.from_dict({"prompt": ["def wrap", "x"], "completion": [" (text):", " = width"]})
    arguments = trl.SFTConfig(tmp_path, per_device_eval_batch_size=2, **ARGUMENTS)
    trainer = trl.SFTTrainer(model, arguments, train_dataset=dataset, eval_dataset=dataset, processing_class=tokenizer)
    nll, count = 0, 0
    for row in dataset:
        prompt = tokenizer(row["prompt"]).input_ids
        whole = tokenizer(row["prompt"] + row["completion"]).input_ids + [tokenizer.eos_token_id]
        logits = model(torch.tensor([whole])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        nll -= logits.gather(1, torch.tensor(whole[len(prompt) :])[:, None]).sum().item()
        count += len(whole) - len(prompt)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(nll / count, abs=1e-4)


@pytest.mark.proves(tool="trl", what="SFT: of a folder, by LoRA (peft), with gradient checkpointing, in bfloat16")
def test_a_saved_chat_is_learnt_by_lora(chat_folder, tmp_path):
    arguments = ARGUMENTS | {"gradient_checkpointing": True, "bf16": True, "max_steps": 20, "learning_rate": 2e-2}
    trainer = trl.SFTTrainer(
        str(chat_folder),
        trl.SFTConfig(tmp_path, per_device_train_batch_size=8, **arguments),
        train_dataset=Dataset.from_dict(prompts_and_completions("completion", "text, width):")),
        peft_config=LoraConfig(r=16, lora_alpha=64, target_modules="all-linear"),
    )
    trainer.train()
    assert losses(trainer)[-1] < 0.7 * losses(trainer)[0]


def learn_preferences(trainer: type, config: type, folder: Path, output: Path, max_steps: int):
    """A trainer of TRL, when it has learnt to prefer one completion to another."""
    rows = prompts_and_completions("chosen", "text):") | {"rejected": ["width):"] * 16}
    arguments = config(output, per_device_train_batch_size=8, max_steps=max_steps, **ARGUMENTS)
    learner = trainer(str(folder), args=arguments, train_dataset=Dataset.from_dict(rows))
    learner.train()
    return learner


@pytest.mark.proves(tool="trl", what="DPO")
def test_dpo_comes_to_prefer_the_chosen(chat_folder, tmp_path):
    trainer = learn_preferences(trl.DPOTrainer, trl.DPOConfig, chat_folder, tmp_path, max_steps=10)
    assert type(trainer.model) is PLTForCausalLM
    assert losses(trainer)[0] == pytest.approx(0.6931, abs=0.02), "model and reference start equal"
    assert losses(trainer)[-1] < 0.3
    assert trainer.state.log_history[-2]["rewards/accuracies"] == 1


@pytest.mark.proves(tool="trl", what="RewardTrainer, by `PLTForSequenceClassification`")
def test_a_reward_model_comes_to_prefer_the_chosen(chat_folder, tmp_path):
    trainer = learn_preferences(trl.RewardTrainer, trl.RewardConfig, chat_folder, tmp_path, max_steps=15)
    assert type(trainer.model) is PLTForSequenceClassification
    assert losses(trainer)[-1] < 0.3
    assert trainer.state.log_history[-2]["accuracy"] == 1


@pytest.mark.proves(tool="trl", what="GRPO")
def test_grpo_raises_the_reward(chat_folder, tmp_path):
    def reward(completions: list[str], **_) -> list[float]:
        return [completion.count("e") / 8 for completion in completions]

    arguments = trl.GRPOConfig(
        tmp_path,
        per_device_train_batch_size=16,
        num_generations=8,
        max_completion_length=8,
        max_steps=12,
        **ARGUMENTS | {"learning_rate": 2e-2},
    )
    dataset = Dataset.from_dict({"prompt": ["def wrap(", "class Text"] * 8})
    trainer = trl.GRPOTrainer(str(chat_folder), reward_funcs=reward, args=arguments, train_dataset=dataset)
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert sum(rewards[-3:]) > 1.5 * sum(rewards[:3]), rewards
