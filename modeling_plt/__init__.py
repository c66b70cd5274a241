"""The Parallel Loop Transformer for transformers: importing this makes the Auto classes know it.

Read `Stage` in `configuration_plt/configuration_plt.py` first, then `passes_plt.py` (schedule, shift),
`attention_plt.py` (shared KV, window, gate), `cache_plt.py` (carry), and `PLTModel.run_passes` in `modeling_plt.py`
(loop). docs/internals.md walks through one forward.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from configuration_plt import PLTConfig
from configuration_plt.published_plt import PublishedPLTConfig

from .cache_plt import PLTCache
from .modeling_plt import (
    PLTForCausalLM,
    PLTForQuestionAnswering,
    PLTForSequenceClassification,
    PLTForTokenClassification,
    PLTModel,
)
from .static_cache_plt import PLTStaticCache

MODELS = {
    AutoModel: PLTModel,
    AutoModelForCausalLM: PLTForCausalLM,
    AutoModelForQuestionAnswering: PLTForQuestionAnswering,
    AutoModelForSequenceClassification: PLTForSequenceClassification,
    AutoModelForTokenClassification: PLTForTokenClassification,
}

AutoConfig.register("plt", PLTConfig)
AutoConfig.register(PublishedPLTConfig.model_type, PublishedPLTConfig)
PLTConfig.register_for_auto_class()
for auto, model in MODELS.items():
    model.register_for_auto_class(auto.__name__)  # saving copies the code into the folder
    auto.register(PLTConfig, model)  # loading needs no `trust_remote_code`

__all__ = [
    "PLTCache",
    "PLTForCausalLM",
    "PLTForQuestionAnswering",
    "PLTForSequenceClassification",
    "PLTForTokenClassification",
    "PLTModel",
    "PLTStaticCache",
]
