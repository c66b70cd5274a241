# SPDX-License-Identifier: Apache-2.0
"""What clients see of a server: `vllm bench serve`, and beside it some that leave before their answers end."""

import contextlib
import http.client
import io
import json
import math
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vllm.benchmarks.serve import add_cli_args
from vllm.benchmarks.serve import main as run_bench
from vllm.utils.argparse_utils import FlexibleArgumentParser

from serving_plt.vllm.server import NAME, Server

from .plan import Plan
from .served import TOGETHER, Served
from .soundness import UnsoundError

FIGURES = {  # of vLLM's report
    "completed": "completed",
    "failed": "failed",
    "seconds": "duration",
    "requests/s": "request_throughput",
    "tokens/s": "output_throughput",
    **{
        f"{name} p{percentile}, ms": f"p{percentile}_{key}_ms"
        for name, key in (("first token", "ttft"), ("between tokens", "itl"), ("per token", "tpot"))
        for percentile in (50, 99)
    },
}


def bench(served: Served, plan: Plan, rate: float, requests: int, seed: int) -> dict[str, float]:
    """`FIGURES` of so many requests that come at random times, by `vllm bench serve` in this process.

    vLLM's own command is another way to the same function, and does not run in the package for CPUs.
    """
    options: list[Any] = ["--backend", "vllm", "--base-url", served.server.address, "--model", NAME]
    options += ["--tokenizer", served.model]
    options += ["--dataset-name", "random", "--random-input-len", plan.prompt, "--random-output-len", plan.tokens]
    options += ["--random-range-ratio", 0.5, "--num-prompts", requests, "--request-rate", rate]
    options += ["--seed", seed, "--ignore-eos", "--temperature", 0, "--disable-tqdm"]
    options += ["--percentile-metrics", "ttft,itl,tpot", "--metric-percentiles", "50,99"]
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    with contextlib.redirect_stdout(io.StringIO()):  # a table of the same figures
        result = run_bench(parser.parse_args([*map(str, options)]))
    return {name: result[key] for name, key in FIGURES.items()}


def warm_up(served: Served, plan: Plan) -> float:
    """The first requests of a kind take longer, and the first that is sampled minutes where vLLM compiles for it.

    Returns:
        requests a second of the last ones, all of which come at once.
    """
    leave_early(served.server, [1, 2, 3], plan, parts=5)
    requests = [bench(served, plan, math.inf, TOGETHER, seed) for seed in range(2)]
    return requests[-1]["requests/s"]


@contextlib.contextmanager
def leaving(server: Server, plan: Plan, rate: float, seed: int) -> Iterator[list[int]]:
    """Clients that come at random times, as many a second as `rate`, and leave after a few parts of the answer.

    Gives:
        how many parts each of them read.

    Raises:
        UnsoundError: one of them was refused; at the end.
    """
    draw, ended, read = random.Random(seed), threading.Event(), []

    def come() -> None:
        while rate and not ended.wait(draw.expovariate(rate)):
            read.append(leave_early(server, draw.choices(range(10), k=plan.prompt), plan, draw.randrange(6)))

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(come)
        try:
            yield read
        finally:
            ended.set()
        coming.result()


def leave_early(server: Server, prompt: list[int], plan: Plan, parts: int) -> int:
    """Ask for the longest answer there can be, and hang up after so many parts of it; none may have come yet.

    Raises:
        UnsoundError: the server refuses.
    """
    connection = http.client.HTTPConnection(server.address.removeprefix("http://"))
    asked = {"model": NAME, "prompt": prompt, "max_tokens": plan.longest - len(prompt), "stream": True}
    body = json.dumps(asked | {"ignore_eos": True})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    if parts:
        answer = connection.getresponse()
        if answer.status != http.HTTPStatus.OK:
            raise UnsoundError(f"The server must answer, got status {answer.status}: {answer.read().decode()}")
        for _ in range(2 * parts):  # an empty line follows each
            answer.readline()
    else:
        time.sleep(0.05)  # so that the server has read it
    connection.close()
    return parts
