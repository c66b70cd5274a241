"""Packed weights: the same numbers in every form, what they refuse, and that they leave without a trace."""

import copy

import pytest
import torch
from tiny import every_expert, tiny_ids, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

from modeling_plt import PLTStaticCache
from modeling_plt.packed import PackedLinear, pack_weights, unpack_weights
from modeling_plt.packed_products import FEW_ROWS, Float16Product, Int8Product, SameDtypeProduct

FAMILIES = ("dense", "experts", "core")

FORMS = {None: SameDtypeProduct, torch.float16: Float16Product, torch.int8: Int8Product}
has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()


def rounded_model(**options):
    """A model whose weights float16 holds."""
    model = tiny_model(num_loops=3, **options).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float16).to(parameter.dtype)
    return model


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 17, 300])
@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
@pytest.mark.parametrize("form", FORMS.values(), ids=lambda form: form.__name__)
def test_a_product_is_that_of_the_plain_weight(threads, monkeypatch, form, capability, num_rows):
    torch.manual_seed(0)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)  # rows are padded on one
    weight, rows = torch.randn(48, 40).to(torch.float16).float(), torch.randn(num_rows, 40)
    product = form(weight)
    expected = rows @ weight.T
    scale = expected.abs().max().item()
    torch.testing.assert_close(product(rows), expected, rtol=0, atol=2e-2 * scale if form is Int8Product else 1e-5)
    if form is not Int8Product:
        assert product.is_exact and torch.equal(product.unpack(), weight)


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_int8_adds_the_greatest_products_without_overflow(monkeypatch, capability):
    """On this CPU; one without the instructions adds two products in 16 bits, and takes inputs of fewer bits."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    product = Int8Product(torch.ones(16, 64))
    assert product.steps == 127 or capability == "AVX2" or not torch.cpu._is_vnni_supported()
    torch.testing.assert_close(product(torch.ones(2, 64)), torch.full((2, 16), 64.0), rtol=1e-5, atol=0)


def test_int8_rounds_a_row_alone_as_among_others():
    torch.manual_seed(0)
    product, rows = (
        Int8Product(torch.randn(48, 40)),
        torch.randn(FEW_ROWS, 40) * torch.tensor([[1], [50], [0.01], [0]]),
    )
    together = product(rows)
    alone = torch.cat([product(row[None]) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=0)
    assert (together[3] == 0).all()


def decoded(model, input_ids):
    """Logits of each position: a prefill of all but four tokens, then these one by one."""
    output = model(input_ids[:, :-4], use_cache=True)
    logits = [output.logits]
    for position in range(input_ids.shape[1] - 4, input_ids.shape[1]):
        output = model(input_ids[:, position : position + 1], past_key_values=output.past_key_values)
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("dtype", FORMS, ids=str)
@torch.no_grad()
def test_a_packed_model_decodes_as_the_plain_one_and_as_without_a_cache(dtype, batch_size):
    model, input_ids = rounded_model(attention_bias=True, seed=1, **every_expert()), tiny_ids(batch_size, 12)
    expected = model(input_ids).logits
    memory = pack_weights(model, dtype)
    assert all(type(module) is not torch.nn.Linear for module in model.modules())
    logits = decoded(model, input_ids)
    # int8 moves logits, but equally with and without a cache; rounding steps may fall either way
    torch.testing.assert_close(logits, model(input_ids).logits, rtol=0, atol=2e-2 if dtype is torch.int8 else 2e-5)
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.2 if dtype is torch.int8 else 2e-5)
    assert memory.after * {None: 1, torch.float16: 2, torch.int8: 4}[dtype] == memory.before
    assert memory.kept == 0


@pytest.mark.skipif(not has_bf16, reason="oneDNN has no product in bfloat16 for this CPU")
@torch.no_grad()
def test_bfloat16_is_packed_in_bfloat16():
    model, input_ids = rounded_model().bfloat16(), tiny_ids(1, 12)
    expected = decoded(model, input_ids)
    pack_weights(model)
    assert next(module.product.packed for module in model.modules() if isinstance(module, PackedLinear)).is_mkldnn
    torch.testing.assert_close(decoded(model, input_ids), expected, rtol=0, atol=0.1)


@torch.no_grad()
def test_bfloat16_without_its_instructions_is_sent_to_float16(monkeypatch):
    model, input_ids = tiny_model(num_loops=2).eval().bfloat16(), tiny_ids(1, 12)
    expected = decoded(model, input_ids)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(NotImplementedError, match="as `torch.float16`"):
        pack_weights(model)
    pack_weights(model, torch.float16)
    assert all(module.product.is_exact for module in model.modules() if isinstance(module, PackedLinear))
    torch.testing.assert_close(decoded(model, input_ids), expected, rtol=0, atol=0.1)


@torch.inference_mode()
def test_compiled_products_are_one_graph_in_every_form():
    products = [form(torch.randn(24, 24).to(torch.float16).float()) for form in FORMS.values()]

    def run(rows):
        for product in products:
            rows = product(rows).relu()
        return rows

    rows = torch.randn(2, 24)
    torch.testing.assert_close(torch.compile(run, fullgraph=True)(rows), run(rows), rtol=0, atol=1e-4)


@pytest.mark.slow
@torch.inference_mode()
def test_a_compiled_step_decodes_as_the_eager_one():
    model, input_ids = rounded_model(), tiny_ids(1, 12)
    pack_weights(model)
    expected = model(input_ids).logits[:, -1:]
    cache = PLTStaticCache(model.config, 16)
    model(input_ids[:, :-2], past_key_values=cache)
    step = torch.compile(model, fullgraph=True)
    for position in (-2, -1):
        logits = step(input_ids[:, [position]], past_key_values=cache).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=5e-5)  # summation order


def folder_of(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.float16], ids=str)
def test_packing_leaves_no_trace_in_a_saved_folder_and_is_undone(dtype, tied, tmp_path):
    model = rounded_model(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "plain")
    head = model.lm_head.weight
    memory = pack_weights(model, dtype)
    assert memory.kept == (head.nbytes if tied else 0)
    model.save_pretrained(tmp_path / "packed")
    assert folder_of(tmp_path / "packed") == folder_of(tmp_path / "plain")
    unpack_weights(model)
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
    model.save_pretrained(tmp_path / "undone")
    assert folder_of(tmp_path / "undone") == folder_of(tmp_path / "plain")
    model.to(torch.float64).train().load_state_dict(model.state_dict())
    model(tiny_ids(1, 4), labels=tiny_ids(1, 4)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8], ids=str)
def test_rounded_weights_cannot_be_had_back(dtype, tmp_path):
    model = tiny_model().eval()
    pack_weights(model, dtype)
    for ask in (unpack_weights, lambda model: model.save_pretrained(tmp_path / "model"), torch.nn.Module.state_dict):
        with pytest.raises(ValueError, match="load the model again"):
            ask(model)
    assert any(isinstance(module, PackedLinear) for module in model.modules())


def test_what_would_use_plain_weights_is_refused_before_anything_changes():
    model, other = rounded_model(), tiny_model(num_loops=3, seed=1)
    pack_weights(model)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for ask in (
        lambda: model.load_state_dict(other.state_dict()),
        lambda: model.to(torch.bfloat16),
        lambda: model.half(),
        lambda: model.to("meta"),
        lambda: model.train(),
        lambda: pack_weights(model),
    ):
        with pytest.raises(ValueError, match="packed"):
            ask()
    with pytest.raises(AttributeError, match="`weight` while its weights are packed"):
        _ = model.lm_head.weight
    with pytest.raises(RuntimeError, match="no gradients while"):
        model(tiny_ids(1, 4), labels=tiny_ids(1, 4)).loss.backward()
    model.to("cpu").float().eval()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert not model.training


def test_adapters_come_before_packing_and_are_merged():
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(tiny_model(), settings).eval()
    with pytest.raises(ValueError, match="merge the adapter"):
        pack_weights(adapted)
    merged = adapted.merge_and_unload()
    pack_weights(merged)
    with pytest.raises(ValueError, match="PackedLinear"):
        peft.get_peft_model(merged, settings)


def test_unusual_models_are_refused_whole():
    for model, match in (
        (tiny_model().double().eval(), "float32 or bfloat16 on a CPU, got `model.layers.0.self_attn.q_proj`"),
        (tiny_model().train(), r"call `model.eval\(\)` first"),
        (torch.nn.ReLU().eval(), "no `nn.Linear`"),
    ):
        with pytest.raises(ValueError, match=match):
            pack_weights(model)
    with pytest.raises(ValueError, match="must be None, `torch.float16` or `torch.int8`, got torch.bfloat16"):
        pack_weights(tiny_model().eval(), torch.bfloat16)
    model = tiny_model().eval()
    with torch.no_grad():
        model.lm_head.weight[3, 3] = 1e5
    with pytest.raises(ValueError, match="float16 holds weights up to 65504, got 100000 in `lm_head`"):
        pack_weights(model, torch.float16)
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
    with pytest.raises(ValueError, match="no packed weights"):
        unpack_weights(model)


@torch.no_grad()
def test_a_plain_model_of_transformers_is_packed_too():
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    model, input_ids = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4)).eval(), tiny_ids(1, 12)
    options = {"max_new_tokens": 8, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    expected = model.generate(input_ids, **options)
    pack_weights(model)
    found = model.generate(input_ids, **options)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=2e-5)


@torch.no_grad()
def test_a_copy_of_a_packed_model_is_packed_too():
    model, input_ids = rounded_model(), tiny_ids(1, 12)
    pack_weights(model)
    copied = copy.deepcopy(model)
    unpack_weights(model)
    with pytest.raises(ValueError, match="packed"):
        copied.half()
    expected = model(input_ids).logits
    torch.testing.assert_close(decoded(copied, input_ids), expected, rtol=0, atol=5e-5)  # summation order
    unpack_weights(copied)
    assert copied.lm_head.weight is not model.lm_head.weight
