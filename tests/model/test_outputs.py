"""What forward returns besides logits."""

import pytest
import torch
from tiny import ABLATION_ROWS, tiny_ids, tiny_model

from modeling_plt import PLTModel

FAMILIES = ("dense", "experts", "core")


@pytest.mark.parametrize("loop_norm", [True, False])
@pytest.mark.parametrize("row", ABLATION_ROWS)
def test_loop_hidden_states_are_a_lens_on_every_loop(row, loop_norm):
    """The states of loop r in a model of L loops are the last states of the same weights with r + 1 loops."""
    model = tiny_model(num_loops=3, loop_norm=loop_norm, **ABLATION_ROWS[row])
    input_ids = tiny_ids(2, 11)
    output = model(input_ids, output_loop_hidden_states=True)
    assert [state.shape for state in output.loop_hidden_states] == [(2, 11, 32)] * 3
    torch.testing.assert_close(model.lm_head(output.loop_hidden_states[-1]), output.logits, rtol=0, atol=0)
    for num_loops in (1, 2):
        shorter = tiny_model(num_loops=num_loops, loop_norm=loop_norm, **ABLATION_ROWS[row])
        shorter.load_state_dict(model.state_dict(), strict=num_loops > 1 or row != "gated_window")
        expected = shorter.model(input_ids).last_hidden_state
        torch.testing.assert_close(output.loop_hidden_states[num_loops - 1], expected, rtol=0, atol=1e-5)


def test_loop_hidden_states_of_a_decoded_token_equal_those_of_the_forward():
    model, input_ids = tiny_model(num_loops=3, num_coda_layers=0), tiny_ids(2, 11)  # a coda needs all tokens
    expected = model(input_ids, output_loop_hidden_states=True).loop_hidden_states
    cache = model(input_ids[:, :10], use_cache=True).past_key_values
    decoded = model(input_ids[:, 10:], past_key_values=cache, output_loop_hidden_states=True).loop_hidden_states
    for actual, whole in zip(decoded, expected, strict=True):
        torch.testing.assert_close(actual, whole[:, 10:], rtol=0, atol=1e-5)


def test_loop_hidden_states_are_opt_in():
    assert tiny_model()(tiny_ids(1, 5)).loop_hidden_states is None


@pytest.mark.parametrize("num_loops", [1, 3])
@pytest.mark.parametrize("row", ABLATION_ROWS)
def test_hidden_states_and_attentions_keep_their_usual_lengths(row, num_loops):
    model = tiny_model(num_loops=num_loops, attn_implementation="eager", **ABLATION_ROWS[row])
    input_ids, num_layers = tiny_ids(2, 9), model.config.num_hidden_layers
    output = model(input_ids, output_hidden_states=True, output_attentions=True, use_cache=True)
    assert [state.shape for state in output.hidden_states] == [(2, 9, 32)] * (num_layers + 1)
    assert [weights.shape for weights in output.attentions] == [(2, 4, 9, 9)] * num_layers
    torch.testing.assert_close(model.lm_head(output.hidden_states[-1]), output.logits, rtol=0, atol=0)
    for weights in output.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 9))
        assert weights.triu(1).abs().max() == 0

    whole = model(torch.cat((input_ids, input_ids[:, :1]), dim=1), output_hidden_states=True, output_attentions=True)
    decoded = model(
        input_ids[:, :1], past_key_values=output.past_key_values, output_hidden_states=True, output_attentions=True
    )
    for actual, expected in zip(decoded.hidden_states, whole.hidden_states, strict=True):
        torch.testing.assert_close(actual, expected[:, -1:], rtol=0, atol=1e-4)
    for actual, expected in zip(decoded.attentions, whole.attentions, strict=True):
        torch.testing.assert_close(actual, expected[:, :, -1:], rtol=0, atol=1e-5)


def test_outputs_can_be_tuples():
    model = tiny_model()
    logits, cache = model(tiny_ids(1, 5), use_cache=True, return_dict=False)
    assert logits.shape == (1, 5, 61)
    assert cache.get_seq_length() == 5


def test_last_hidden_state_times_the_head_is_the_logits():
    model, input_ids = tiny_model(num_loops=3), tiny_ids(2, 9)
    states = model.model(input_ids).last_hidden_state
    assert torch.equal(states @ model.lm_head.weight.T, model(input_ids).logits)
    assert isinstance(model.base_model, PLTModel)


def test_logits_to_keep_selects_positions():
    model, input_ids = tiny_model(num_loops=3), tiny_ids(2, 9)
    logits = model(input_ids).logits
    rows = torch.tensor([[0, 8], [3, 3]])
    mask = torch.rand(2, 9, generator=torch.Generator().manual_seed(0)) > 0.5
    for kept, expected in (
        (0, logits),
        (1, logits[:, -1:]),
        (4, logits[:, -4:]),
        (torch.tensor([2, 5]), logits[:, [2, 5]]),
        (rows, torch.stack((logits[0, rows[0]], logits[1, rows[1]]))),
        (mask, logits[mask]),
    ):
        torch.testing.assert_close(model(input_ids, logits_to_keep=kept).logits, expected, rtol=0, atol=1e-5)


def test_embeddings_may_replace_ids():
    model, input_ids = tiny_model(num_loops=3), tiny_ids(2, 9)
    embeddings = model.get_input_embeddings()(input_ids)
    assert torch.equal(model(inputs_embeds=embeddings).logits, model(input_ids).logits)


def test_loss_is_the_mean_cross_entropy_of_the_next_token():
    model, input_ids = tiny_model(num_loops=3), tiny_ids(2, 9)
    labels = input_ids.clone()
    labels[0, :4] = -100
    output = model(input_ids, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("num_loops", [1, 3])
@pytest.mark.parametrize("row", ABLATION_ROWS)
def test_attentions_and_hidden_states_are_on_the_way_to_the_loss(row, num_loops):
    model = tiny_model(num_loops=num_loops, attn_implementation="eager", **ABLATION_ROWS[row])
    output = model(tiny_ids(2, 9), output_attentions=True, output_hidden_states=True, use_cache=False)
    for states in (*output.attentions, *output.hidden_states):
        states.retain_grad()
    output.logits.square().sum().backward()
    for states in (*output.attentions, *output.hidden_states):
        assert states.grad is not None and states.grad.abs().max() > 0
