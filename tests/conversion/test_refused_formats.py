"""A format that is known and not supported is refused with the reason, not with a list of the others."""

import json

import pytest
import torch
from converting import assert_refused, plt
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING

from conversion_plt.reading.refused_formats import reason_against
from conversion_plt.sources import all_sources

LOOPED = {
    "lds": "LoopUS: a gate",
    "dory": "Dory: states lie on a sphere",
    "inkling2_loop": "Inkling: layers mix",
    "latent_loop": "LatentLoop: the first loop",
    "ForesightLoop": "ForesightLoop: further residual streams",
    "sensenova-loop": "SenseNova-Loop: hyper-connections",
    "parcae": "Parcae: a diagonal matrix",
    "looped_lm": "LoopedLM of IFM: variants",
    "mod": "mixture of depths: a router",
}
OTHERS = {
    "glm4_moe": "a correction for each expert",
    "gpt_oss": "attention has sinks",
    "deepseek_v3": "a compressed latent (MLA)",
    "glm4_moe_lite": "a compressed latent (MLA)",
    "kimi_k25": "a compressed latent (MLA)",
    "qwen3_next": "linear attention",
    "qwen3_5_moe": "linear attention",
    "lfm2_moe": "linear attention",
    "afmoe": "attention is gated",
    "llama4_text": "another form",
    "gemma2": "norms multiply by one plus a weight",
    "olmo": "LayerNorms",
    "granite": "multipliers scale",
}


def source(folder, **config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"model.norm.weight": torch.ones(3)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("model_type, reason", (LOOPED | OTHERS).items())
def test_a_known_format_is_refused_with_the_reason(tmp_path, capsys, model_type, reason):
    message = assert_refused(capsys, source(tmp_path / "source", model_type=model_type))
    assert f"got '{model_type}'. " in message and reason in message
    with pytest.raises(SystemExit, match=reason.replace("(", r"\(").replace(")", r"\)")):
        plt("inspect", tmp_path / "source")


def test_the_class_tells_a_format_too(tmp_path, capsys):
    config = {"model_type": "my_looped_model", "architectures": ["LatentLoopForCausalLM"]}
    assert "LatentLoop: the first loop" in assert_refused(capsys, source(tmp_path / "source", **config))


@pytest.mark.parametrize(
    "config", [{}, {"model_type": "phi3"}, {"model_type": "my", "architectures": [3, "My", None]}]
)
def test_a_format_of_which_nothing_is_known_names_those_that_are_read(tmp_path, capsys, config):
    message = assert_refused(capsys, source(tmp_path / "source", **config))
    assert "must be one of" in message and "qwen3_moe" in message


def test_no_source_is_refused():
    assert not [name for name in all_sources() if reason_against({"model_type": name})]


def test_names_of_transformers_are_spelled_as_there():
    assert not [name for name in OTHERS if name not in CONFIG_MAPPING]
