"""Drafts that are looked up in the text before (n-grams): tokens stay those of `generate`, whatever is accepted."""

import sys

import pytest
from engines import (
    ADAPTER,
    OPTIONS,
    as_prompts,
    engine,
    generated,
    greedy,
    kv_bytes_by_formula,
    layer_calls,
    logprobs_of,
    random_prompts,
    save_tiny,
    served,
    served_with_logprobs,
)

from serving_plt.vllm.gpu_checks.served_tokens import DRAFTS
from serving_plt.vllm.timed_engine import kv_bytes_per_token

MOST = DRAFTS["num_speculative_tokens"]  # in a step
WITH_DRAFTS = {"speculative_config": DRAFTS, "enable_prefix_caching": False}
MODELS = {
    "plt-3": ({"num_loops": 3}, {}),
    "window of 1, pruned prompts": ({"sliding_window": 1}, {"kv_sharing_fast_prefill": True}),
    "plt-3, pruned prompts": ({"num_loops": 3}, {"kv_sharing_fast_prefill": True}),
    "adapter": (ADAPTER | {"num_loops": 3}, {}),
    "adapter, loops in turn": (ADAPTER | {"num_loops": 3}, {"hf_overrides": {"one_pass": False}}),
}


@pytest.fixture(autouse=True)
def what_drafts_leave():
    """An engine that starts looks at all that modules hold, and vLLM 0.32 fails at one that comes with drafts."""
    yield
    sys.modules.pop("llvmlite.binding.ffi", None)


def repeating(periods=(2, 3, 5, 7, 11, 40), length: int = 90) -> list[list[int]]:
    """Prompts that say a beginning again and again, so that drafts are found in them."""
    return [
        (prompt * length)[: length + period]
        for prompt, period in zip(random_prompts(periods, 5), periods, strict=True)
    ]


def accepted(llm) -> list[int]:
    """How many first, second, ... drafts of a step were accepted."""
    return next(each.values for each in llm.get_metrics() if each.name.endswith("num_accepted_tokens_per_pos"))


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_those_of_generate(name, tmp_path, monkeypatch):
    """Beside requests without drafts, prompts in chunks, and requests that were aborted or preempted."""
    fields, options = MODELS[name]
    model, prompts = save_tiny(tmp_path, **fields), random_prompts() + repeating()
    calls = layer_calls(monkeypatch, lambda loops, rows: (len(loops), rows))
    with engine(tmp_path, kv_cache_memory_bytes=2 << 20, **WITH_DRAFTS, **options) as llm:
        expected = kv_bytes_by_formula(model.config, prefix_caching=False, drafts=MOST)
        assert kv_bytes_per_token(llm) == pytest.approx(expected, rel=0.02)
        calls.clear()

        tokens, logprobs = served_with_logprobs(llm, prompts)
        assert tokens == generated(model, prompts)
        assert sum(logprobs, []) == pytest.approx(sum(logprobs_of(model, prompts, tokens), []), abs=1e-3)
        in_one_pass = any(loops > 1 for loops, _ in calls)
        assert in_one_pass == ("hf_overrides" not in options)  # in steps without drafts

        llm.llm_engine.add_request("gone", as_prompts(prompts[-1:])[0], greedy(100))
        for _ in range(6):
            llm.llm_engine.step()
        llm.llm_engine.abort_request(["gone"])
        prompts = repeating((4,) * 12, 40) + repeating()
        assert served(llm, prompts, greedy(80)) == generated(model, prompts, 80)
        found = {each.name: each for each in llm.get_metrics()}
        drafts, preemptions = found["vllm:spec_decode_num_draft_tokens"], found["vllm:num_preemptions"]
        assert min(accepted(llm)) > 0 and sum(accepted(llm)) < drafts.value and preemptions.value > 0


def test_a_request_that_was_preempted_computes_its_own_tokens_again(tmp_path):
    """The last few of them in a step of their own, which vLLM takes for a step with drafts."""
    model, prompts = save_tiny(tmp_path, num_loops=3), random_prompts(range(20, 32), seed=5)
    full, last = OPTIONS["max_num_batched_tokens"], range(2, 2 + MOST)
    expected, found, times = generated(model, prompts, 80), [], 0
    with engine(tmp_path, **WITH_DRAFTS) as llm:
        core = llm.llm_engine
        for number, prompt in enumerate(prompts):
            core.add_request(str(number), as_prompts([prompt])[0], greedy(80))
            tokens, before = [], times
            while len(tokens) < 80:
                for output in core.step():
                    tokens = output.outputs[0].token_ids
                if times == before and len(prompt) + len(tokens) - full in last:
                    assert llm.reset_prefix_cache(reset_running_requests=True)
                    times += 1
            found.append(list(tokens))
        assert found == expected and times > len(prompts) / 2
