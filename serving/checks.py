# SPDX-License-Identifier: Apache-2.0
"""What the plugin refuses, before anything is loaded."""

from typing import TYPE_CHECKING

import vllm
from packaging.version import Version
from vllm.logger import init_logger
from vllm.model_executor.models.config import VerifyAndUpdateConfig

if TYPE_CHECKING:
    from vllm.config import VllmConfig

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
