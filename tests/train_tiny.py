"""Short training runs of tiny models."""

import torch
from datasets import Dataset
from tiny import tiny_model
from transformers import Trainer, TrainingArguments

from modeling_plt import PLTForCausalLM


def counting_dataset():
    """Rows that count upwards: a small model learns them in seconds."""
    rows = [[(start + step) % 50 + 5 for step in range(16)] for start in range(50)]
    return Dataset.from_dict({"input_ids": rows, "labels": rows})


def train(model, folder, max_steps, **kwargs):
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=max_steps,
        per_device_train_batch_size=16,
        learning_rate=5e-3,
        logging_steps=1,
        save_steps=10,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    trainer = Trainer(model, arguments, train_dataset=counting_dataset(), eval_dataset=counting_dataset())
    trainer.train(**kwargs)
    return trainer


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def fresh_model(**overrides):
    torch.manual_seed(0)
    return PLTForCausalLM(tiny_model(**overrides).config)
