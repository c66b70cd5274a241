# SPDX-License-Identifier: Apache-2.0
"""Fields that transformers writes into configs and that do not change what a checkpoint computes."""

from transformers import GenerationConfig

HARMLESS = {
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_commit_hash",
    "_experts_implementation",
    "_experts_implementation_internal",
    "_flash_attn_2_enabled",
    "_model_name_or_path",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "auto_map",
    "dtype",
    "experts_implementation",
    "finetuning_task",
    "id2label",
    "label2id",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "task_specific_params",
    "tf_legacy_loss",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "use_bfloat16",
    "use_cache",
    "use_return_dict",
}

# these values count as unset, as do None, False, 0 and empty: transformers 4 could write them into any config
DEFAULTS = GenerationConfig._get_default_generation_params() | {"transformers_weights": "model.safetensors"}
