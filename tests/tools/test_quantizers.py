# SPDX-License-Identifier: Apache-2.0
"""Quantizers replace the linear layers that they replace in a Llama, and nothing else.

Looked at are types and bytes: a quantizer that does nothing gives the right logits.
"""

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from greedy import assert_cached_equals_uncached
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from tiny import EXPERTS, randomize, tiny_ids, tiny_model
from torch import Tensor, nn
from train_tiny import losses, train
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    HqqConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    QuantoConfig,
    TorchAoConfig,
)

SIZES = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_hidden_layers": 2}
NUM_PROJECTIONS = 7 * SIZES["num_hidden_layers"]
NUM_WEIGHTS = SIZES["num_hidden_layers"] * 128 * (128 + 64 + 64 + 128 + 3 * 256)
WHY = "needs the extra `tools`"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A PLT and a Llama of the same sizes."""
    folder = tmp_path_factory.mktemp("quantizers")
    config = LlamaConfig(vocab_size=61, num_attention_heads=4, num_key_value_heads=2, **SIZES)
    models = {"plt": tiny_model(num_loops=3, **SIZES), "llama": randomize(LlamaForCausalLM(config))}
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return {name: folder / name for name in models}


def load(folder: Path, **kwargs) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, **kwargs).eval()


def bitsandbytes(folder: Path, **kwargs) -> PreTrainedModel:
    pytest.importorskip("bitsandbytes", reason=WHY)
    return load(folder, quantization_config=BitsAndBytesConfig(**kwargs))


def bitsandbytes_4bit(folder: Path) -> PreTrainedModel:
    return bitsandbytes(folder, load_in_4bit=True, bnb_4bit_quant_type="nf4")


def bitsandbytes_8bit(folder: Path) -> PreTrainedModel:
    return bitsandbytes(folder, load_in_8bit=True)


def torchao_config(folder: Path) -> PreTrainedModel:
    quantization = pytest.importorskip("torchao.quantization", reason=WHY)
    return load(folder, quantization_config=TorchAoConfig(quantization.Int8WeightOnlyConfig()))


def torchao_quantize(folder: Path) -> PreTrainedModel:
    quantization = pytest.importorskip("torchao.quantization", reason=WHY)
    model = load(folder)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


def quanto_config(folder: Path) -> PreTrainedModel:
    pytest.importorskip("optimum.quanto", reason=WHY)
    return load(folder, quantization_config=QuantoConfig(weights="int8"))


def quanto_freeze(folder: Path) -> PreTrainedModel:
    quanto = pytest.importorskip("optimum.quanto", reason=WHY)
    model = load(folder)
    quanto.quantize(model, weights=quanto.qint8)
    quanto.freeze(model)
    return model


def hqq_8bit(folder: Path) -> PreTrainedModel:
    base = pytest.importorskip("hqq.models.hf.base", reason=WHY)
    from hqq.core.quantize import BaseQuantizeConfig

    model, config = load(folder), BaseQuantizeConfig(nbits=8, group_size=64)
    base.AutoHQQHFModel.quantize_model(model, config, compute_dtype=torch.float32, device="cpu")
    return model


def torch_dynamic(folder: Path) -> PreTrainedModel:
    return torch.ao.quantization.quantize_dynamic(load(folder), {nn.Linear})


class Quantizer(NamedTuple):
    tool: str
    what: str
    quantize: Callable[[Path], PreTrainedModel]
    kind: str  # what it makes of a linear layer, or of its weight
    bytes_per_weight: float = 1
    rounding: float = 1e-4  # of the logits, relative: some round what goes into a layer too


# with the bf16 instructions of AVX-512 it multiplies in bf16, where no gradient is wanted
BITSANDBYTES_4 = Quantizer(
    "bitsandbytes", "4 bits (NF4): `BitsAndBytesConfig`", bitsandbytes_4bit, "Linear4bit", 0.5625, rounding=0.1
)
BITSANDBYTES_8 = Quantizer(
    "bitsandbytes", "8 bits: `BitsAndBytesConfig`", bitsandbytes_8bit, "Linear8bitLt", rounding=0.2
)
TORCHAO_CONFIG = Quantizer("torchao", "int8 weights: `TorchAoConfig`", torchao_config, "Int8Tensor")
TORCHAO_QUANTIZE = Quantizer("torchao", "int8 weights: `quantize_`", torchao_quantize, "Int8Tensor")
QUANTO_CONFIG = Quantizer("optimum-quanto", "int8 weights: `QuantoConfig`", quanto_config, "QLinear")
QUANTO_FREEZE = Quantizer("optimum-quanto", "int8 weights: `quantize`, `freeze`", quanto_freeze, "QLinear")
HQQ = Quantizer("hqq", "8 bits, groups of 64: `AutoHQQHFModel`", hqq_8bit, "HQQLinear", 1.125)
DYNAMIC = Quantizer("torch", "dynamic int8: `quantize_dynamic`", torch_dynamic, "Linear", rounding=0.4)

EXACT = [
    BITSANDBYTES_4,
    TORCHAO_CONFIG,
    TORCHAO_QUANTIZE,
    QUANTO_CONFIG,
    QUANTO_FREEZE,
    HQQ,
]
LOOK_AT_ALL_ROWS = [BITSANDBYTES_8, DYNAMIC]
QUANTIZERS = EXACT + LOOK_AT_ALL_ROWS


def each(quantizers: list[Quantizer], **note: str) -> pytest.MarkDecorator:
    params = []
    for quantizer in quantizers:
        mark = pytest.mark.proves(tool=quantizer.tool, what=quantizer.what, **note)
        params.append(pytest.param(quantizer, marks=mark, id=f"{quantizer.tool} {quantizer.quantize.__name__}"))
    return pytest.mark.parametrize("quantizer", params)


def kinds(model: PreTrainedModel) -> dict[str, str]:
    """What each linear layer is: its own type, or if it is still a plain layer, its weight's."""
    return {
        name: type(module.weight if type(module) is nn.Linear else module).__name__
        for name, module in model.named_modules()
        if name.endswith(("_proj", "lm_head"))
    }


def stored_bytes(model: PreTrainedModel) -> int:
    """Bytes on disk: wrapped tensors in memory say that they have those of the floats they stand for."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell()


def distance(logits: Tensor, expected: Tensor) -> float:
    return ((logits - expected).norm() / expected.norm()).item()


@each(QUANTIZERS)
def test_what_a_quantizer_replaces_in_llama_it_replaces_in_a_plt(folders, quantizer):
    model = quantizer.quantize(folders["plt"])
    found = kinds(model)
    assert Counter(found.values()) >= Counter({quantizer.kind: NUM_PROJECTIONS})
    assert found == kinds(quantizer.quantize(folders["llama"]))


@each(QUANTIZERS)
def test_a_quantizer_leaves_gates_norms_and_embeddings_as_they_are(folders, quantizer):
    before, after = load(folders["plt"]).state_dict(), quantizer.quantize(folders["plt"]).state_dict()
    others = [name for name in before if "_proj" not in name and "lm_head" not in name]
    assert sum("plt_gate" in name for name in others) == 3 * SIZES["num_hidden_layers"]
    for name in others:
        assert type(after[name]) is Tensor, name
        assert after[name].dtype == torch.float32, name
        assert torch.equal(after[name], before[name]), name


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda quantizer: quantizer.quantize.__name__)
def test_experts_and_routers_stay_as_they_are(tmp_path, quantizer):
    routed = EXPERTS | {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 128}
    routed["shared_expert_gate"] = False  # of one row, which bitsandbytes' 4-bit product on a CPU does not take
    tiny_model(num_loops=2, **SIZES | routed).save_pretrained(tmp_path)
    before, model = load(tmp_path).state_dict(), quantizer.quantize(tmp_path)
    after = model.state_dict()
    plain = [name for name in before if ".experts." in name or name.endswith("mlp.gate.weight")]
    assert len(plain) == 3 * SIZES["num_hidden_layers"]
    for name in plain:
        assert type(after[name]) is Tensor and torch.equal(after[name], before[name]), name
    shared = {kind for name, kind in kinds(model).items() if ".shared_expert." in name}
    assert shared == {quantizer.kind}
    with torch.inference_mode():
        assert model(tiny_ids(2, 11)).logits.isfinite().all()


@each(QUANTIZERS)
def test_a_quantized_plt_is_as_much_smaller_as_a_llama(folders, quantizer):
    saved = {
        name: stored_bytes(load(folder)) - stored_bytes(quantizer.quantize(folder)) for name, folder in folders.items()
    }
    assert saved["plt"] == pytest.approx(saved["llama"], rel=0.01)  # how tensors are aligned in the file
    assert saved["plt"] > 0.9 * NUM_WEIGHTS * (4 - quantizer.bytes_per_weight)  # scales and names take some


@each(QUANTIZERS)
@torch.inference_mode()
def test_a_quantized_plt_equals_a_float_one_with_its_weights(folders, quantizer):
    model, twin, input_ids = quantizer.quantize(folders["plt"]), load(folders["plt"]), tiny_ids(2, 11)
    logits = model(input_ids).logits
    assert distance(logits, twin(input_ids).logits) > 1e-3, "nothing was quantized"
    for name in kinds(twin):
        layer = twin.get_submodule(name)
        # what a layer makes of the unit vectors is its weight
        layer.weight.copy_(model.get_submodule(name)(torch.eye(layer.in_features)).T)
    assert distance(logits, twin(input_ids).logits) < quantizer.rounding


@each(EXACT)
def test_a_quantized_plt_generates_with_its_cache_what_it_generates_without(folders, quantizer):
    assert_cached_equals_uncached(quantizer.quantize(folders["plt"]), tiny_ids(2, 11))


@each(
    LOOK_AT_ALL_ROWS,
    note="a call's rows are rounded together: cached logits differ from uncached, as Llama's, more with more loops",
)
@torch.inference_mode()
def test_inputs_that_are_rounded_together_give_cached_tokens_other_logits_as_in_llama(folders, quantizer):
    input_ids = tiny_ids(1, 11)
    for folder in folders.values():
        model = quantizer.quantize(folder)
        cache = model(input_ids[:, :-1], use_cache=True).past_key_values
        cached = model(input_ids[:, -1:], past_key_values=cache).logits[:, -1]
        assert 1e-4 < distance(cached, model(input_ids).logits[:, -1]) < 0.7


@each([BITSANDBYTES_4, BITSANDBYTES_8, TORCHAO_CONFIG])
def test_a_quantized_plt_is_saved_and_loaded_by_transformers(tmp_path, folders, quantizer):
    model, input_ids = quantizer.quantize(folders["plt"]), tiny_ids(2, 11)
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert kinds(again) == kinds(model)
    assert torch.equal(again(input_ids).logits, model(input_ids).logits)


@each([QUANTO_FREEZE])
def test_a_quantized_plt_is_saved_and_loaded_by_quanto(tmp_path, folders, quantizer):
    quanto = pytest.importorskip("optimum.quanto", reason=WHY)
    model, input_ids = quantizer.quantize(folders["plt"]), tiny_ids(2, 11)
    torch.save((model.state_dict(), quanto.quantization_map(model)), tmp_path / "model.pt")
    again = load(folders["plt"])
    quanto.requantize(again, *torch.load(tmp_path / "model.pt", weights_only=False))
    assert kinds(again) == kinds(model)
    assert torch.equal(again(input_ids).logits, model(input_ids).logits)


@pytest.mark.proves(tool="hqq", what="saved with `torch.save(model)`")
def test_a_quantized_plt_is_saved_and_loaded_by_torch(tmp_path, folders):
    model, input_ids = hqq_8bit(folders["plt"]), tiny_ids(2, 11)
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert kinds(again) == kinds(model)
    assert torch.equal(again(input_ids).logits, model(input_ids).logits)


@pytest.mark.proves(tool="hqq", what="saved with `save_quantized`, which leaves out the gates: its modules are leaves")
def test_what_hqq_saves_itself_lacks_the_gates(tmp_path, folders, refused):
    model = hqq_8bit(folders["plt"])
    hf = pytest.importorskip("hqq.models.hf.base", reason=WHY)
    hf.AutoHQQHFModel.save_quantized(model, str(tmp_path))
    again = hf.AutoHQQHFModel.from_quantized(str(tmp_path), compute_dtype=torch.float32, device="cpu")
    assert {name.split(".")[-2] for name, tensor in again.state_dict().items() if tensor.is_meta} == {"plt_gate"}
    with refused(RuntimeError, "device meta"):
        again(tiny_ids(1, 5))


@pytest.mark.proves(tool="hqq", what="`HqqConfig` of transformers")
def test_transformers_refuses_hqq_for_every_model(folders, refused):
    pytest.importorskip("hqq", reason=WHY)
    for folder in folders.values():
        with refused(NotImplementedError, "HQQ is not available yet"):
            load(folder, quantization_config=HqqConfig(nbits=8, group_size=64))


@pytest.mark.proves(tool="bitsandbytes", what="QLoRA: adapters (peft) on 4-bit layers train, are saved and loaded")
def test_qlora_trains_on_4_bit_layers(tmp_path, folders):
    base = prepare_model_for_kbit_training(bitsandbytes_4bit(folders["plt"]))
    config = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=64, target_modules="all-linear")
    model, input_ids = get_peft_model(base, config), tiny_ids(2, 11)
    adapted = [type(module.base_layer).__name__ for module in model.modules() if hasattr(module, "lora_A")]
    assert adapted == ["Linear4bit"] * NUM_PROJECTIONS
    curve = losses(train(model, tmp_path, 20))
    assert curve[-1] < 0.9 * curve[0]
    model.eval().save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(bitsandbytes_4bit(folders["plt"]), tmp_path / "adapter").eval()
    with torch.inference_mode():
        assert torch.equal(again(input_ids).logits, model(input_ids).logits)
    assert_cached_equals_uncached(again, input_ids)
