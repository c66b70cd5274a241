"""Weight decay pulls matrices and embeddings towards zero, and leaves gates and scales where training puts them."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import ABLATION_ROWS, tiny_model
from transformers import Trainer, TrainingArguments

from training_plt.finetune.__main__ import ChatTrainer
from training_plt.heal.__main__ import HealingTrainer
from training_plt.pretrain.__main__ import PretrainingTrainer
from training_plt.pretrain.muon import MuonAndAdamW
from training_plt.trainer.decay import SpareGatesAndScales, decaying_names

VARIANTS = [
    *({"num_loops": 3, **row} for row in ABLATION_ROWS.values()),
    {"num_loops": 1},
    {"learned_scales": True, "gate_input": "query"},
    {"learned_scales": True, "attention_bias": True, "mlp_bias": True, "qk_norm": True, "norm_placement": "sandwich"},
]


def is_gate(name: str) -> bool:
    return ".plt_gate." in name


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_all_of_two_dimensions_but_gates_decay(variant):
    parameters = dict(tiny_model(**variant).named_parameters())
    assert set(decaying_names(tiny_model(**variant))) == {
        name for name, parameter in parameters.items() if parameter.dim() > 1 and not is_gate(name)
    }


def test_of_an_adapter_its_matrices_decay():
    options = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", use_dora=True)
    model = get_peft_model(tiny_model(), options)
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert set(decaying_names(model)) & set(trained) == {name for name, each in trained.items() if each.dim() > 1}


class PlainTrainer(SpareGatesAndScales, Trainer):
    """As docs/train.md says."""


def make_pretrainer(model, training):
    return PretrainingTrainer(model, training)


def make_muon(model, training):
    return Trainer(model, training, optimizers=(MuonAndAdamW(model, training, decaying_names(model)), None))


def make_healer(model, training):
    return HealingTrainer(model, training, new_rate=1.0)


def make_chat_trainer(model, training):
    trainer = object.__new__(ChatTrainer)  # TRL's wants chats and a tokenizer, of which the optimizer needs none
    Trainer.__init__(trainer, model, training)
    return trainer


def make_plain(model, training):
    return PlainTrainer(model, training)


@pytest.mark.parametrize("make", [make_pretrainer, make_muon, make_healer, make_chat_trainer, make_plain])
def test_steps_without_gradients_shrink_matrices_and_nothing_else(tmp_path, make):
    model = tiny_model(learned_scales=True, tie_word_embeddings=True)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    training = TrainingArguments(tmp_path, weight_decay=0.5, learning_rate=0.1, report_to=[], use_cpu=True)
    optimizer = make(model, training).create_optimizer()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        share = 0.95 if parameter.dim() > 1 and not is_gate(name) else 1.0
        torch.testing.assert_close(parameter, share * before[name], rtol=1e-6, atol=0, msg=name)


def test_the_decay_of_earlier_releases_is_that_of_trainer(tmp_path):
    model, training = tiny_model(learned_scales=True), TrainingArguments(tmp_path, report_to=[], use_cpu=True)
    trainer = PretrainingTrainer(model, training)
    expected = Trainer(model, training).get_decay_parameter_names(model)
    assert any(is_gate(name) for name in expected) and "model.hidden_scale" in expected
    assert set(trainer.get_decay_parameter_names(model)) < set(expected)
    trainer.decay_gates_and_scales = True
    assert trainer.get_decay_parameter_names(model) == expected
