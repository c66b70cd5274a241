# SPDX-License-Identifier: Apache-2.0
"""Whether a server is as it was before a load: it says the same, and holds nothing of a request that is gone."""

import json
import re
import time
import uuid
from urllib.request import Request

from serving_plt.vllm.server import DIRECTLY, NAME, Server

from .plan import Plan

PATIENCE = 60  # seconds until a server must have ended all requests whose clients are gone
NEW = 16  # tokens that are compared
WORKING = ("vllm:num_requests_running", "vllm:num_requests_waiting")
PAGES = "vllm:kv_cache_usage_perc"


class UnsoundError(RuntimeError):
    """A server is not as it was before a load."""


def metric(server: Server, name: str) -> float:
    """The sum of a metric's lines."""
    found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", server.page("/metrics"), flags=re.MULTILINE)
    if not found:
        raise UnsoundError(f"The server's page must have the metric `{name}`, got none.")
    return sum(map(float, found))


def said(server: Server, plan: Plan) -> list[list[int]]:
    """The tokens that a server says greedily to a few prompts, each alone.

    A salt of its own keeps each from what is cached of earlier ones: it is computed again, as it was before.
    """
    answers = []
    for length in (1, plan.prompt // 2 + 1, plan.prompt):
        prompt = [(7 * place + length) % 251 for place in range(length)]
        asked = {"model": NAME, "prompt": prompt, "max_tokens": NEW, "temperature": 0, "ignore_eos": True}
        asked |= {"return_token_ids": True, "cache_salt": uuid.uuid4().hex}
        request = Request(
            f"{server.address}/v1/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
        )
        with DIRECTLY.open(request) as answer:
            answers.append(json.load(answer)["choices"][0]["token_ids"])
    return answers


def check(server: Server, plan: Plan, before: list[list[int]]) -> None:
    """Wait for the end of all requests, ask again what was asked before, and look for what is still held.

    Raises:
        UnsoundError: a request does not end, a token is another one, or a page of the cache is not free.
    """
    end = time.monotonic() + PATIENCE
    while working := sum(metric(server, name) for name in WORKING):
        if time.monotonic() > end:
            raise UnsoundError(
                f"All clients have gone, so no request must be there after {PATIENCE} s, got {working:g}."
            )
        time.sleep(0.2)
    after = said(server, plan)
    if after != before:
        raise UnsoundError(f"The tokens after a load must be those before it, {before}, got {after}.")
    if held := metric(server, PAGES):  # of the last step, which was one of these answers
        raise UnsoundError(f"No page of the cache must be held without a request, got {held:.2%} of them.")
