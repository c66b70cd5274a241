# SPDX-License-Identifier: Apache-2.0
"""Greedy tokens of vLLM next to those of `generate` on the CPU, in every way that an engine takes by default."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from modeling_plt import PLTForCausalLM

from ..tiny import byte_tokenizer
from .agreement import IN_BFLOAT16, IN_TF32, Answer, compare, generated, random_prompts
from .checked_model import checked_model
from .row import FAILED, Row, failed
from .scale import Scale

BLOCK = 32  # tokens of a page, where there are few
ALTERNATIVES = 5  # whose log probabilities are compared at each token
BEGINNING = 300  # tokens that prompts share, longer than a page
DRAFTS = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "prompt_lookup_max": 3}
AS = "greedy tokens as those of generate"


def rows(scale: Scale) -> Iterator[Row]:
    with TemporaryDirectory() as folder:
        checks = ServedTokens(scale, Path(folder), checked_model())
        save(checks.model, Path(folder))
        in_float32 = {"dtype": "float32"} | scale.engine
        few = {"num_gpu_blocks_override": scale.few_blocks, "block_size": BLOCK, "max_model_len": 256}
        few |= {"max_num_seqs": scale.waiting}
        yield from checks.on("vLLM's defaults, bf16", {"dtype": "auto"} | scale.engine, checks.few_prompts)
        yield from checks.on("vLLM's defaults, float32", in_float32, checks.batches, checks.prefixes)
        yield from checks.on("enforce_eager, float32", in_float32 | {"enforce_eager": True}, checks.batches)
        pruned = in_float32 | {"kv_sharing_fast_prefill": True}
        yield from checks.on("pruned prompts, float32", pruned, checks.batches, checks.prefixes)
        yield from checks.on("few blocks, float32", in_float32 | few, checks.preemption)
        # without Triton, as on a CPU, vLLM cannot take drafts back where prefixes are cached
        drafts = in_float32 | {"speculative_config": DRAFTS, "enable_prefix_caching": scale.device == "cuda"}
        yield from checks.on("drafts, float32", drafts, checks.drafts)


def save(model: PLTForCausalLM, folder: Path) -> None:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


class ServedTokens:
    """A model, its folder, and what is asked of its engines; each check takes the name of the engine."""

    def __init__(self, scale: Scale, folder: Path, model: PLTForCausalLM, adapter: Path | None = None):
        self.scale, self.folder, self.model, self.adapter = scale, folder, model, adapter
        self.llm: Any = None

    def on(self, name: str, options: dict[str, Any], *checks: Callable[[str], Iterator[Row]]) -> Iterator[Row]:
        """The rows of some checks with an engine of these options; an error ends them, since it ends the engine."""
        try:
            with engine(self.folder, options) as self.llm:
                for check in checks:
                    yield from check(name)
        except Exception as error:
            yield failed(f"{AS}: {name}, what is not above", error)

    def few_prompts(self, name: str, bound: float = IN_BFLOAT16) -> Iterator[Row]:
        prompts = self.prompts([40, 1, 5, 130])
        yield compare(f"{AS}: {name}", self.expected(prompts), self.answers(prompts), bound)

    def batches(self, name: str) -> Iterator[Row]:
        """Prompts of all lengths in one batch: some prefill while others decode."""
        prompts = self.prompts([1 + (40 + 37 * number) % 130 for number in range(max(self.scale.served_together))])
        expected = self.expected(prompts)
        for size in self.scale.served_together:
            self.llm.reset_prefix_cache()  # a check of its own
            yield compare(f"{AS}: {name}, batch {size}", expected[:size], self.answers(prompts[:size]), IN_TF32)

    def prefixes(self, name: str) -> Iterator[Row]:
        """Prompts after a beginning that the cache has."""
        (beginning,) = self.prompts([BEGINNING])
        self.answers([beginning])
        prompts = [beginning + end for end in self.prompts([1, 7, 40], seed=5)]
        yield self.counted(f"{AS}: {name}, cached prefix", "prefix_cache_hits", prompts)

    def drafts(self, name: str) -> Iterator[Row]:
        """Prompts that repeat their beginning, beside others."""
        prompts = [(prompt * 90)[: 90 + len(prompt)] for prompt in self.prompts([2, 3, 5, 7, 11])]
        prompts += self.prompts([40, 1, 5])
        yield self.counted(f"{AS}: {name}, accepted", "spec_decode_num_accepted_tokens", prompts, new_tokens=100)

    def preemption(self, name: str) -> Iterator[Row]:
        """More requests than the cache holds, which grow."""
        prompts = self.prompts([40] * self.scale.waiting, seed=7)
        yield self.counted(f"{AS}: {name}, preempted", "num_preemptions", prompts, new_tokens=100)

    def counted(self, check: str, counter: str, prompts: list[list[int]], new_tokens: int | None = None) -> Row:
        """The row of prompts that must raise one of vLLM's counters, else nothing was checked."""
        before = metric(self.llm, counter)
        row = compare(check, self.expected(prompts, new_tokens), self.answers(prompts, new_tokens), IN_TF32)
        times = metric(self.llm, counter) - before
        return Row(check, row.result if times else FAILED, {**row.figures, counter: times})

    def prompts(self, lengths: list[int], seed: int = 3) -> list[list[int]]:
        return random_prompts(lengths, self.model.config.vocab_size, seed)

    def expected(self, prompts: list[list[int]], new_tokens: int | None = None) -> list[Answer]:
        """The answer to each prompt alone, on the CPU in float32."""
        most = new_tokens or self.scale.new_tokens
        return [generated(self.model, [prompt], most)[0] for prompt in prompts]

    def answers(self, prompts: list[list[int]], new_tokens: int | None = None) -> list[Answer]:
        from vllm import SamplingParams, TokensPrompt  # starts threads and reads the environment
        from vllm.lora.request import LoRARequest

        settings = {"max_tokens": new_tokens or self.scale.new_tokens, "logprobs": ALTERNATIVES}
        params = SamplingParams(temperature=0, ignore_eos=True, detokenize=False, **settings)
        asked = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        adapter = None if self.adapter is None else LoRARequest(self.adapter.name, 1, str(self.adapter))
        outputs = self.llm.generate(asked, params, use_tqdm=False, lora_request=adapter)
        answers = []
        for output in outputs:
            entries = output.outputs[0].logprobs
            ids = [torch.tensor(list(entry)) for entry in entries]
            logprobs = [torch.tensor([one.logprob for one in entry.values()]) for entry in entries]
            answers.append(Answer(list(output.outputs[0].token_ids), ids, logprobs))
        return answers


@contextmanager
def engine(folder: Path, options: dict[str, Any]) -> Iterator[Any]:
    """An engine, gone at the end."""
    # as `vllm serve` does: a fork of a process that has computed on a CPU may wait for threads that it does not have
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    llm = LLM(str(folder), disable_log_stats=False, **options)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()


def metric(llm: Any, name: str) -> int:
    return sum(one.value for one in llm.get_metrics() if one.name == f"vllm:{name}")
