"""The balance loss of experts in training: one weight whatever the number of micro-batches and processes."""

import json

import pytest
import torch
from datasets import Dataset
from scale_out import ONE_STEP, run_in_two_processes, weights
from tiny import EXPERTS, randomize, tiny_ids, tiny_model
from training_texts import SIZES, as_flags
from transformers import Trainer, TrainingArguments

from modeling_plt import PLTForCausalLM
from training_plt.pretrain import __main__ as pretrain
from training_plt.trainer.losses import add_earlier_loops

ROUTER = "model.layers.0.mlp.gate.weight"


def step(folder, micro_batches, weight):
    """A trainer after one step of plain gradient descent over six equal rows."""
    rows = tiny_ids(1, 9).expand(6, -1).tolist()
    data = Dataset.from_dict({"input_ids": rows, "labels": rows})
    arguments = TrainingArguments(
        folder,
        max_steps=1,
        per_device_train_batch_size=6 // micro_batches,
        gradient_accumulation_steps=micro_batches,
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    model = tiny_model(num_loops=2, router_aux_loss_coef=weight, **EXPERTS)
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    return trainer


def test_accumulated_micro_batches_are_one_batch(tmp_path):
    whole, parts, unbalanced = (step(tmp_path, count, weight) for count, weight in ((1, 2.0), (3, 2.0), (1, 0.0)))
    logged = [trainer.state.log_history[0]["loss"] for trainer in (whole, parts)]
    assert logged[0] == pytest.approx(logged[1], abs=1e-4)
    for name, weight in whole.model.named_parameters():
        torch.testing.assert_close(parts.model.get_parameter(name), weight, rtol=0, atol=1e-5, msg=name)
    moved = [trainer.model.get_parameter(ROUTER) for trainer in (whole, unbalanced)]
    assert not torch.allclose(*moved, atol=1e-3)


def test_evaluation_leaves_the_balance_loss_out(tmp_path):
    trainer, ids = step(tmp_path, 1, 2.0), tiny_ids(1, 9)
    logits = trainer.model.eval()(ids).logits
    expected = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), abs=1e-4)


def test_losses_of_earlier_loops_are_added_to_the_balance_loss():
    model, ids = tiny_model(num_loops=3, router_aux_loss_coef=2.0, **EXPERTS).train(), tiny_ids(2, 9)
    last = model(ids, labels=ids).loss
    output = model(ids, output_loop_hidden_states=True)
    earlier = [model.lm_head(states[:, :-1]).flatten(0, 1) for states in output.loop_hidden_states[:-1]]
    expected = last + 0.3 * sum(torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()) for logits in earlier)
    add_earlier_loops(model, 0.3)
    torch.testing.assert_close(model(ids, labels=ids).loss, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_two_processes_balance_as_one(tmp_path, monkeypatch):
    """Every block of the texts is the same, as the loss of a micro-batch is of its own routing."""
    document = "def add(x):\n    return x + 1  #"
    assert len(document) == 31, "with the end, a block"
    (tmp_path / "texts.jsonl").write_text(40 * (json.dumps({"text": document}) + "\n"))
    experts = EXPERTS | {"router_aux_loss_coef": 2.0}
    (tmp_path / "config.json").write_text(json.dumps(SIZES | experts))

    def flags(output, batch_size, *more):
        values = {
            "dataset": tmp_path / "texts.jsonl",
            "preset": tmp_path / "config.json",
            "output_dir": tmp_path / output,
            "bpe_size": 257,
            "block_size": 32,
            "held_out": 4,
            "per_device_train_batch_size": batch_size,
            "gradient_accumulation_steps": 2,
            "eval_strategy": "no",
        }
        return as_flags(values, *ONE_STEP, *more)

    run_in_two_processes(tmp_path, [["pretrain", flags("two", 2)]])
    prepare = pretrain.prepare

    def prepare_random_weights(*arguments):
        trainer, checkpoint = prepare(*arguments)
        randomize(trainer.model)
        return trainer, checkpoint

    monkeypatch.setattr(pretrain, "prepare", prepare_random_weights)
    pretrain.main(flags("one", 4))
    for name, weight in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], weight, rtol=0, atol=5e-5, msg=name)
    before = randomize(PLTForCausalLM(PLTForCausalLM.from_pretrained(tmp_path / "one").config)).state_dict()
    assert (before[ROUTER] - weights(tmp_path / "one")[ROUTER]).abs().max() > 1e-3
