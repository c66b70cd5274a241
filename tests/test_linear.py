"""Few rows give what many give, whichever way they are computed."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_ids, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_plt.linear_plt import MOST_SUMS, MOST_SWAPPED, MOST_SWAPPED_BY_THREADS, PLTLinear, product_of_few

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 0.05}
NUM_ROWS = {  # by whether code is compiled
    True: (1, 2, MOST_SUMS, MOST_SUMS + 1),
    False: (1, 2, 3, 5, 9, MOST_SWAPPED_BY_THREADS, MOST_SWAPPED_BY_THREADS + 1),
}


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "size, outputs, bias",
    [(24, 10, True), (8192, 10, False), (5633, 10, True), (24, 11, False)],
    ids=["one block", "blocks", "no blocks", "odd outputs"],
)
def test_few_rows_equal_many(two_threads, compiled, dtype, size, outputs, bias):
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(0)
    layer = PLTLinear(size, outputs, bias=bias)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / size**0.5)
    layer = layer.to(dtype)
    run = torch.compile(layer, fullgraph=True, dynamic=False) if compiled else layer
    for shape in ((1, 1), (1, 3), *((num_rows,) for num_rows in NUM_ROWS[compiled][1:])):
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


def test_on_one_thread_fewer_products_are_swapped(two_threads):
    swapped = [n for n in range(1, 40) if product_of_few(n, torch.float32) is not None]
    assert swapped == list(range(2, MOST_SWAPPED_BY_THREADS + 1))
    torch.set_num_threads(1)
    swapped = [n for n in range(1, 40) if product_of_few(n, torch.float32) is not None]
    assert swapped == list(range(2, MOST_SWAPPED + 1))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("bias", [False, True])
def test_under_autocast_the_output_is_that_of_torch(two_threads, compiled, bias):
    """Its dtype too, whatever the number of rows."""
    torch._dynamo.reset()
    layer = PLTLinear(16, 8, bias=bias)
    run = torch.compile(layer, dynamic=False) if compiled else layer
    for num_rows in NUM_ROWS[compiled]:
        inputs = torch.randn(num_rows, 16)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            expected = torch.nn.functional.linear(inputs, layer.weight, layer.bias)
            torch.testing.assert_close(run(inputs), expected, rtol=0, atol=0.01)


def test_gradients_of_few_rows_equal_those_of_many(two_threads):
    layer, inputs = PLTLinear(16, 4), torch.randn(3, 16)
    gradients = []
    for rows in (inputs, inputs.repeat(MOST_SWAPPED_BY_THREADS, 1)):
        layer.zero_grad()
        layer(rows)[:3].square().sum().backward()
        gradients.append(layer.weight.grad)
    torch.testing.assert_close(*gradients)
