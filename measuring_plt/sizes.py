# SPDX-License-Identifier: Apache-2.0
"""Sizes of models, with what is measured for each unless the command line says otherwise."""

# fields of PLTConfig; a size is called after the parameters of its plain row
COMMON = {"vocab_size": 32000, "max_position_embeddings": 131072, "sliding_window": 64, "num_hidden_layers": 16}
SIZES = {
    "tiny": COMMON
    | {"vocab_size": 256, "sliding_window": 8, "num_hidden_layers": 2}
    # heads of 32, the least that vLLM takes on a CPU
    | {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1},
    "0.3b": COMMON
    | {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_key_value_heads": 4},
    "0.5b": COMMON
    | {"hidden_size": 1536, "intermediate_size": 4608, "num_attention_heads": 24, "num_key_value_heads": 4},
    "1.3b": COMMON
    | {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 4}
    | {"num_hidden_layers": 20},
    # the paper's dense model of 1.2B, if each of the MLP's three matrices has its width of 16384
    "1.9b": COMMON
    | {"hidden_size": 2048, "intermediate_size": 16384, "num_attention_heads": 32, "num_key_value_heads": 8},
    # 8 of 64 experts, as OLMoE; called after all parameters and those that a token is computed with
    "0.9b-a0.2b": COMMON
    | {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 4}
    | {"num_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 256},
}
DENSE_SIZES = [size for size, fields in SIZES.items() if "num_experts" not in fields]

# what is varied, by its name in the tables; lengths are tokens, rounds are timed after the warm-up
TINY = {"batch": [1, 2], "context": [16, 32], "prompt": [8, 16, 32], "tokens": 16, "rounds": 3}
ON_CPU = {"batch": [1, 4], "context": [256, 2048], "prompt": [64, 128, 256], "tokens": 64, "rounds": 3}
ON_GPU = {"batch": [1, 4, 8], "context": [512, 4608], "prompt": [128, 512, 2048, 8192], "tokens": 2048, "rounds": 15}
LENGTHS = [512, 1024, 4096, 16384]  # of which the masks are measured


def suggested_sweep(size: str, device_type: str) -> dict:
    if size == "tiny":
        return TINY | {"lengths": [16, 32]}
    return (ON_GPU if device_type == "cuda" else ON_CPU) | {"lengths": LENGTHS}
