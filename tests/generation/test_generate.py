"""`generate()` in every mode gives the tokens of plain uncached generation."""

import pytest
import torch
from tiny import ABLATION_ROWS, tiny_ids, tiny_model
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation.streamers import BaseStreamer

from modeling_plt import PLTCache

FAMILIES = ("dense", "experts", "core")

READ_BY_THE_HEAD = {"num_coda_layers": 0}  # earlier loops; a coda reads them out in one forward of all tokens only

# where it is given no mask, as by assisted decoding, `generate` takes tokens that happen to be 0 for pads
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "suppress_tokens": [0]}


def model_in_double(**overrides):
    """Float64, so that no two logits are close enough for rounding to choose between them."""
    return tiny_model(**overrides).double()


def generate(model, input_ids, max_new_tokens=24, **kwargs):
    defaults = GREEDY | {"attention_mask": torch.ones_like(input_ids)}
    return model.generate(input_ids, max_new_tokens=max_new_tokens, **(defaults | kwargs))


@pytest.mark.parametrize("row", ABLATION_ROWS)
def test_cached_greedy_equals_uncached_over_hundreds_of_tokens(row):
    model = model_in_double(num_loops=3, **ABLATION_ROWS[row])
    prompt, length = tiny_ids(2, 5), 300 if row == "gated_window" else 100
    cached = generate(model, prompt, length)
    assert cached.shape == (2, 5 + length)
    assert torch.equal(cached, generate(model, prompt, length, use_cache=False))


def test_uncached_greedy_is_the_argmax_of_forward():
    model, tokens = model_in_double(num_loops=3), tiny_ids(1, 5)
    generated = generate(model, tokens, use_cache=False)
    for _ in range(24):
        with torch.no_grad():
            logits = model(tokens, use_cache=False).logits[:, -1]
        logits[:, 0] = -torch.inf
        tokens = torch.cat((tokens, logits.argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(generated, tokens)


@pytest.mark.parametrize("row", ABLATION_ROWS)
@pytest.mark.parametrize("mode", ["greedy", "beams"])
def test_left_padded_rows_generate_what_they_generate_alone(mode, row):
    model = model_in_double(num_loops=3, **ABLATION_ROWS[row])
    kwargs = {"num_beams": 3} if mode == "beams" else {}
    prompts = [tiny_ids(1, length, seed=length) for length in (9, 1, 4)]
    padded = torch.cat([torch.nn.functional.pad(prompt, (9 - prompt.shape[1], 0)) for prompt in prompts])
    mask = torch.cat(
        [torch.nn.functional.pad(torch.ones_like(prompt), (9 - prompt.shape[1], 0)) for prompt in prompts]
    )
    together = generate(model, padded, attention_mask=mask, **kwargs)[:, 9:]
    for tokens, prompt in zip(together, prompts, strict=True):
        assert torch.equal(tokens[None], generate(model, prompt, **kwargs)[:, prompt.shape[1] :])


@pytest.mark.parametrize(
    "kwargs",
    [
        {"do_sample": True},
        {"do_sample": True, "top_k": 5, "num_return_sequences": 3},
        {"num_beams": 4},
        {"num_beams": 4, "num_return_sequences": 3},
        {"num_beams": 3, "do_sample": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("overrides", [{}, {"loop_shift": False}], ids=str)
def test_sampling_and_beams_with_a_cache_equal_those_without(overrides, kwargs):
    model, prompt = model_in_double(num_loops=3, **overrides), tiny_ids(2, 6)
    outputs = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        outputs.append(generate(model, prompt, use_cache=use_cache, **kwargs))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("row", ABLATION_ROWS)
@pytest.mark.parametrize("chunk_size", [1, 4, 7, 50])
def test_chunked_prefill_generates_the_same(chunk_size, row):
    model, prompt = model_in_double(num_loops=3, **ABLATION_ROWS[row]), tiny_ids(2, 17)
    assert torch.equal(generate(model, prompt, prefill_chunk_size=chunk_size), generate(model, prompt))


def test_chunked_prefill_of_a_left_padded_batch_generates_the_same():
    model, prompt = model_in_double(num_loops=3), tiny_ids(2, 17)
    mask = torch.ones_like(prompt)
    mask[0, :6] = 0
    expected = generate(model, prompt, attention_mask=mask)
    assert torch.equal(generate(model, prompt, attention_mask=mask, prefill_chunk_size=4), expected)


@pytest.mark.parametrize("row", ABLATION_ROWS)
@pytest.mark.parametrize("do_sample", [False, True])
def test_prompt_lookup_generates_the_same(do_sample, row):
    model = model_in_double(num_loops=3, **ABLATION_ROWS[row])
    prompt = tiny_ids(1, 6).repeat(1, 3)
    kwargs = {"do_sample": do_sample, "top_k": 1}
    assert torch.equal(generate(model, prompt, 60, prompt_lookup_num_tokens=4, **kwargs), generate(model, prompt, 60))


def llama_in_double():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
    return LlamaForCausalLM(config).double().eval()


@pytest.mark.parametrize("target", ["plt", "llama"])
@pytest.mark.parametrize("assistant", ["same", "plt", "llama"])
def test_assisted_decoding_generates_the_same(assistant, target):
    target = llama_in_double() if target == "llama" else model_in_double(num_loops=3)
    assistant = {"same": target, "llama": llama_in_double(), "plt": model_in_double(seed=3, num_loops=2)}[assistant]
    prompt = tiny_ids(1, 6)
    expected = generate(target, prompt, 60)
    assert torch.equal(generate(target, prompt, 60, assistant_model=assistant), expected)


@pytest.mark.parametrize("row", ABLATION_ROWS)
def test_an_assistant_that_is_often_wrong_generates_the_same(row):
    """A slightly disturbed copy agrees on some tokens and not on others, so drafts are taken back in part."""
    target = model_in_double(num_loops=3, **ABLATION_ROWS[row])
    assistant = model_in_double(num_loops=3, **ABLATION_ROWS[row])
    with torch.no_grad():
        assistant.lm_head.weight.add_(0.15 * torch.randn_like(assistant.lm_head.weight))
    assistant.generation_config.num_assistant_tokens = 6
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    prompt = tiny_ids(1, 6)
    assert torch.equal(generate(target, prompt, 80, assistant_model=assistant), generate(target, prompt, 80))


def test_a_cache_that_prompt_lookup_returns_no_longer_records():
    model, prompt = model_in_double(num_loops=3), tiny_ids(1, 6)
    settings = {"return_dict_in_generate": True}
    first = generate(model, prompt, 10, prompt_lookup_num_tokens=3, **settings)
    second = generate(model, first.sequences, 40, past_key_values=first.past_key_values, **settings)
    fresh = generate(model, first.sequences, 40, **settings)
    assert torch.equal(second.sequences, fresh.sequences)
    assert second.past_key_values.nbytes == fresh.past_key_values.nbytes


def test_early_exit_assistance_generates_the_same():
    model, prompt = model_in_double(num_loops=3, num_hidden_layers=3), tiny_ids(1, 6)
    num_layers = model.config.num_hidden_layers
    if len(model.config.stages) > 1:
        with pytest.raises(NotImplementedError, match="got `num_prelude_layers=1` and `num_coda_layers=1`"):
            generate(model, prompt, 60, assistant_early_exit=1)
    else:
        assert torch.equal(generate(model, prompt, 60, assistant_early_exit=1), generate(model, prompt, 60))
    assert model.config.num_hidden_layers == num_layers


def test_generating_from_embeddings_equals_generating_from_ids():
    model, prompt = model_in_double(num_loops=3), tiny_ids(2, 6)
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(prompt)
    from_embeddings = model.generate(inputs_embeds=embeddings, max_new_tokens=24, **GREEDY)
    assert torch.equal(from_embeddings, generate(model, prompt)[:, 6:])


@pytest.mark.parametrize("row", ABLATION_ROWS)
def test_generation_continues_from_a_returned_cache(row):
    model, prompt = model_in_double(num_loops=3, **ABLATION_ROWS[row]), tiny_ids(2, 6)
    expected = generate(model, prompt, 40)
    first = generate(model, prompt, 13, return_dict_in_generate=True)
    assert isinstance(first.past_key_values, PLTCache)
    assert torch.equal(generate(model, first.sequences, 27, past_key_values=first.past_key_values), expected)


def test_generation_continues_a_conversation_from_its_cache():
    model, prompt = model_in_double(num_loops=3), tiny_ids(1, 6)
    first = generate(model, prompt, 10, return_dict_in_generate=True)
    longer = torch.cat((first.sequences, tiny_ids(1, 7, seed=9)), dim=1)
    continued = generate(model, longer, past_key_values=first.past_key_values)
    assert torch.equal(continued, generate(model, longer))


def test_a_cache_may_be_passed_in_empty():
    model, prompt = model_in_double(num_loops=3), tiny_ids(2, 6)
    cache = PLTCache(model.config)
    assert torch.equal(generate(model, prompt, past_key_values=cache), generate(model, prompt))
    assert cache.get_seq_length() == 29


class Collect(BaseStreamer):
    def __init__(self):
        self.tokens, self.ended = [], False

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.ended = True


@pytest.mark.parametrize("kwargs", [{}, {"prompt_lookup_num_tokens": 3}], ids=str)
def test_streamers_see_every_token_in_order(kwargs):
    model, prompt, streamer = model_in_double(num_loops=3), tiny_ids(1, 6), Collect()
    tokens = generate(model, prompt, streamer=streamer, **kwargs)
    assert streamer.tokens == tokens[0].tolist()
    assert streamer.ended


def test_scores_and_hidden_states_of_generation_have_the_usual_shapes():
    model, prompt = tiny_model(num_loops=3, attn_implementation="eager"), tiny_ids(2, 6)
    output = generate(
        model,
        prompt,
        4,
        return_dict_in_generate=True,
        output_scores=True,
        output_hidden_states=True,
        output_attentions=True,
    )
    assert [score.shape for score in output.scores] == [(2, 61)] * 4
    num_layers = model.config.num_hidden_layers
    assert [len(step) for step in output.hidden_states] == [num_layers + 1] * 4
    assert [tuple(step[-1].shape) for step in output.hidden_states] == [(2, 6, 32)] + [(2, 1, 32)] * 3
    assert [len(step) for step in output.attentions] == [num_layers] * 4
    assert [tuple(step[-1].shape) for step in output.attentions] == [(2, 4, 6, 6)] + [(2, 4, 1, n) for n in (7, 8, 9)]


def test_stopping_at_the_end_token_pads_the_finished_row():
    model, prompt = model_in_double(num_loops=3), tiny_ids(2, 6)
    free = generate(model, prompt)
    end = free[0, 12].item()
    stopped = generate(model, prompt, eos_token_id=end)
    first_end = free[0].tolist().index(end, 6)
    assert torch.equal(stopped[0, : first_end + 1], free[0, : first_end + 1])
    assert (stopped[0, first_end + 1 :] == 0).all()


def test_generation_config_of_the_model_is_used():
    model = model_in_double(num_loops=3)
    model.generation_config = GenerationConfig(max_new_tokens=3, **GREEDY)
    assert model.generate(tiny_ids(1, 6)).shape == (1, 9)


@pytest.mark.parametrize(
    "how", [{}, {"cache_implementation": "static"}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}], ids=str
)
def test_a_model_in_training_with_checkpointing_generates(how):
    """As the callbacks of trainers do that print samples."""
    model, prompt = model_in_double(num_loops=3), tiny_ids(1, 3).repeat(1, 3)
    expected = generate(model, prompt, 6, **how)
    model.train()
    model.gradient_checkpointing_enable()
    calls = []
    model.model.layers[0].register_forward_pre_hook(lambda _, args: calls.append(args[0].shape[1]))
    assert torch.equal(generate(model, prompt, 6, **how), expected)
    assert calls[-1] <= 3 * 3  # the loops of one new token, or of its drafts, not the whole sequence again
    model(prompt, labels=prompt).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"num_return_sequences": 2, "do_sample": True},
        {"num_beams": 2},
    ],
    ids=str,
)
@torch.no_grad()
def test_generation_returns_every_loops_states(how):
    model, prompt = model_in_double(num_loops=3, **READ_BY_THE_HEAD), tiny_ids(2, 5)
    settings = {"return_dict_in_generate": True, "output_hidden_states": True, "output_loop_hidden_states": True}
    output = generate(model, prompt, 6, **settings, **how)
    steps = output.loop_hidden_states
    assert len(steps) == len(output.hidden_states) == 6
    for states, last_loop in zip(steps, output.hidden_states, strict=True):
        assert len(states) == 3
        torch.testing.assert_close(states[-1], last_loop[-1])
    if "num_beams" in how:
        return  # which beam a row of a step belongs to is told by `beam_indices`; the last loop's states are compared
    forward = model(output.sequences, use_cache=False, output_loop_hidden_states=True).loop_hidden_states
    for number, states in enumerate(steps):
        for found, expected in zip(states, forward, strict=True):
            stop = 5 + number
            torch.testing.assert_close(found, expected[:, stop - found.shape[1] : stop])


def test_states_of_loops_that_cannot_be_returned_are_refused():
    model, prompt = model_in_double(num_loops=2), tiny_ids(1, 5)
    settings = {"return_dict_in_generate": True, "output_loop_hidden_states": True}
    with pytest.raises(ValueError, match="needs `return_dict_in_generate=True`"):
        generate(model, prompt, 2, output_loop_hidden_states=True)
    with pytest.raises(NotImplementedError, match="not supported with drafts"):
        generate(model, prompt, 2, prompt_lookup_num_tokens=2, **settings)
    with pytest.raises(NotImplementedError, match="not supported with `custom_generate`"):
        generate(model, prompt, 2, custom_generate=lambda model, input_ids, **kwargs: input_ids, **settings)
    with pytest.raises(ValueError, match="not used by the model"):
        generate(model, prompt, 2, output_loop_hidden=True)


@pytest.mark.parametrize("where", ["positional", "keyword", "of the model"])
@torch.no_grad()
def test_loop_states_are_returned_wherever_the_dictionary_was_asked_for(where):
    model, prompt = model_in_double(num_loops=2, **READ_BY_THE_HEAD), tiny_ids(1, 5)
    config = GenerationConfig(max_new_tokens=2, **GREEDY)
    (model.generation_config if where == "of the model" else config).return_dict_in_generate = True
    args, kwargs = ((config,), {}) if where == "positional" else ((), {"generation_config": config})
    output = model.generate(prompt, *args, **kwargs, output_loop_hidden_states=True)
    assert len(output.loop_hidden_states) == 2


@torch.no_grad()
def test_loop_states_of_a_chunked_prompt_are_those_of_its_last_chunk():
    model, prompt = model_in_double(num_loops=2, **READ_BY_THE_HEAD), tiny_ids(1, 5)
    settings = {"return_dict_in_generate": True, "output_loop_hidden_states": True}
    whole, chunked = (
        generate(model, prompt, 1, **settings, **how).loop_hidden_states[0] for how in ({}, {"prefill_chunk_size": 3})
    )
    for all_of_them, last_two in zip(whole, chunked, strict=True):
        torch.testing.assert_close(last_two, all_of_them[:, 3:])
