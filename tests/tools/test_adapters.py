# SPDX-License-Identifier: Apache-2.0
"""Adapters of peft on a PLT: what is trained, saved, merged and generated."""

import peft
import pytest
import torch
from greedy import assert_cached_equals_uncached, greedy
from peft import PeftModel, get_peft_model
from tiny import tiny_ids, tiny_model
from torch import nn
from train_tiny import fresh_model, losses, train

from modeling_plt import PLTForSequenceClassification

PROJECTIONS = {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
INSIDE = {
    "LoRA": peft.LoraConfig(r=4, target_modules="all-linear"),
    "LoRA, of the gates too (`target_parameters`)": peft.LoraConfig(
        r=4, target_modules="all-linear", target_parameters=["self_attn.plt_gate.weight"]
    ),
    "LoRA, with whole gates (`modules_to_save`)": peft.LoraConfig(
        r=4, target_modules="all-linear", modules_to_save=["plt_gate"]
    ),
    "LoRA, of embeddings and head too": peft.LoraConfig(
        r=4, target_modules=[*PROJECTIONS["target_modules"], "embed_tokens", "lm_head"]
    ),
    "DoRA": peft.LoraConfig(r=4, target_modules="all-linear", use_dora=True),
    "PiSSA": peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights="pissa"),
    "LoHa": peft.LoHaConfig(r=4, **PROJECTIONS),
    "LoKr": peft.LoKrConfig(r=4, **PROJECTIONS),
    "OFT": peft.OFTConfig(oft_block_size=4, **PROJECTIONS),
    "VeRA": peft.VeraConfig(r=4, target_modules=["q_proj", "o_proj"]),
    "IA3": peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "tuning of norms": peft.LNTuningConfig(target_modules=["input_layernorm", "post_attention_layernorm", "norm"]),
}
IN_FRONT = {
    "prompt tuning, single rows": peft.PromptTuningConfig(num_virtual_tokens=3),
    "p-tuning, single rows": peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=16),
}


def each(configs: dict) -> pytest.MarkDecorator:
    params = [
        pytest.param(config, marks=pytest.mark.proves(tool="peft", what=name), id=name)
        for name, config in configs.items()
    ]
    return pytest.mark.parametrize("config", params)


def adapt(config: peft.PeftConfig) -> PeftModel:
    """An adapted model whose adapters say something."""
    config.task_type = "CAUSAL_LM"
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(num_loops=3), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@each(INSIDE | IN_FRONT)
def test_an_adapter_learns_and_the_rest_stays(tmp_path, config):
    model = adapt(config)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    curve = losses(train(model, tmp_path, 10))
    assert curve[-1] < curve[0]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


@each(INSIDE | IN_FRONT)
@torch.inference_mode()
def test_an_adapter_is_saved_and_loaded(tmp_path, config):
    model, input_ids = adapt(config), tiny_ids(1, 9)
    logits = model(input_ids).logits
    assert not torch.allclose(logits[:, -9:], tiny_model(num_loops=3)(input_ids).logits, atol=1e-2)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_model(num_loops=3), tmp_path).eval()
    torch.testing.assert_close(again(input_ids).logits, logits, rtol=0, atol=1e-5)


@each(INSIDE)
@torch.inference_mode()
def test_an_adapter_is_merged(config):
    model, input_ids = adapt(config), tiny_ids(2, 9)
    logits = model(input_ids).logits
    merged = model.merge_and_unload()
    assert type(merged).__name__ == "PLTForCausalLM"
    torch.testing.assert_close(merged(input_ids).logits, logits, rtol=0, atol=1e-3)


@each(INSIDE)
def test_an_adapted_model_generates_with_its_cache_what_it_generates_without(config):
    input_ids, mask = tiny_ids(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    assert_cached_equals_uncached(adapt(config), input_ids, attention_mask=mask)


@each(IN_FRONT)
def test_virtual_tokens_generate_with_a_cache_what_they_generate_without(config):
    assert_cached_equals_uncached(adapt(config), tiny_ids(1, 9))


@pytest.mark.proves(tool="peft", what="prompt tuning and p-tuning of left-padded rows, in `generate`")
@pytest.mark.parametrize("config", IN_FRONT.values(), ids=IN_FRONT)
def test_virtual_tokens_before_pads_generate_what_each_row_does_alone(config):
    model, input_ids = adapt(config), tiny_ids(2, 9)
    mask = torch.ones_like(input_ids)
    mask[0, :4] = 0
    tokens = greedy(model, input_ids, attention_mask=mask)
    assert torch.equal(tokens[:1, 9:], greedy(model, input_ids[:1, 4:])[:, 5:])
    assert torch.equal(tokens[1:, 9:], greedy(model, input_ids[1:])[:, 9:])


@pytest.mark.proves(tool="peft", what="prefix tuning")
def test_prefix_tuning_is_refused(refused):
    with refused(TypeError, "Prefix tuning passes such a cache"):
        adapt(peft.PrefixTuningConfig(num_virtual_tokens=3))(tiny_ids(1, 9))


@pytest.mark.proves(tool="peft", what="LoRA without `target_modules`: `q_proj` and `v_proj`, as for Llama")
def test_an_adapter_without_targets_is_that_of_llama():
    assert adapt(peft.LoraConfig()).peft_config["default"].target_modules == {"q_proj", "v_proj"}


@pytest.mark.proves(tool="peft", what="`add_adapter` of transformers 5.24, for any model")
def test_transformers_refuses_this_release_of_peft(refused):
    with refused(ValueError, "version of PEFT"):
        tiny_model().add_adapter(peft.LoraConfig(target_modules="all-linear"))


@pytest.mark.proves(tool="peft", what="several adapters: switched and disabled")
@torch.inference_mode()
def test_adapters_are_switched_on_and_off():
    input_ids = tiny_ids(2, 9)
    config = peft.LoraConfig(target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(tiny_model(num_loops=3), config, adapter_name="first").eval()
    model.add_adapter("second", config)
    first = model(input_ids).logits
    model.set_adapter("second")
    assert not torch.allclose(model(input_ids).logits, first, atol=1e-2)
    with model.disable_adapter():
        assert torch.equal(model(input_ids).logits, tiny_model(num_loops=3)(input_ids).logits)


@pytest.mark.proves(tool="peft", what="LoRA on `PLTForSequenceClassification`, whose scores are trained too")
def test_a_classifier_is_adapted(tmp_path):
    model = PLTForSequenceClassification(fresh_model(num_loops=3).config)
    model = get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", target_modules="all-linear"))
    score = model.base_model.model.score
    assert isinstance(score.modules_to_save["default"], nn.Linear)
    input_ids, labels = tiny_ids(8, 9), torch.arange(8) % 2
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    curve = []
    for _ in range(10):
        loss = model(input_ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        curve.append(loss.item())
    assert curve[-1] < 0.7 * curve[0]
    model.eval().save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(PLTForSequenceClassification(model.config).eval(), tmp_path)
    assert again.base_model.model.score.modules_to_save["default"].weight.equal(
        score.modules_to_save["default"].weight
    )
