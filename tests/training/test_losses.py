"""The losses of earlier loops, against a naive computation."""

import pytest
import torch
from three_stages import three_stages
from tiny import tiny_ids, tiny_model

from training_plt.trainer.losses import add_earlier_loops

WEIGHT = 0.3


def naive_loss(model, loops_states, labels, count=None):
    """Token by token, last loop and weighted earlier ones, over `count` labels, or as many as there are."""
    total = 0
    for loop_idx, states in enumerate(loops_states):
        weight = 1 if loop_idx == len(loops_states) - 1 else WEIGHT
        for row, entry in zip(labels, model.lm_head(states), strict=True):
            for column in range(1, len(row)):
                if row[column] != -100:
                    total = total - weight * entry[column - 1].log_softmax(-1)[row[column]]
    return total / (count or (labels[:, 1:] != -100).sum())


def padded():
    input_ids = tiny_ids(2, 9)
    mask = torch.ones_like(input_ids)
    mask[0, :3] = mask[1, 7:] = 0
    return {"input_ids": input_ids, "attention_mask": mask, "labels": input_ids.masked_fill(mask == 0, -100)}


def packed():
    input_ids, position_ids = tiny_ids(2, 9), torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1], list(range(9))])
    return {
        "input_ids": input_ids,
        "position_ids": position_ids,
        "labels": input_ids.masked_fill(position_ids == 0, -100),
    }


BATCHES = {
    "plain": lambda: {"input_ids": tiny_ids(2, 9), "labels": tiny_ids(2, 9)},
    "padded": padded,
    "packed": packed,
}


def gradients_of(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("count", [None, 29])
@pytest.mark.parametrize("make", [tiny_model, three_stages])
@pytest.mark.parametrize("loop_norm", [True, False])
@pytest.mark.parametrize("batch", BATCHES)
def test_loss_and_gradients_are_those_of_a_naive_computation(batch, loop_norm, make, count):
    inputs = BATCHES[batch]() | {"use_cache": False}
    model = make(num_loops=3, loop_norm=loop_norm).double()
    without_labels = {name: value for name, value in inputs.items() if name != "labels"}
    states = model.model(**without_labels, output_loop_hidden_states=True).loop_hidden_states
    expected = naive_loss(model, states, inputs["labels"], count)
    wanted = gradients_of(model, expected)

    add_earlier_loops(model.train(), WEIGHT)
    loss = model(**inputs, **({} if count is None else {"num_items_in_batch": count})).loss
    # the model's loss rounds logits to float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    for name, gradient in gradients_of(model, loss).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=0, atol=1e-5 * wanted[name].abs().max(), msg=name)


def test_evaluation_and_generation_see_the_last_loop_only():
    inputs, model = BATCHES["plain"](), tiny_model(num_loops=3)
    expected = model(**inputs).loss
    add_earlier_loops(model, WEIGHT)
    assert model(**inputs).loss == expected
    model.train()
    assert model(**inputs, use_cache=False).loss > expected
    assert model(inputs["input_ids"], use_cache=False).loss is None


def test_checkpointing_leaves_the_gradients_as_they_are():
    inputs, model = BATCHES["packed"]() | {"use_cache": False}, tiny_model(num_loops=3).train()
    add_earlier_loops(model, WEIGHT)
    expected = gradients_of(model, model(**inputs).loss)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for name, gradient in gradients_of(model, model(**inputs).loss).items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-6, msg=name)  # summation order


def test_a_saved_model_does_not_keep_the_losses(tmp_path):
    model = tiny_model(num_loops=2)
    add_earlier_loops(model, WEIGHT)
    model.save_pretrained(tmp_path)
    reloaded, inputs = type(model).from_pretrained(tmp_path).train(), BATCHES["plain"]()
    assert reloaded(**inputs, use_cache=False).loss < model.train()(**inputs, use_cache=False).loss


@pytest.mark.parametrize(
    "num_loops, weight, message", [(1, 0.1, "at least 2 loops"), (2, -0.1, "at least 0, got -0.1")]
)
def test_what_has_no_earlier_loops_is_refused(num_loops, weight, message):
    with pytest.raises(ValueError, match=message):
        add_earlier_loops(tiny_model(num_loops=num_loops), weight)
