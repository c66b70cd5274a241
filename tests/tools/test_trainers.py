# SPDX-License-Identifier: Apache-2.0
"""Trainers of TRL on a PLT."""

import pytest
import torch
from chat_folder import ascii_tokenizer
from datasets import Dataset
from peft import LoraConfig
from test_training import losses
from tiny import tiny_ids, tiny_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

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
