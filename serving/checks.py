# SPDX-License-Identifier: Apache-2.0
"""What the plugin refuses, before anything is loaded."""

from typing import TYPE_CHECKING

import vllm
from packaging.version import Version
from vllm.model_executor.models.config import VerifyAndUpdateConfig

if TYPE_CHECKING:
    from vllm.config import VllmConfig

OLDEST, TOO_NEW = "0.32", "0.33"


def check_version() -> None:
    """ValueError if vLLM is not one that this package was tested with."""
    if not Version(OLDEST) <= Version(Version(vllm.__version__).base_version) < Version(TOO_NEW):
        raise ValueError(f"Serving a PLT needs vLLM {OLDEST} or newer, below {TOO_NEW}; this is {vllm.__version__}.")


class Checks(VerifyAndUpdateConfig):
    """What vLLM calls once it has read everything that the user set."""

    @staticmethod
    def verify_and_update_config(vllm_config: "VllmConfig") -> None:
        """Refuse what the model cannot do, and keep the window of later loops from loop 0.

        Raises:
            ValueError: with one sentence that says what was asked and what can be.
        """
        config, parallel = vllm_config.model_config.hf_config, vllm_config.parallel_config
        if parallel.pipeline_parallel_size > 1:
            raise ValueError(
                "A PLT cannot be split by layers, because every loop runs through all of them: "
                f"`pipeline_parallel_size` must be 1, got {parallel.pipeline_parallel_size}; use "
                "`tensor_parallel_size`."
            )
        if vllm_config.speculative_config is not None and config.has_carry:
            raise ValueError(
                "Speculative decoding is not supported for a PLT: a rejected draft would leave its state in the "
                "carry. Start without `speculative_config`."
            )
        # `sliding_window` of a PLT is that of its later loops, and not of the model
        vllm_config.cache_config.sliding_window = None
