"""What an evaluation says of each loop, and of a model without what its loops add, against separate forwards."""

import copy
import itertools

import pytest
import torch
from three_stages import ADAPTER, CUTS, three_stages
from tiny import tiny_ids, tiny_model
from transformers import Trainer, TrainingArguments

from training_plt.data.packing import NO_LABEL
from training_plt.diagnose.diagnostics import diagnose
from training_plt.heal.controls import control_losses
from training_plt.trainer.loop_readouts import EvaluatesLoops


class LoopTrainer(EvaluatesLoops, Trainer):
    pass


def rows(count=5, length=9):
    return [{"input_ids": ids, "labels": ids} for ids in tiny_ids(count, length)]


def trainer_of(model, tmp_path, **options):
    training = TrainingArguments(tmp_path, per_device_eval_batch_size=2, use_cpu=True, report_to=[], **options)
    return LoopTrainer(model, training, eval_dataset=rows())


@pytest.mark.parametrize("num_loops", [2, 3])
@pytest.mark.parametrize(
    "fields", [{}, {"loop_norm": False}, {"learned_scales": True}, {"loop_attention": "shared"}], ids=str
)
def test_losses_gates_and_scales_are_those_of_the_diagnostics(tmp_path, num_loops, fields):
    model = tiny_model(num_loops=num_loops, **fields)
    evaluation = trainer_of(model, tmp_path).evaluate()
    expected = diagnose(model, list(tiny_ids(5, 9)))
    losses = [evaluation[f"eval_loop_{loop_idx}_loss"] for loop_idx in range(num_loops - 1)]
    assert [*losses, evaluation["eval_loss"]] == pytest.approx(expected["loss"], abs=1e-5)
    gates = [evaluation.get(f"eval_loop_{loop_idx}_gate") for loop_idx in range(1, num_loops)]
    if model.config.has_gate:
        by_layer = torch.tensor([layer[1:] for layer in expected["mean_gate"]])
        assert gates == pytest.approx(by_layer.mean(dim=0).tolist(), abs=1e-5)
    else:
        assert not any(gates)
    scale = model.model.hidden_scale.item() if fields.get("learned_scales") else None
    assert evaluation.get("eval_hidden_scale") == (scale and pytest.approx(scale))


@pytest.mark.parametrize("cut", CUTS)
def test_readouts_of_a_loop_among_other_layers_are_those_of_the_looped_ones(tmp_path, cut):
    model = three_stages(cut, num_loops=3).float()
    evaluation = trainer_of(model, tmp_path).evaluate()
    expected = diagnose(model, list(tiny_ids(5, 9)))
    losses = [evaluation["eval_loop_0_loss"], evaluation["eval_loop_1_loss"], evaluation["eval_loss"]]
    assert losses == pytest.approx(expected["loss"], abs=1e-5)
    assert len(expected["mean_gate"]) == 5 - sum(CUTS[cut])
    by_loop = torch.tensor([layer[1:] for layer in expected["mean_gate"]]).mean(dim=0).tolist()
    assert [evaluation[f"eval_loop_{loop_idx}_gate"] for loop_idx in (1, 2)] == pytest.approx(by_loop, abs=1e-5)
    controls = control_losses(trainer_of(model, tmp_path), evaluation)
    assert controls["gate_1"] != pytest.approx(controls["loss"], abs=1e-3)


@pytest.mark.parametrize("num_loops", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_losses_are_means_over_labels_whatever_the_size_of_batches(tmp_path, num_loops, batch_size):
    """Some entries have none, as chats have of which the answers are cut off."""
    model, ids = tiny_model(num_loops=num_loops), tiny_ids(5, 9)
    labels = ids.clone()
    for entry in range(4):
        labels[entry, : 3 * entry + 1] = NO_LABEL
    training = TrainingArguments(tmp_path, per_device_eval_batch_size=batch_size, use_cpu=True, report_to=[])
    dataset = [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]
    evaluation = LoopTrainer(model, training, eval_dataset=dataset).evaluate()
    with torch.no_grad():
        states = model(ids, output_loop_hidden_states=True).loop_hidden_states
        by_loop = [model.lm_head(state)[:, :-1].transpose(1, 2) for state in states]
        expected = [torch.nn.functional.cross_entropy(logits, labels[:, 1:]).item() for logits in by_loop]
    assert evaluation["eval_loss"] == pytest.approx(expected[-1], abs=1e-5)
    if num_loops == 2:
        assert evaluation["eval_loop_0_loss"] == pytest.approx(expected[0], abs=1e-5)


@pytest.mark.parametrize("num_loops", [1, 2])
def test_an_evaluation_without_any_label_is_refused(tmp_path, num_loops):
    trainer = trainer_of(tiny_model(num_loops=num_loops), tmp_path)
    for entry in trainer.eval_dataset:
        entry["labels"] = torch.full_like(entry["labels"], NO_LABEL)
    with pytest.raises(ValueError, match="must have labels, got none"):
        trainer.evaluate()


def test_the_layers_run_no_further_time(tmp_path):
    model, calls = tiny_model(num_loops=3), []
    model.model.layers[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    trainer = trainer_of(model, tmp_path)
    trainer.evaluate()
    assert len(calls) == 3 * 3, "three batches, three loops"
    log = trainer.state.log_history[-1]
    assert {"eval_loop_0_loss", "eval_loop_1_loss", "eval_loop_2_gate"} <= log.keys()


def test_forwards_outside_of_an_evaluation_are_left_alone(tmp_path):
    model = tiny_model()
    trainer = trainer_of(model, tmp_path)
    trainer.evaluate()
    assert model(tiny_ids(1, 9)).loop_hidden_states is None
    assert not any(trainer.readouts.gates)


def test_a_plain_decoder_has_no_loops_to_tell_of(tmp_path):
    assert not any("loop" in name for name in trainer_of(tiny_model(num_loops=1), tmp_path).evaluate())


ADAPTERS = [ADAPTER | {"initial_state": initial} for initial in ("none", "zeros", "prelude")]


def without_states(weight):
    """A forward whose first call of two is whole, that of loop 0, and the other without the state's columns."""
    calls = itertools.count()

    def forward(states):
        whole = next(calls) % 2 == 0
        return states @ weight.T if whole else states[..., 32:] @ weight[:, 32:].T

    return forward


@pytest.mark.parametrize("fields", [{}, {"learned_scales": True}, *ADAPTERS], ids=str)
def test_controls_are_the_losses_of_models_without_state_gate_or_loop(tmp_path, fields):
    model = tiny_model(**fields)
    before = copy.deepcopy(model)
    trainer = trainer_of(model, tmp_path)
    controls = control_losses(trainer, trainer.evaluate())

    def loss_of(change):
        changed = copy.deepcopy(before)
        change(changed)
        return trainer_of(changed, tmp_path).evaluate()["eval_loss"]

    def without_state(model):
        if model.config.has_adapter and model.config.initial_state != "prelude":
            torch.nn.init.zeros_(model.model.adapter.weight[:, :32])
        elif model.config.has_adapter:  # loop 0 goes on to read its own
            model.model.adapter.forward = without_states(model.model.adapter.weight)
        else:
            model.config.hidden_scale = 0.0
        if "learned_scales" in fields:
            torch.nn.init.zeros_(model.model.hidden_scale)

    def open_gates(model):
        for layer in model.model.layers:
            torch.nn.init.zeros_(layer.self_attn.plt_gate.weight)
            torch.nn.init.constant_(layer.self_attn.plt_gate.bias, 100.0)

    single = tiny_model(num_loops=1, **fields)
    single.load_state_dict(before.state_dict(), strict=False)
    expected = {"hidden_scale_0": loss_of(without_state), "gate_1": loss_of(open_gates)}
    expected |= {
        "loss": loss_of(lambda model: None),
        "loop_0_alone": trainer_of(single, tmp_path).evaluate()["eval_loss"],
    }
    for name, loss in expected.items():
        assert controls[name] == pytest.approx(loss, abs=1e-5), name
    assert len({round(loss, 3) for loss in expected.values()}) == 4, "each control moves the loss"
    assert all(torch.equal(each, other) for each, other in zip(model.parameters(), before.parameters(), strict=True))
    assert model.config.hidden_scale == before.config.hidden_scale
