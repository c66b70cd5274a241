# SPDX-License-Identifier: Apache-2.0
"""Adapters of peft on a PLT: what is trained, saved, merged and generated."""

import peft
import pytest
import torch
from greedy import assert_cached_equals_uncached, greedy
from peft import PeftModel, get_peft_model
from tiny import randomize, tiny_ids, tiny_model
from torch import nn
from train_tiny import fresh_model, losses, train
from transformers import LlamaConfig, LlamaForCausalLM
from x_lora import x_lora

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
# the release's other methods, with their default modules, which are Llama's
MERGED = {
    "AdaLoRA": peft.AdaLoraConfig(total_step=100),
    "AdaMSS": peft.AdamssConfig(),
    "BOFT": peft.BOFTConfig(),
    "C3A": peft.C3AConfig(block_size=4),
    "DEFT": peft.DeftConfig(),
    "DeLoRA": peft.DeloraConfig(r=4),
    "FourierFT": peft.FourierFTConfig(n_frequency=10),
    "FRoD": peft.FrodConfig(),
    "GLoRA": peft.GloraConfig(),
    "GraLoRA": peft.GraloraConfig(r=4, gralora_k=2),
    "HiRA": peft.HiraConfig(r=4),
    "HRA": peft.HRAConfig(r=4),
    "MiSS": peft.MissConfig(r=4),
    "OSF": peft.OSFConfig(),
    "PEANuT": peft.PeanutConfig(),
    "PSOFT": peft.PsoftConfig(r=4, psoft_alpha=4),
    "PVeRA": peft.PveraConfig(r=4),
    "RandLoRA": peft.RandLoraConfig(r=4),
    "RoAd": peft.RoadConfig(group_size=4),
    "SHiRA": peft.ShiraConfig(r=1),
    "SuperTuning": peft.SupertuningConfig(),
    "TinyLoRA": peft.TinyLoraConfig(),
    "trainable tokens": peft.TrainableTokensConfig(token_indices=[3, 4, 5]),
    "UniLoRA": peft.UniLoraConfig(theta_d_length=64),
    "VB-LoRA": peft.VBLoRAConfig(r=4, num_vectors=8, vector_length=8, topk=2),
    "WaveFT": peft.WaveFTConfig(n_frequency=16),
}
UNMERGED = {
    "BEFT, which is not merged where there are no biases": peft.BeftConfig(),
    "Poly, which is not merged": peft.PolyConfig(r=4, n_tasks=2),
}
LILY = {"Lily, which is not merged": peft.LilyConfig(r=4, target_modules=PROJECTIONS["target_modules"])}
IN_FRONT = {
    "prompt tuning, single rows": peft.PromptTuningConfig(num_virtual_tokens=3),
    "p-tuning, single rows": peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=16),
}
OTHERS_IN_FRONT = {
    "multitask prompt tuning, single rows": peft.MultitaskPromptTuningConfig(num_virtual_tokens=3, num_tasks=2),
    "CPT, single rows": peft.CPTConfig(
        task_type="CAUSAL_LM", cpt_token_ids=[3, 4], cpt_mask=[1, 1], cpt_tokens_type_mask=[1, 2]
    ),
}
ALL = INSIDE | MERGED | UNMERGED | LILY | IN_FRONT | OTHERS_IN_FRONT
REFUSED = {
    "prefix tuning": (peft.PrefixTuningConfig(num_virtual_tokens=3), TypeError, "Prefix tuning passes such a cache"),
    "Cartridge": (peft.CartridgeConfig(num_virtual_tokens=4), TypeError, "passes such a cache"),
    "Shadow": (peft.ShadowConfig(r=2), NotImplementedError, "`ShadowCarrier`"),
    "adaption prompt": (
        peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=1),
        ValueError,
        "Unsupported model type",
    ),
}


def each(configs: dict) -> pytest.MarkDecorator:
    params = [
        pytest.param(config, marks=pytest.mark.proves(tool="peft", what=name), id=name)
        for name, config in configs.items()
    ]
    return pytest.mark.parametrize("config", params)


def adapt(config: peft.PeftConfig, **overrides) -> PeftModel:
    """An adapted model whose adapters say something."""
    config.task_type = "CAUSAL_LM"
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(num_loops=3, **overrides), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tiny_llama() -> LlamaForCausalLM:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return randomize(LlamaForCausalLM(LlamaConfig(vocab_size=61, **sizes)))


def task_of(config: peft.PeftConfig, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    is_asked = isinstance(config, peft.PolyConfig | peft.MultitaskPromptTuningConfig)
    return {"task_ids": torch.zeros(len(input_ids), dtype=torch.long)} if is_asked else {}


def test_every_method_of_the_release_is_tried():
    tried = [*ALL.values(), *(config for config, _, _ in REFUSED.values())]
    assert {config.peft_type for config in tried} | {peft.PeftType.XLORA} == set(peft.PeftType)


@each(INSIDE | IN_FRONT)
def test_an_adapter_learns_and_the_rest_stays(tmp_path, config):
    model = adapt(config)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    curve = losses(train(model, tmp_path, 10))
    assert curve[-1] < curve[0]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


@each(ALL)
@torch.inference_mode()
def test_an_adapter_is_saved_and_loaded(tmp_path, config):
    model, input_ids = adapt(config), tiny_ids(1, 9)
    task = task_of(config, input_ids)
    logits = model(input_ids, **task).logits
    assert not torch.allclose(logits[:, -9:], tiny_model(num_loops=3)(input_ids).logits, atol=1e-2)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_model(num_loops=3), tmp_path).eval()
    torch.testing.assert_close(again(input_ids, **task).logits, logits, rtol=0, atol=1e-5)


@each(MERGED | UNMERGED | LILY | OTHERS_IN_FRONT)
def test_a_step_of_training_moves_the_adapter_and_nothing_else(config):
    model, input_ids = adapt(config).train(), tiny_ids(4, 9)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1.0)
    given = {"input_type_mask": torch.full_like(input_ids, 4)} if isinstance(config, peft.CPTConfig) else {}
    model(input_ids, labels=input_ids, **given, **task_of(config, input_ids)).loss.backward()
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved and all(model.get_parameter(name).requires_grad for name in moved)
    of_base = {name for name, _ in tiny_model(num_loops=3).named_parameters()}
    assert not [
        name for name in moved if name.removeprefix("base_model.model.").removeprefix("base_model.") in of_base
    ]


@each(INSIDE | MERGED)
@torch.inference_mode()
def test_an_adapter_is_merged(config):
    model, input_ids = adapt(config), tiny_ids(2, 9)
    logits = model(input_ids).logits
    merged = model.merge_and_unload()
    assert type(merged).__name__ == "PLTForCausalLM"
    torch.testing.assert_close(merged(input_ids).logits, logits, rtol=0, atol=1e-3)


@each(INSIDE | MERGED | UNMERGED)
def test_an_adapted_model_generates_with_its_cache_what_it_generates_without(config):
    input_ids, mask = tiny_ids(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    assert_cached_equals_uncached(adapt(config), input_ids, attention_mask=mask, **task_of(config, input_ids))


@each(ALL)
def test_an_adapted_model_generates_in_one_pass_what_it_generates_in_turn(config):
    input_ids = tiny_ids(1, 9)
    tokens = [greedy(adapt(config, one_pass=one), input_ids, **task_of(config, input_ids)) for one in (True, False)]
    assert torch.equal(*tokens)


@pytest.mark.proves(
    tool="peft",
    what=next(iter(LILY)),
    note="a call's tokens are averaged together: cached logits differ from uncached, as Llama's",
)
@pytest.mark.parametrize("build", [tiny_llama, tiny_model], ids=["Llama", "PLT"])
@torch.inference_mode()
def test_lily_gives_cached_tokens_other_logits_as_in_llama(build):
    config = peft.LilyConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_weights=False)
    model, input_ids = get_peft_model(build(), config).eval(), tiny_ids(1, 9)
    cache = model(input_ids[:, :-1], use_cache=True).past_key_values
    cached = model(input_ids[:, -1:], past_key_values=cache).logits[:, -1]
    assert not torch.allclose(cached, model(input_ids).logits[:, -1], atol=1e-3)


@each(IN_FRONT | OTHERS_IN_FRONT)
def test_virtual_tokens_generate_with_a_cache_what_they_generate_without(config):
    input_ids = tiny_ids(1, 9)
    assert_cached_equals_uncached(adapt(config), input_ids, **task_of(config, input_ids))


@pytest.mark.proves(tool="peft", what="prompt tuning and p-tuning of left-padded rows, in `generate`")
@pytest.mark.parametrize("config", IN_FRONT.values(), ids=IN_FRONT)
def test_virtual_tokens_before_pads_generate_what_each_row_does_alone(config):
    model, input_ids = adapt(config), tiny_ids(2, 9)
    mask = torch.ones_like(input_ids)
    mask[0, :4] = 0
    tokens = greedy(model, input_ids, attention_mask=mask)
    assert torch.equal(tokens[:1, 9:], greedy(model, input_ids[:1, 4:])[:, 5:])
    assert torch.equal(tokens[1:, 9:], greedy(model, input_ids[1:])[:, 9:])


@each(REFUSED)
def test_what_a_plt_or_peft_cannot_do_is_refused(refused, config):
    config, error, sentence = config
    with refused(error, sentence):
        adapt(config)(tiny_ids(1, 9))


@pytest.mark.proves(tool="peft", what="X-LoRA, without a cache, as PEFT asks; pads on the left only")
def test_x_lora_generates_what_its_logits_say_and_trains_its_weights_only(tmp_path):
    model, input_ids = x_lora(tmp_path), tiny_ids(2, 9)
    tokens = greedy(model, input_ids)
    assert torch.equal(model(tokens).logits[:, 8:-1].argmax(dim=-1), tokens[:, 9:])
    model.train()(input_ids, labels=input_ids).loss.backward()
    assert all(
        "xlora_classifier" in name for name, parameter in model.named_parameters() if parameter.grad is not None
    )


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
