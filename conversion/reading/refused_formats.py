# SPDX-License-Identifier: Apache-2.0
"""Formats that are known and not supported, with the reason: what they compute is no special case of a PLT."""

import re

CORRECTED = "a correction for each expert takes part in the choice of experts"
LATENT = "keys and values are made of a compressed latent (MLA)"
MIXED = "there are layers of linear attention, a state space or a convolution, with states of their own"
LAYER_NORM = "norms are LayerNorms, which subtract the mean"

# regular expressions for a whole name in small letters and digits
REFUSED = (
    # looped
    (r"lds|loopus", "LoopUS: a gate that reads the input mixes each loop's state with the one before"),
    (r"dory\w*", "Dory: states lie on a sphere (nGPT), and residuals interpolate on it"),
    (r"inkling\w*", "Inkling: layers mix what earlier blocks put out, and attention has a learned relative bias"),
    (r"latentloop\w*", "LatentLoop: the first loop reads a compressed sequence, and each has an attention of its own"),
    (r"foresightloop\w*", "ForesightLoop: further residual streams run beside the state"),
    (r"sensenovaloop\w*", "SenseNova-Loop: hyper-connections (mHC) mix several residual streams"),
    (r"parcae\w*", "Parcae: a diagonal matrix weighs the state before each loop"),
    (
        r"ifm\w*|xllm\w*|loopedlm\w*",
        "LoopedLM of IFM: variants inject diagonally or loop on two levels",
    ),
    (r"hrm\w*", "HRM: two stacks with states of their own loop in turns"),
    (r"mod|mixtureofdepths", "mixture of depths: a router lets only some tokens through a layer"),
    # mixtures of experts
    (r"glm4moe|dots1|ernie45moe|exaonemoe|solaropen|minimaxm2", CORRECTED),
    (r"gptoss", "gpt-oss: attention has sinks, experts have biases and clamp, and layers alternate with a window"),
    (r"dbrx|jetmoe|phimoe|llama4\w*|granitemoe|granitemoeshared", "experts or their router are of another form"),
    (r"afmoe", "AFMoE: attention is gated, and layers alternate with a window"),
    # attention
    (r"deepseek\w*|kimik\w+|glm4moelite|glmmoedsa|longcatflash|minicpm3|youtu", LATENT),
    (r"qwen3next|qwen35\w*|granitemoehybrid|lfm2\w*|bamba|jamba|falconh1|zamba2?|mamba2?|nemotronh", MIXED),
    (r"kimilinear|recurrentgemma|minimax|rwkv\w*|xlstm", MIXED),
    # dense decoders
    (
        r"gemma\w*|vaultgemma",
        "Gemma: norms multiply by one plus a weight, and most cap logits",
    ),
    (r"gpt2|gptneo|gptneox|gptj|opt|bloom|falcon|mpt|phi|stablelm|starcoder2|olmo|cohere2?", LAYER_NORM),
    (r"granite", "Granite: multipliers scale attention, residuals and logits"),
    (r"olmo3", "OLMo-3: layers alternate with a window"),
    (r"glm4?", "GLM: a part of each head is not rotated"),
)


def reason_against(config: dict) -> str | None:
    """Why a format is not supported, if that is known from its `model_type` or the classes that it names."""
    classes = config.get("architectures")
    names = [config.get("model_type"), *(classes if isinstance(classes, list) else [])]
    texts = [re.sub(r"For[A-Z]\w*$|Model$", "", name) for name in names if isinstance(name, str)]
    plain = [re.sub(r"[^a-z0-9]", "", text.lower()) for text in texts]
    return next((reason for pattern, reason in REFUSED if any(re.fullmatch(pattern, name) for name in plain)), None)
