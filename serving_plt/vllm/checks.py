# SPDX-License-Identifier: Apache-2.0
"""Settings of vLLM that the plugin refuses, and those that it sets, before anything is loaded."""

from typing import TYPE_CHECKING, Any

import vllm
from packaging.version import Version
from vllm.config import CUDAGraphMode
from vllm.config.vllm import OptimizationLevel
from vllm.forward_context import get_forward_context
from vllm.logger import init_logger
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.triton_utils import HAS_TRITON
from vllm.v1.kv_cache_interface import kv_cache_uses_per_token_head_scales

from configuration_plt import PLTConfig

from .metrics import show_metrics

if TYPE_CHECKING:
    from vllm.config import VllmConfig

DRAFT_METHODS = ("ngram", "ngram_gpu")  # methods without a model of their own
ACTIVATIONS_OF_EXPERTS = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}  # and vLLM's names there
OLDEST, NEWEST = "0.32", "0.33"  # minor versions: the suite runs on the first, the sources of both are checked
logger = init_logger(__name__)


def check_version() -> None:
    """Warn, once, of a vLLM that is newer than those this package was tested with.

    Raises:
        ValueError: it is older.
    """
    version = Version(vllm.__version__).release[:2]
    if version < Version(OLDEST).release:
        raise ValueError(f"Serving a PLT needs vLLM {OLDEST} or newer, got {vllm.__version__}.")
    if version > Version(NEWEST).release:
        logger.warning_once(
            "Serving a PLT was tested with vLLM %s to %s; this is %s, so compare its answers with `generate`.",
            OLDEST,
            NEWEST,
            vllm.__version__,
        )


def graphs_of(vllm_config: "VllmConfig") -> tuple[CUDAGraphMode, ...]:
    """The modes of CUDA graphs in which a PLT is right; the last is the best.

    A graph reads its inputs where they were when it was captured, and those of a part of a step are new tensors each
    time: so graphs are of whole steps that decode. vLLM's V1 runner replays these for a prompt of one token, too, with
    the metadata of an earlier step, by which it would read a carry that is not its own.
    """
    if vllm_config.use_v2_model_runner or not vllm_config.model_config.hf_config.has_carry:
        return CUDAGraphMode.NONE, CUDAGraphMode.FULL_DECODE_ONLY
    return (CUDAGraphMode.NONE,)


def check_graphs(vllm_config: "VllmConfig") -> None:
    """Raise ValueError if the mode of CUDA graphs is set, and is none of `graphs_of`."""
    mode, right = vllm_config.compilation_config.cudagraph_mode, graphs_of(vllm_config)
    if mode is not None and mode not in right:
        names = " or ".join(each.name for each in right)
        raise ValueError(
            "A PLT has CUDA graphs of whole decode steps, and none with a carry in vLLM's V1 runner: "
            f"`cudagraph_mode` must be {names}, got {mode.name}."
        )


def check_sharing(vllm_config: "VllmConfig") -> None:
    """Raise ValueError for settings that vLLM cannot combine with a layer that reads the keys of another."""
    processes = vllm_config.parallel_config.decode_context_parallel_size
    if processes > 1:
        raise ValueError(
            "A PLT's later loops read keys that they did not give, which vLLM cannot do with keys split by tokens: "
            f"`decode_context_parallel_size` must be 1, got {processes}."
        )
    cache_dtype = vllm_config.cache_config.cache_dtype
    if kv_cache_uses_per_token_head_scales(cache_dtype):
        raise ValueError(
            "A PLT's later loops read loop 0's keys, whose scales vLLM sets back to 1 when they first do: "
            f"`kv_cache_dtype` must not have scales per token and head, got {cache_dtype}."
        )


def check_experts(config: PLTConfig, vllm_config: "VllmConfig") -> None:
    """Raise ValueError for an activation that vLLM's experts lack, and for what takes a layer to run once a step."""
    if config.hidden_act not in ACTIVATIONS_OF_EXPERTS:
        names = ", ".join(map(repr, ACTIVATIONS_OF_EXPERTS))
        raise ValueError(f"vLLM's experts have `hidden_act` of {names}, got {config.hidden_act!r}.")
    parallel = vllm_config.parallel_config
    if parallel.enable_eplb:
        raise ValueError(
            "vLLM counts how often a layer's experts are chosen, once a step, and a PLT's layers run in each loop: "
            "`enable_eplb` must be False, got True."
        )
    if parallel.data_parallel_size > 1:
        raise ValueError(
            "vLLM's copies split the experts and run in step, and those of a PLT differ in passes and rows: "
            f"`data_parallel_size` must be 1 with experts, got {parallel.data_parallel_size}; start a server for each "
            "copy."
        )
    if vllm_config.aux_output_config.enable_return_routed_experts:
        raise ValueError(
            "vLLM returns the experts that a layer has chosen last, and a PLT's layers choose in each loop: "
            "`enable_return_routed_experts` must be False, got True."
        )
    if vllm_config.compilation_config.fast_moe_cold_start:
        raise ValueError(
            "vLLM takes a layer with experts for one that runs once a step: `fast_moe_cold_start` must be False, got "
            "True."
        )
    vllm_config.compilation_config.fast_moe_cold_start = False
    if vllm_config.lora_config is not None:
        raise ValueError(
            "vLLM leaves out what PEFT's adapters have for experts, and says nothing: `enable_lora` must be False "
            "with experts, got True; serve a folder into which the adapter is merged."
        )


def check_pruning(config: Any, vllm_config: "VllmConfig") -> None:
    """Raise ValueError where a prompt cannot be pruned; vLLM itself refuses log probabilities of its tokens."""
    reasons = {
        "later loops need a window, and the state of the token before": not config.has_carry or not config.has_gate,
        "a coda reads all tokens of a prompt": config.has_coda,
        "an adapter is found by a row's place in the step": vllm_config.lora_config is not None,
        "a pooler may read all tokens of a prompt": vllm_config.model_config.runner_type == "pooling",
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(
                f"A prompt is not pruned here, because {reason}: `kv_sharing_fast_prefill` must be False, got True."
            )


def check_drafts(vllm_config: "VllmConfig") -> None:
    """Raise ValueError for drafts by a model, and for those that vLLM cannot take back on this machine."""
    method = vllm_config.speculative_config.method
    if method not in DRAFT_METHODS:
        names = " or ".join(map(repr, DRAFT_METHODS))
        raise ValueError(
            f"A PLT's drafts are looked up in the text before: `speculative_config` must have a `method` of {names}, "
            f"got {method!r}."
        )
    if vllm_config.cache_config.enable_prefix_caching and not HAS_TRITON:
        raise ValueError(
            "Where prefixes are cached, vLLM takes rejected drafts back with kernels of Triton, which is not here: "
            "with `speculative_config`, `enable_prefix_caching` must be False, got True."
        )


def check_step() -> None:
    """Raise ValueError if the step runs for graphs of its parts, which vLLM may turn to after `check_graphs`."""
    mode = get_forward_context().cudagraph_runtime_mode
    if mode == CUDAGraphMode.PIECEWISE:
        raise ValueError(
            "A PLT has CUDA graphs of whole decode steps, for which an attention backend here has no support: "
            f"`cudagraph_mode` must be NONE, got {mode.name} from vLLM."
        )


class Checks(VerifyAndUpdateConfig):
    """The hook that vLLM calls once it has read the user's settings, before it chooses the rest."""

    @staticmethod
    def verify_and_update_config(vllm_config: "VllmConfig") -> None:
        """Refuse settings that a PLT cannot have, and choose those that vLLM would choose wrongly.

        Raises:
            ValueError: with one sentence on the asked and the possible value.
        """
        config, parallel = vllm_config.model_config.hf_config, vllm_config.parallel_config
        if config.num_experts > 0:
            check_experts(config, vllm_config)
        compilation = vllm_config.compilation_config
        if parallel.pipeline_parallel_size > 1:
            raise ValueError(
                "A PLT cannot be split by layers, because every loop runs through all of them: "
                f"`pipeline_parallel_size` must be 1, got {parallel.pipeline_parallel_size}; use "
                "`tensor_parallel_size`."
            )
        if vllm_config.speculative_config is not None and config.has_carry:
            check_drafts(vllm_config)
        if vllm_config.cache_config.kv_sharing_fast_prefill:
            check_pruning(config, vllm_config)
        if config.num_loops > 1 and config.looped_stage.later_see != "all":
            check_sharing(vllm_config)
        check_graphs(vllm_config)
        if compilation.cudagraph_mode is None and vllm_config.optimization_level > OptimizationLevel.O0:
            compilation.cudagraph_mode = graphs_of(vllm_config)[-1]
        if config.num_loops > 1:
            # vLLM turns this fusion on by the tokens of a step, and its buffer is too small for the rows of all loops
            if compilation.pass_config.fuse_allreduce_rms:
                raise ValueError(
                    "A PLT's pass has more rows than tokens: `fuse_allreduce_rms` must be False, got True."
                )
            compilation.pass_config.fuse_allreduce_rms = False
        # `sliding_window` of a PLT is that of its later loops, and not of the model
        vllm_config.cache_config.sliding_window = None
        show_metrics()
