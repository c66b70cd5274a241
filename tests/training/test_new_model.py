"""Presets and files of fields."""

import json

import pytest
import torch
from training_texts import byte_tokenizer
from transformers import DataCollatorForLanguageModeling

from modeling_plt import PLTForCausalLM
from training_plt.command.runs import count
from training_plt.pretrain.new_model import ModelArguments, build_config, warn_of_scale
from training_plt.pretrain.presets import PRESETS


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def layer_parameters(hidden, mlp, heads, kv_heads, head_dim) -> int:
    """Projections, MLP, the gate of the later loops, and three norms: of attention, MLP and gate."""
    attention = 2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim
    return attention + 3 * hidden * mlp + heads * (hidden + 1) + 3 * hidden


@pytest.mark.parametrize(
    "preset, fields, expected, billions",
    [
        # Llama 3's vocabulary, because the paper names none
        ("plt-1.2b", {"vocab_size": 128256}, 128256 * 2048 + 2048 + 16 * layer_parameters(2048, 8192, 32, 8, 64), 1.2),
        ("loopcoder-v2-7b", {}, 2 * 76800 * 5120 + 5120 + 14 * layer_parameters(5120, 27648, 40, 8, 128), 7.6),
    ],
)
def test_published_models_have_as_many_parameters(tokenizer, preset, fields, expected, billions):
    assignments = [f"{name}={value}" for name, value in fields.items()]
    config = build_config(ModelArguments(preset=preset, set=assignments), tokenizer)
    with torch.device("meta"):
        model = PLTForCausalLM(config)
    assert model.num_parameters() == expected
    assert round(expected / 1e9, 1) == billions
    assert config.num_loops == 2 and config.loop_attention == "gated_window" and config.loop_shift


def test_every_preset_starts_its_states_about_as_small_as_its_embeddings(tokenizer):
    scales = {name: build_config(ModelArguments(preset=name), tokenizer).hidden_scale for name in PRESETS}
    expected = {"tiny": 0.05, "tiny-moe": 0.05, "plt-1.2b": 0.02, "olmoe-1b-7b": 0.02, "loopcoder-v2-7b": 0.053}
    assert scales == expected


def test_of_experts_those_are_active_to_which_a_token_is_sent(tokenizer):
    with torch.device("meta"):
        model = PLTForCausalLM(build_config(ModelArguments(preset="olmoe-1b-7b", set=["num_loops=1"]), tokenizer))
    assert round(model.num_parameters() / 1e9, 1) == 6.9
    assert round(model.num_active_parameters() / 1e9, 1) == 1.3
    assert count(model) == "6,919,161,856, active 1,282,017,280"


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "fields, far", [([], False), (["hidden_scale=1"], True), (["hidden_scale=1", "num_loops=1"], False)]
)
def test_a_new_model_whose_states_drown_its_embeddings_is_warned_of(tokenizer, capsys, preset, fields, far):
    warn_of_scale(build_config(ModelArguments(preset=preset, set=fields), tokenizer))
    warning = capsys.readouterr().err
    assert ("`hidden_scale` of 1 learns late" in warning) == far and bool(warning) == far


def test_the_tokenizer_completes_a_config(tokenizer, tmp_path):
    config = build_config(ModelArguments(), tokenizer)
    assert config.vocab_size == len(tokenizer) == 258
    assert config.eos_token_id == tokenizer.eos_token_id
    file = tmp_path / "fields.json"
    file.write_text(json.dumps({"hidden_size": 32, "num_attention_heads": 2, "vocab_size": 300}))
    config = build_config(ModelArguments(preset=str(file), set=["num_loops=3"]), tokenizer)
    assert (config.hidden_size, config.vocab_size, config.num_loops) == (32, 300, 3)


def test_what_masks_pads_leaves_the_end_token_its_labels(tokenizer):
    batch = [{"input_ids": [*tokenizer(text).input_ids, tokenizer.eos_token_id]} for text in ("def", "x")]
    labels = DataCollatorForLanguageModeling(tokenizer, mlm=False)(batch)["labels"]
    assert (labels == tokenizer.eos_token_id).sum() == 2 and (labels == -100).sum() == 2


@pytest.mark.parametrize(
    "content, assignments, message",
    [
        ("[1]", [], "must be a JSON object of fields, got list"),
        ("{", [], "must be a JSON file"),
        ('{"loops": 3}', [], "must hold fields of PLTConfig, got loops"),
        ('{"num_loops": 0}', [], "must be an integer of at least 1, got 0"),
        ("{}", ["vocab_size=100"], "must be at least the 258 of the tokenizer, got 100"),
        ("{}", ["loops=3"], "FIELD=VALUE"),
    ],
)
def test_wrong_fields_are_refused(tokenizer, tmp_path, content, assignments, message):
    file = tmp_path / "fields.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        build_config(ModelArguments(preset=str(file), set=assignments), tokenizer)


def test_a_preset_that_is_not_there_is_refused(tokenizer):
    with pytest.raises(ValueError, match=f"must be a JSON file or one of {', '.join(PRESETS)}, got large"):
        build_config(ModelArguments(preset="large"), tokenizer)
