"""Few rows give what many give, whichever way they are computed."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_ids, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_plt.linear_plt import MOST_ROWS, MOST_SUMS, PLTLinear

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "size, outputs",
    [(24, 10), (8192, 10), (5633, 10), (24, 11)],
    ids=["one block", "blocks", "no blocks", "odd outputs"],
)
def test_few_rows_equal_many(compiled, dtype, bias, size, outputs):
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(0)
    layer = PLTLinear(size, outputs, bias=bias)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / size**0.5)
    layer = layer.to(dtype)
    run = torch.compile(layer, fullgraph=True, dynamic=False) if compiled else layer
    for shape in ((1, 1), (2, 1), (1, 3), (MOST_SUMS,), (MOST_SUMS + 1,), (MOST_ROWS,), (MOST_ROWS + 1,)):
        inputs = torch.randn(*shape, size, generator=generator).to(dtype)
        expected = torch.nn.functional.linear(
            inputs.double(), layer.weight.double(), layer.bias.double() if bias else None
        )
        output = run(inputs)
        assert output.dtype == dtype and output.shape == (*shape, outputs)
        torch.testing.assert_close(output.double(), expected, rtol=0, atol=TOLERANCE[dtype])


def test_a_chain_of_products_reads_rows_in_order():
    """The kernel puts its numbers out column by column; as rows of the next product that would cost twice the time."""
    first, second = PLTLinear(64, 48, bias=False), PLTLinear(48, 64, bias=False)
    seen = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.mm.default:
                seen.append(args[1].stride())
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Products():
        second(torch.nn.functional.silu(first(torch.randn(1, 2, 64))))
    assert seen == [(1, 64), (1, 48)]


def test_other_kinds_of_weights_go_to_torch(monkeypatch):
    """A quantized weight is a tensor subclass, which knows `linear` but not how its numbers lie."""

    class Quantized(torch.Tensor):
        pass

    layer = PLTLinear(8, 4, bias=False)
    layer.weight = torch.nn.Parameter(layer.weight.data.as_subclass(Quantized))
    called = []
    monkeypatch.setattr("modeling_plt.linear_plt.linear", lambda *args: called.append(args) or torch.zeros(2, 4))
    layer(torch.randn(2, 8))
    assert len(called) == 1


def test_adapters_apply_to_few_rows_as_to_many():
    model = tiny_model(num_loops=2)
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False)).eval()
    input_ids = tiny_ids(1, 12)
    with torch.no_grad():
        expected = adapted(input_ids=input_ids).logits
        cache = adapted(input_ids=input_ids[:, :11]).past_key_values
        logits = adapted(input_ids=input_ids[:, 11:], past_key_values=cache).logits
    torch.testing.assert_close(logits, expected[:, 11:], rtol=0, atol=2e-5)  # summation order


def test_gradients_of_few_rows_equal_those_of_many():
    layer, inputs = PLTLinear(16, 4), torch.randn(3, 16)
    gradients = []
    for rows in (inputs, inputs.repeat(MOST_ROWS, 1)):
        layer.zero_grad()
        layer(rows)[:3].square().sum().backward()
        gradients.append(layer.weight.grad)
    torch.testing.assert_close(*gradients)
