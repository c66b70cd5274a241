"""Pruned prefill: later loops leave out what nothing depends on, and nothing shows it but the number of rows.

With 3 layers, a window of 4 and 3 loops, 10 tokens of each request go through the last loop, and 20 through the one
before; steps are of 64 tokens.
"""

from types import SimpleNamespace

import pytest
import torch
from engines import (
    BLOCK,
    LOOPS,
    PRUNED,
    as_prompts,
    engine,
    generated,
    greedy,
    kv_bytes_by_formula,
    layer_calls,
    logprobs_of,
    random_prompts,
    served,
    shared_beginnings,
)
from vllm import SamplingParams
from vllm.forward_context import get_forward_context, set_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

from serving_plt.vllm.carry import Carry, CarrySlice
from serving_plt.vllm.decoder import PLTModel
from serving_plt.vllm.model import PLTForCausalLM
from serving_plt.vllm.timed_engine import kv_bytes_per_token

LAYERS, WINDOW = 3, 4
ALONE = random_prompts((64, 50, 33, 21, 12, 7), seed=4)


@pytest.fixture(scope="module")
def unpruned_steps(folder, model):
    """What steps leave in an engine that does not prune, which is gone: a process has one at a time.

    Its steps end where those of pruned prompts do: nothing is kept inside a step.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CarrySlice, "get_kv_cache_spec", MambaBase.get_kv_cache_spec)
        with engine(folder) as llm:
            return recorded(llm)


@pytest.fixture(scope="module")
def shared_llm(folder, unpruned_steps):
    with engine(folder, **PRUNED) as llm:
        yield llm


@pytest.fixture
def llm(shared_llm):
    assert shared_llm.reset_prefix_cache()
    return shared_llm


@pytest.fixture
def rows(monkeypatch) -> list[tuple[int, int]]:
    """Of every call of a layer: loop and rows."""
    return layer_calls(monkeypatch, lambda loops, rows: (loops.start, rows))


def test_later_loops_run_the_rows_that_something_depends_on(llm, rows):
    """Of two requests, of which the second has fewer tokens in the step than some layers need."""
    served(llm, random_prompts((30, 15)), greedy(1))
    layers = [(0, [45] * 3), (1, [35, 32, 28]), (2, [20, 14, 8])]
    assert rows == [(loop, number) for loop, numbers in layers for number in numbers]


def test_greedy_tokens_are_those_of_generate(llm, model):
    """In one batch, in chunks, beside requests that decode; anew and from cached prefixes."""
    prompts = random_prompts()
    expected = generated(model, prompts)
    for _ in range(2):
        assert served(llm, prompts) == expected
    assert served(llm, prompts[::-1]) == expected[::-1]


def test_the_cache_of_a_request_is_counted(llm, model):
    assert kv_bytes_per_token(llm) == pytest.approx(kv_bytes_by_formula(model.config, pruned=True), rel=0.01)


def test_a_window_that_was_not_computed_is_not_found_again(llm, model):
    """By prompts with the same beginning, whose own step ended inside of another's."""
    found = 0
    for prompt in shared_beginnings():
        (output,) = llm.generate(as_prompts([prompt]), greedy(), use_tqdm=False)
        assert list(output.outputs[0].token_ids) == generated(model, [prompt])[0], len(prompt)
        found += output.num_cached_tokens
    assert found > 0


def test_several_answers_to_a_prompt(llm, model):
    (prompt,) = random_prompts((70,), seed=12)
    params = SamplingParams(temperature=1, n=3, max_tokens=6, ignore_eos=True, detokenize=False, logprobs=1)
    (output,) = llm.generate(as_prompts([prompt]), params, use_tqdm=False)
    answers = [list(each.token_ids) for each in output.outputs]
    for each, answer, expected in zip(output.outputs, answers, logprobs_of(model, [prompt] * 3, answers), strict=True):
        given = [entry[token].logprob for token, entry in zip(answer, each.logprobs, strict=True)]
        assert given == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("tunes", [False, True], ids=["measures", "tunes"])
def test_a_step_without_requests_runs_all_rows(tunes, llm, rows):
    """One that measures memory has no metadata, and one that tunes kernels those of attention, pruned or not."""
    settings, tokens = llm.llm_engine.vllm_config, 64
    layers = settings.compilation_config.static_forward_context
    kept = SimpleNamespace(kept=None)
    metadata = {name: kept if "own_attn" in name else None for name in layers if "carry" not in name}

    def run(model):
        arguments = {"num_tokens": tokens, "slot_mapping": {}}
        with torch.inference_mode(), set_forward_context(metadata if tunes else None, settings, **arguments):
            return model(torch.ones(tokens, dtype=torch.long), torch.arange(tokens))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Attention, "forward", lambda self, query, key, value: query)
        (states,) = llm.apply_model(run)
    assert states.shape == (tokens, 56)
    assert [call for call in rows if call[1] == tokens] == [
        (loop, tokens) for loop in range(LOOPS) for _ in range(LAYERS)
    ]


def test_what_a_step_leaves_is_that_of_an_unpruned_one(llm, unpruned_steps, rows):
    """Logits, the carry, and the keys and values of every window that later tokens can see."""
    steps = recorded(llm)
    assert {number for loop, number in rows if loop == 2} == {10, 7, 4}
    assert len(steps) == len(unpruned_steps) > 2 * len(ALONE)
    for step, other in zip(steps, unpruned_steps, strict=True):
        assert step.keys() == other.keys() and len(step) == 2 + (LOOPS - 1) * LAYERS
        for name in step:
            assert other[name].abs().max() > 0
            torch.testing.assert_close(step[name], other[name], rtol=1e-5, atol=1e-5, msg=name)


def recorded(llm) -> list[dict[str, torch.Tensor]]:
    """Of each step of each of `ALONE`, and of its first two tokens."""
    (model,) = llm.apply_model(lambda model: model)
    attentions = [each for layer in model.model.layers for each in layer.self_attn.own_attn.values()]
    slots: dict[tuple[str, int], torch.Tensor] = {}  # keys and values as they were written: kernels pack them
    steps: list[dict[str, torch.Tensor]] = []
    update, keep = CPUAttentionBackendImpl.do_kv_cache_update, Carry.keep
    forward, head = PLTModel.forward, PLTForCausalLM.compute_logits

    def writing(self, layer, key, value, kv_cache, slot_mapping):
        rows = torch.stack((key, value), dim=1).clone()
        slots.update({(layer.layer_name, slot): row for slot, row in zip(slot_mapping.tolist(), rows, strict=True)})
        update(self, layer, key, value, kv_cache, slot_mapping)

    def keeping(self, states, slots):
        steps.append({"carry": states.clone()})
        keep(self, states, slots)

    def running(self, *arguments):
        states = forward(self, *arguments)
        for each in attentions:
            metadata = get_forward_context().attn_metadata[each.layer_name]
            length = int(metadata.seq_lens[0])
            seen = range(max(0, length - WINDOW + 1), length)  # by the next token
            places = [int(metadata.block_table[0, place // BLOCK]) * BLOCK + place % BLOCK for place in seen]
            steps[-1][each.layer_name] = torch.stack([slots[each.layer_name, place] for place in places])
        return states

    def reading(self, hidden_states):
        logits = head(self, hidden_states)
        steps[-1]["logits"] = logits.clone()
        return logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CPUAttentionBackendImpl, "do_kv_cache_update", writing)
        patch.setattr(Carry, "keep", keeping)
        patch.setattr(PLTModel, "forward", running)
        patch.setattr(PLTForCausalLM, "compute_logits", reading)
        for prompt in ALONE:
            served(llm, [prompt], greedy(2))
    return steps
