# SPDX-License-Identifier: Apache-2.0
"""Loading the published PLT weights without converting them: their config is read as a `PLTConfig`."""

from typing import Any

from configuration_plt import PLTConfig
from conversion_plt.sources.iquestpltcoder import SOURCE


class PublishedPLTConfig(PLTConfig):
    """What `AutoConfig` finds for LoopCoder-V2; reading it gives a `PLTConfig`, and so our model classes."""

    model_type = SOURCE.model_type

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> PLTConfig:
        """Translate a published `config.json`.

        Raises:
            ValueError: it sets a field that is not supported.
        """
        fields = SOURCE.config_fields(config_dict, set())
        names = {
            "architectures": ["PLTForCausalLM"],
            "dtype": config_dict.get("dtype", config_dict.get("torch_dtype")),
        }
        return PLTConfig.from_dict(fields | names, **kwargs)
