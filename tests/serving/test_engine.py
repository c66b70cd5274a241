"""What an engine does to requests leaves their answers as they are; and what would be wrong shows."""

import pytest
import torch
from engines import (
    BLOCK,
    LOOPS,
    as_prompts,
    engine,
    generated,
    greedy,
    layer_calls,
    logprobs_of,
    random_prompts,
    served,
)
from recorded import NoHostData
from vllm import SamplingParams
from vllm.forward_context import set_forward_context

from serving_plt.vllm.attention import PLTAttention
from serving_plt.vllm.carry import Carry
from serving_plt.vllm.decoder import PLTModel

LAYERS = 3


@pytest.fixture(scope="module")
def shared_llm(folder, model):
    with engine(folder) as llm:
        yield llm


@pytest.fixture
def llm(shared_llm):
    """With nothing cached of earlier tests."""
    assert shared_llm.reset_prefix_cache()
    return shared_llm


@pytest.fixture
def calls(monkeypatch):
    """Of every layer: loops and rows."""
    return layer_calls(monkeypatch, lambda loops, rows: (len(loops), rows))


def test_a_step_that_only_decodes_calls_each_layer_once(llm, calls):
    """And one that prefills calls it once a loop."""
    served(llm, random_prompts((5, 9, 7)), greedy(4))
    assert calls[: LOOPS * LAYERS] == [(1, 21)] * LOOPS * LAYERS
    assert calls[LOOPS * LAYERS :] == [(LOOPS, LOOPS * 3)] * 3 * LAYERS


@pytest.mark.parametrize(
    "tunes, most, rows", [(False, 16, 16), (False, 1, 2), (True, 16, 0)], ids=["measures", "of one request", "tunes"]
)
def test_a_step_without_requests_has_the_rows_of_real_ones(tunes, most, rows, llm, calls, monkeypatch):
    """The step in which vLLM measures memory has the rows of the largest that decodes, too; one that tunes kernels has
    metadata for attention, all tokens of it, and none for the carry.
    """
    settings, tokens = llm.llm_engine.vllm_config, 64
    layers = settings.compilation_config.static_forward_context
    metadata = {name: None for name in layers if not name.endswith(".carry")} if tunes else None

    def run(model):
        monkeypatch.setattr(model.model, "max_num_seqs", most)
        with torch.inference_mode(), set_forward_context(metadata, settings, num_tokens=tokens, slot_mapping={}):
            return model(torch.ones(tokens, dtype=torch.long), torch.arange(tokens))

    (states,) = llm.apply_model(run)
    assert states.shape == (tokens, 56)
    assert calls[: LOOPS * LAYERS] == [(1, tokens)] * LOOPS * LAYERS
    assert calls[LOOPS * LAYERS :] == ([(LOOPS, LOOPS * rows)] * LAYERS if rows else [])


def test_a_step_makes_no_tensor_of_python_numbers(llm, model, monkeypatch):
    """Of either way; which a GPU would wait for, and could not have in a graph."""
    forward, operators = PLTModel.forward, set()

    def watched(self, inputs_embeds, positions):
        with NoHostData() as seen:
            states = forward(self, inputs_embeds, positions)
        operators.update(seen.names)
        return states

    monkeypatch.setattr(PLTModel, "forward", watched)
    prompts = random_prompts((70, 5, 2))
    assert served(llm, prompts) == generated(model, prompts)
    assert {"vllm.unified_attention_with_output.default", "aten.index_put_.default"} <= operators


def test_answers_after_a_cached_prefix_are_those_without(llm, model):
    (text,) = random_prompts((4 * BLOCK + 2,))
    for boundary in range(BLOCK, len(text), BLOCK):  # the carry is kept where a step ends
        served(llm, [text[: boundary + 1]])
    hits = set()
    for kept in [length + more for length in (BLOCK, 2 * BLOCK, 3 * BLOCK, 4 * BLOCK) for more in (-1, 0, 1)]:
        prompt = text[:kept] + [9, 8, 7]
        (output,) = llm.generate(as_prompts([prompt]), greedy(), use_tqdm=False)
        assert list(output.outputs[0].token_ids) == generated(model, [prompt])[0], kept
        assert output.num_cached_tokens == kept // BLOCK * BLOCK
        hits.add(output.num_cached_tokens)
    assert hits == {0, BLOCK, 2 * BLOCK, 3 * BLOCK, 4 * BLOCK}


def test_a_prompt_is_one_step_and_its_last_full_block_is_found_again(llm, model, calls):
    (text,) = random_prompts((BLOCK + 18,), seed=4)
    served(llm, [text], greedy(1))
    assert calls == [(1, len(text))] * LOOPS * LAYERS
    check_hit(llm, model, text, is_right=True)


def test_a_prompt_whose_carry_is_kept_at_its_end_alone_shows(llm, model, monkeypatch):
    monkeypatch.setattr(Carry, "places", lambda self: [each[: len(self.ends()) - 1] for each in places(self)])
    (text,) = random_prompts((BLOCK + 18,), seed=4)
    served(llm, [text], greedy(1))
    check_hit(llm, model, text, is_right=False)


def check_hit(llm, model, text, is_right: bool) -> None:
    prompt = text[: BLOCK + 5] + [9, 8, 7]
    (output,) = llm.generate(as_prompts([prompt]), greedy(), use_tqdm=False)
    assert output.num_cached_tokens == BLOCK
    assert (list(output.outputs[0].token_ids) == generated(model, [prompt])[0]) is is_right


def test_several_samples_of_a_prompt_are_drawn_from_the_models_distribution(llm, model):
    prompts = random_prompts((6, 40))
    # without a seed, because vLLM's generators of a request do not work on a CPU
    params = SamplingParams(temperature=1, n=4, max_tokens=8, ignore_eos=True, detokenize=False, logprobs=1)
    for prompt, output in zip(prompts, llm.generate(as_prompts(prompts), params, use_tqdm=False), strict=True):
        samples = [list(each.token_ids) for each in output.outputs]
        assert len({tuple(sample) for sample in samples}) == 4
        expected = logprobs_of(model, [prompt] * 4, samples)
        for each, sample, row in zip(output.outputs, samples, expected, strict=True):
            given = [entry[token].logprob for token, entry in zip(sample, each.logprobs, strict=True)]
            assert given == pytest.approx(row, abs=1e-3)


def test_requests_come_in_the_slots_of_aborted_ones(llm, model):
    core, prompts = llm.llm_engine, random_prompts((20, 33, 50, 7, 3, 64), seed=5)
    for number, prompt in enumerate(as_prompts(prompts)):
        core.add_request(f"gone-{number}", prompt, greedy(60))
    for _ in range(5):
        core.step()
    core.abort_request([f"gone-{number}" for number in range(len(prompts))])
    assert not core.has_unfinished_requests()
    others = random_prompts((1, 2, 18, 5, 40, 33), seed=6)
    assert served(llm, others) == generated(model, others)


def zeroed(self: Carry) -> torch.Tensor:
    return torch.zeros_like(of_requests(self))


def of_the_neighbour(self: Carry) -> torch.Tensor:
    return of_requests(self).roll(1, dims=0)


def own_instead(self: PLTAttention, shared, own, query, layer_input):
    return own


of_requests, places = Carry.of_requests, Carry.places
MISTAKES = {
    "a carry of zeros": (Carry, "of_requests", zeroed),
    "the neighbour's carry": (Carry, "of_requests", of_the_neighbour),
    "its own window instead of the shared KV": (PLTAttention, "mix", own_instead),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_shows(mistake, llm, model, monkeypatch):
    monkeypatch.setattr(*MISTAKES[mistake])
    check_that_answers_differ(llm, model)


@pytest.mark.parametrize("more", [-1, 1])
def test_a_window_off_by_one_shows(more, llm, model, monkeypatch):
    for layer in layers_of(llm):
        for attention in layer.self_attn.own_attn.values():
            monkeypatch.setattr(attention.impl, "sliding_window", attention.impl.sliding_window + more)
    check_that_answers_differ(llm, model)


def layers_of(llm) -> torch.nn.ModuleList:
    (layers,) = llm.apply_model(lambda model: model.model.layers)
    return layers


def check_that_answers_differ(llm, model) -> None:
    prompts = random_prompts((20, 33, 50, 64, 70), seed=8)
    right = zip(served(llm, prompts), generated(model, prompts), strict=True)
    assert sum(given == expected for given, expected in right) <= 1
