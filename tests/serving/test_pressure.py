"""Too little memory for all requests, and a thousand of them that come and go: every answer is that of `generate`."""

import random
import resource
import time

import pytest
import torch
from engines import PRUNED, as_prompts, engine, generated, greedy, random_prompts, served

REQUESTS, MINUTES = 500, 5  # in each of two engines
NUM_KV_BYTES = 2 << 20  # for a few of the requests at a time


@pytest.fixture(scope="module", params=[{}, PRUNED], ids=["whole prompts", "pruned prompts"])
def llm(request, folder, model):
    with engine(folder, kv_cache_memory_bytes=NUM_KV_BYTES, **request.param) as llm:
        yield llm


def metric(llm, name: str) -> float:
    return next(metric.value for metric in llm.get_metrics() if metric.name == f"vllm:{name}")


def test_preempted_requests_end_with_the_same_tokens(llm, model):
    prompts = random_prompts((40,) * 12, seed=7)
    before = metric(llm, "num_preemptions")
    assert served(llm, prompts, greedy(100)) == generated(model, prompts, 100)
    assert metric(llm, "num_preemptions") > before


@torch.no_grad()
def is_what_generate_says(model, prompt: list[int], tokens: list[int]) -> bool:
    """Whether each token is the likeliest after those before it."""
    return model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].argmax(-1).tolist() == tokens


def test_a_thousand_requests_that_come_and_go(llm, model):
    """At random times, of random lengths, some with a common beginning, some aborted; bounded in time."""
    draw, core, started = random.Random(1), llm.llm_engine, time.monotonic()
    (common,) = random_prompts((100,), seed=9)
    preemptions, waiting, running, finished, memory = metric(llm, "num_preemptions"), REQUESTS, {}, 0, []
    while waiting or running:
        assert time.monotonic() - started < 60 * MINUTES
        while waiting and (draw.random() < 0.6 or not running):
            beginning = common[: draw.choice((0, 0, 32, 65))]
            prompt = beginning + [draw.randrange(3, 61) for _ in range(draw.randint(1, 60))]
            core.add_request(str(waiting), as_prompts([prompt])[0], greedy(draw.randint(1, 40)))
            running[str(waiting)] = prompt
            waiting -= 1
        for output in core.step():
            if output.finished:
                tokens = list(output.outputs[0].token_ids)
                assert is_what_generate_says(model, running.pop(output.request_id), tokens), output.request_id
                finished += 1
        if running and draw.random() < 0.15:
            gone = draw.choice(sorted(running))
            core.abort_request([gone])
            del running[gone]
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert REQUESTS / 2 < finished < REQUESTS
    assert metric(llm, "num_preemptions") > preemptions
    assert llm.reset_prefix_cache()  # which it refuses while a page is in use
    assert memory[-1] < 1.05 * memory[len(memory) // 3]  # kB
