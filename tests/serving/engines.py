"""Models in vLLM's engine, in this process, next to what `generate` says."""

import contextlib
import gc
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from tiny import tiny_model
from vllm import LLM, SamplingParams, TokensPrompt
from vllm.config import set_current_vllm_config
from vllm.distributed import cleanup_dist_env_and_memory, init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader import get_model

from configuration_plt import PLTConfig
from modeling_plt import PLTForCausalLM
from serving_plt.vllm.layer import PLTDecoderLayer
from serving_plt.vllm.sizing import request_bytes

# sizes that vLLM's kernels have on a CPU: heads of 32, blocks of 32 tokens
SIZES = {"head_dim": 32, "hidden_size": 56, "num_hidden_layers": 3, "eos_token_id": None, "bos_token_id": None}
BLOCK = 32
LOOPS = 3  # of the model that the fixtures save
LENGTHS = (1, 2, 5, 31, 32, 33, 64, 70, 130)  # of prompts: around the window of 4, around blocks, over several steps
NEW = 12
OPTIONS = {
    "dtype": "float32",
    "enforce_eager": True,
    "skip_tokenizer_init": True,
    "max_model_len": 256,
    "block_size": BLOCK,
    "kv_cache_memory_bytes": 64 << 20,
    "max_num_seqs": 16,
    "max_num_batched_tokens": 64,  # longer prompts come in chunks, beside requests that decode
    "disable_log_stats": False,
}

# of a config: Huginn's, a matrix that reads what loops start from beside the state of the token before
ADAPTER = {"loop_input": "adapter", "embedding_scale": 1.0, "hidden_scale": None}

# a prefix is found again at every end of a step, and not at the last block of a prompt alone
PRUNED = {"kv_sharing_fast_prefill": True, "prefix_cache_retention_interval": None}


def save_tiny(folder: Path, seed: int = 0, **fields) -> PLTForCausalLM:
    """A tiny model, saved in a folder; the number of layers does not divide its hidden size."""
    model = tiny_model(seed, **SIZES | fields)
    model.save_pretrained(folder)
    return model


def kv_bytes_by_formula(config: PLTConfig, **settings) -> float:
    """For each token of the longest request that engines here have, which vLLM counts in whole blocks."""
    longest, in_flight = OPTIONS["max_model_len"], OPTIONS["max_num_batched_tokens"]
    return request_bytes(config, longest, item_size=4, block_size=BLOCK, in_flight=in_flight, **settings) / longest


@contextlib.contextmanager
def engine(folder: Path, **options):
    """An engine, gone at the end."""
    llm = None
    try:
        llm = LLM(str(folder), **OPTIONS | options)
        yield llm
    finally:
        if llm is not None:
            # else whoever collects it ends the groups of processes of an engine that has come since
            llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()


@contextlib.contextmanager
def loaded(folder: Path, **options):
    """The model alone, as vLLM's loader makes it, without an engine."""
    settings = EngineArgs(model=str(folder), **OPTIONS | options).create_engine_config()
    try:
        with set_current_vllm_config(settings):
            store = (folder / "processes").as_uri()
            init_distributed_environment(1, 0, distributed_init_method=store, local_rank=0, backend="gloo")
            initialize_model_parallel(1)
            with mock.patch.object(torch.accelerator, "empty_cache"):  # as vLLM does on a CPU, in its runner
                model = get_model(vllm_config=settings)
            yield model
    finally:
        cleanup_dist_env_and_memory()
        (folder / "processes").unlink(missing_ok=True)


def random_prompts(lengths=LENGTHS, seed: int = 3) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 61, (length,), generator=generator).tolist() for length in lengths]


def shared_beginnings() -> list[list[int]]:
    """Prompts of one text's beginnings, whose steps end at other places in the same blocks."""
    (text,) = random_prompts((130,), seed=11)
    return [text[:kept] + [3 + kept % 50, 5, 8] for kept in (96, 125, 32, 61, 64, 90, 97, 130, 33, 100, 65)]


def as_prompts(prompts: list[list[int]]) -> list[TokensPrompt]:
    return [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]


def greedy(max_tokens: int = NEW, **more) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, detokenize=False, **more)


def served(llm: LLM, prompts: list[list[int]], params: SamplingParams | None = None) -> list[list[int]]:
    """The engine's greedy tokens for each prompt, in one batch."""
    outputs = llm.generate(as_prompts(prompts), params or greedy(), use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def served_with_logprobs(llm: LLM, prompts: list[list[int]]) -> tuple[list[list[int]], list[list[float]]]:
    """Greedy tokens for each prompt, and the engine's log probability of each."""
    answers = [output.outputs[0] for output in llm.generate(as_prompts(prompts), greedy(logprobs=1), use_tqdm=False)]
    tokens = [list(answer.token_ids) for answer in answers]
    logprobs = [
        [entry[token].logprob for token, entry in zip(answer.token_ids, answer.logprobs, strict=True)]
        for answer in answers
    ]
    return tokens, logprobs


@torch.no_grad()
def logprobs_of(model: PLTForCausalLM, prompts: list[list[int]], tokens: list[list[int]]) -> list[list[float]]:
    """The model's log probability of each of the tokens that follow each prompt, without a cache."""
    result = []
    for prompt, new in zip(prompts, tokens, strict=True):
        logprobs = model(torch.tensor([prompt + new])).logits[0, len(prompt) - 1 : -1].log_softmax(dim=-1)
        result.append(logprobs.gather(1, torch.tensor(new)[:, None])[:, 0].tolist())
    return result


def generated(model: PLTForCausalLM, prompts: list[list[int]], max_tokens: int = NEW) -> list[list[int]]:
    """What `generate` says of each prompt alone."""
    settings = {"max_new_tokens": max_tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return [model.generate(torch.tensor([prompt]), **settings)[0, len(prompt) :].tolist() for prompt in prompts]


def layer_calls(monkeypatch, of_call: Callable[[range, int], tuple[int, int]]) -> list[tuple[int, int]]:
    """A list that grows with what `of_call` makes of the loops and the rows of every call of a layer."""
    calls, forward = [], PLTDecoderLayer.forward

    def counted(self, hidden_states, positions, loops):
        calls.append(of_call(loops, len(hidden_states)))
        return forward(self, hidden_states, positions, loops)

    monkeypatch.setattr(PLTDecoderLayer, "forward", counted)
    return calls
