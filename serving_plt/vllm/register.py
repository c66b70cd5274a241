# SPDX-License-Identifier: Apache-2.0
"""The plugin: tells vLLM what a PLT is. vLLM calls `register` in each of its processes (`vllm.general_plugins`)."""

from transformers import AutoConfig
from vllm import ModelRegistry
from vllm.model_executor.models.config import MODELS_CONFIG_MAP

from .checks import Checks
from .configs import ServedConfig, ServedPublishedConfig
from .pruning import register_windows

ARCHITECTURE = "PLTForCausalLM"


def register() -> None:
    """Register the configs by `model_type`, and the model by name, so that its code is imported where it runs."""
    for config in (ServedConfig, ServedPublishedConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
    ModelRegistry.register_model(ARCHITECTURE, f"serving_plt.vllm.model:{ARCHITECTURE}")
    MODELS_CONFIG_MAP[ARCHITECTURE] = Checks
    register_windows()
