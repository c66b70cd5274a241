"""Heads for sequences, tokens and answers: the decoder of a causal model under another output."""

import pytest
import torch
from tiny import EXPERTS, tiny_ids, tiny_model
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import modeling_plt

HEADS = {
    AutoModelForSequenceClassification: modeling_plt.PLTForSequenceClassification,
    AutoModelForTokenClassification: modeling_plt.PLTForTokenClassification,
    AutoModelForQuestionAnswering: modeling_plt.PLTForQuestionAnswering,
}


def outputs(model, input_ids, mask=None):
    """What a head puts out for a batch, as one tensor `[B, ...]`."""
    with torch.no_grad():
        output = model(input_ids, attention_mask=mask)
    return output.logits if "logits" in output else torch.stack((output.start_logits, output.end_logits), dim=-1)


def states_before(model):
    """The module that reads the decoder's states."""
    return model.qa_outputs if hasattr(model, "qa_outputs") else model.score


@pytest.mark.parametrize("auto", HEADS, ids=lambda auto: auto.__name__)
def test_a_head_reads_the_states_of_the_causal_models_decoder(tmp_path, auto):
    causal, input_ids = tiny_model(num_loops=3), tiny_ids(2, 9)
    causal.save_pretrained(tmp_path / "causal")
    model = auto.from_pretrained(tmp_path / "causal").eval()
    assert type(model) is HEADS[auto]
    states = causal.model(input_ids).last_hidden_state
    expected = states_before(model)(states)
    expected = expected[:, -1] if auto is AutoModelForSequenceClassification else expected
    torch.testing.assert_close(outputs(model, input_ids), expected)
    model.save_pretrained(tmp_path / "head")
    again = auto.from_pretrained(tmp_path / "head").eval()
    assert torch.equal(outputs(again, input_ids), outputs(model, input_ids))


@pytest.mark.parametrize("auto", HEADS, ids=lambda auto: auto.__name__)
def test_left_padded_rows_equal_rows_alone(auto):
    model, input_ids = auto.from_config(tiny_model(num_loops=3).config).eval(), tiny_ids(2, 9)
    mask = torch.ones_like(input_ids)
    mask[0, :4], input_ids[0, :4] = 0, 0
    together, alone = outputs(model, input_ids, mask)[0], outputs(model, input_ids[:1, 4:])[0]
    together = together if auto is AutoModelForSequenceClassification else together[4:]
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)  # summation order


def test_labels_give_the_loss_of_each_head():
    config, input_ids = tiny_model().config, tiny_ids(2, 9)
    config.num_labels = 3
    sequence = AutoModelForSequenceClassification.from_config(config).eval()
    labels = torch.tensor([2, 0])
    loss = torch.nn.functional.cross_entropy(outputs(sequence, input_ids), labels)
    torch.testing.assert_close(sequence(input_ids, labels=labels).loss, loss)
    tokens = AutoModelForTokenClassification.from_config(config).eval()
    labels = torch.randint(3, (2, 9))
    loss = torch.nn.functional.cross_entropy(outputs(tokens, input_ids).flatten(0, 1), labels.flatten())
    torch.testing.assert_close(tokens(input_ids, labels=labels).loss, loss)
    answers = AutoModelForQuestionAnswering.from_config(config).eval()
    starts, ends = torch.tensor([1, 4]), torch.tensor([2, 8])
    start, end = outputs(answers, input_ids).unbind(-1)
    loss = (torch.nn.functional.cross_entropy(start, starts) + torch.nn.functional.cross_entropy(end, ends)) / 2
    torch.testing.assert_close(answers(input_ids, start_positions=starts, end_positions=ends).loss, loss)


def test_a_head_trains_experts_without_a_balance_loss(tmp_path):
    tiny_model(num_loops=2, **EXPERTS).save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, pad_token_id=0).train()
    losses = []
    for weight in (0.0, 5.0):
        model.config.router_aux_loss_coef = weight
        losses.append(model(tiny_ids(2, 9), labels=torch.tensor([0, 1])).loss)
    torch.testing.assert_close(*losses, rtol=0, atol=0)
    losses[0].backward()
    assert model.model.layers[0].mlp.gate.weight.grad.abs().max() > 0
