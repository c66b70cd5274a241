from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from configuration_plt import PLTConfig
from conversion_plt.published import PublishedPLTConfig

from .cache_plt import PLTCache
from .modeling_plt import PLTForCausalLM, PLTModel
from .static_cache_plt import PLTStaticCache

# saving copies the code into the folder
PLTConfig.register_for_auto_class()
PLTModel.register_for_auto_class("AutoModel")
PLTForCausalLM.register_for_auto_class("AutoModelForCausalLM")
# loading needs no `trust_remote_code`
AutoConfig.register("plt", PLTConfig)
AutoConfig.register(PublishedPLTConfig.model_type, PublishedPLTConfig)
AutoModel.register(PLTConfig, PLTModel)
AutoModelForCausalLM.register(PLTConfig, PLTForCausalLM)

__all__ = ["PLTCache", "PLTForCausalLM", "PLTModel", "PLTStaticCache"]
