"""`plt bench products` times what it names: the same product by every way, of weights that are not in caches."""

import importlib.util
import json
import math
import statistics
import sys

import pytest
import torch

from command_plt.main import main
from laboratory.costs import product_times
from laboratory.costs.bandwidth import READ
from laboratory.costs.product_times import READING, TOGETHER, measure_count, measure_products
from laboratory.costs.products import BYTES, MAKERS
from measuring_plt.product_names import NEED_NOTHING, PRODUCTS, ROW_COUNTS

HAS_ONNXRUNTIME = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
# int8 rounds weights and rows to a 127th of the greatest; float16 weights are rounded to 11 bits
TOLERANCES = {"int8": 2e-2, "float16": 1e-3}
EAGER = [name for name in PRODUCTS if name not in ("frozen", "templates", "onnxruntime")]
needs_onnxruntime = pytest.mark.skipif(not HAS_ONNXRUNTIME, reason="onnx or onnxruntime is not installed")


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(128, 64, generator=generator) for _ in range(2)]


@pytest.mark.parametrize("name", [*EAGER, pytest.param("onnxruntime", marks=needs_onnxruntime)])
@pytest.mark.parametrize("count", [1, 3])
def test_every_way_computes_the_product_with_each_weight(name, count, weights):
    check(name, count, weights)


@pytest.mark.compile
@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this build of PyTorch has no MKL")
@pytest.mark.parametrize("name", ["frozen", pytest.param("templates", marks=pytest.mark.slow)])
def test_so_does_a_compiled_graph_with_packed_weights(name, weights):
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    with torch._inductor.config.patch(force_disable_caches=True):  # what was tuned before is not tuned again
        check(name, 3, weights)
    counters = torch._dynamo.utils.counters["inductor"]
    assert counters["mkldnn_linear_weight_pack_matcher_count"] == len(weights)
    assert bool(counters["select_algorithm_autotune"]) == (name == "templates")


@torch.no_grad()
def check(name, count, weights):
    rows = torch.randn(count, 64, generator=torch.Generator().manual_seed(1))
    outputs = [torch.as_tensor(output) for output in MAKERS[name](weights, rows)()]
    expected = [rows @ weight.T for weight in weights]
    scale = expected[0].abs().max().item()
    for output, right in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, right, rtol=0, atol=TOLERANCES.get(name, 1e-6) * scale)


@torch.no_grad()
def test_a_cpu_without_bfloat16_instructions_refuses_the_packed_product(monkeypatch, weights):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    rows = torch.randn(2, 64, dtype=torch.bfloat16)
    with pytest.raises(NotImplementedError, match="instructions that this CPU lacks"):
        MAKERS["same"]([weight.bfloat16() for weight in weights], rows)


def test_weights_that_take_turns_fill_more_than_caches(monkeypatch):
    made = {}

    def maker(name):
        def make(weights, rows):
            assert len({weight.data_ptr() for weight in weights}) == len(weights)
            assert [tuple(weight.shape) for weight in weights] == [(2048, 1024)] * len(weights)
            assert not torch.equal(weights[0], weights[1])
            made[name] = len(weights)
            return lambda: []

        return make

    monkeypatch.setattr(product_times, "MAKERS", {name: maker(name) for name in ("linear", *BYTES)})
    sizes = {"linear": 2048 * 1024 * 4, "float16": 2048 * 1024 * 2, "int8": 2048 * 1024}
    measure_count(sizes, torch.empty(2048, 1024), 2, 1)
    assert made == {name: math.ceil(TOGETHER / size) for name, size in sizes.items()} and made["int8"] == 64


def test_the_table_has_medians_of_one_product_and_the_bound(monkeypatch):
    """Reading 268 MB takes 100 ms; samples of 4 and of 8 products take 3, 1, 2 times that many ms, times rows."""
    times = {READING: [90.0, 100.0, 200.0]}

    def take_turns(samples, rounds, description):
        count = int(description.split()[2])
        made = dict(zip(samples, [1, 4, 8], strict=True))
        return [
            {name: times[READING][i] if name == READING else made[name] * factor * count for name in samples}
            for i, factor in enumerate([3.0, 1.0, 2.0])
        ]

    monkeypatch.setattr(product_times, "take_turns", take_turns)
    monkeypatch.setattr(product_times, "TOGETHER", 4 * 128 * 64 * 4)
    monkeypatch.setattr(product_times, "MAKERS", dict.fromkeys(MAKERS, lambda weights, rows: None))
    table = measure_products(["linear", "float16"], torch.empty(128, 64), [1, 5], 3)
    assert table.columns.tolist() == [
        *("product", "what", "weight, MB", "bound, ms"),
        *("ms, 1 row", "ms, 1 row, by round", "ms, 5 rows", "ms, 5 rows, by round"),
    ]
    assert table["product"].tolist() == ["linear", "float16"]
    assert table["weight, MB"].tolist() == [128 * 64 * 4 / 1e6, 128 * 64 * 2 / 1e6]
    bounds = [size * 0.1e3 / READ for size in (128 * 64 * 4, 128 * 64 * 2)]
    assert table["bound, ms"].tolist() == pytest.approx(bounds)
    assert table["ms, 1 row"].tolist() == [2, 2] and table["ms, 5 rows"].tolist() == [10, 10]
    assert table["ms, 5 rows, by round"].tolist() == [[15, 5, 10]] * 2


def run(folder, *options):
    main(["bench", "products", "--size", "tiny", "--output", str(folder), *options])


def test_the_command_writes_what_it_prints(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(product_times, "TOGETHER", 2**17)
    monkeypatch.setenv("FBGEMM_ENABLE_INSTRUCTIONS", "AVX2")
    options = ("--products", "int8", "linear", "--row-counts", "1", "2", "--rounds", "3", "--threads", "1")
    run(tmp_path / "new", *options)
    results = json.loads((tmp_path / "new/products.json").read_text())
    setting, lines = results["setting"], results["products"]
    assert [line["product"] for line in lines] == ["linear", "int8"]
    for line in lines:
        for label in ("ms, 1 row", "ms, 2 rows"):
            rounds = line[f"{label}, by round"]
            assert len(rounds) == 3 and line[label] == statistics.median(rounds) > 0
    assert lines[0]["bound, ms"] == pytest.approx(4 * lines[1]["bound, ms"])
    assert (setting["weight"], setting["dtype"], setting["cpu_threads"]) == ([128, 64], "float32", 1)
    assert setting["FBGEMM_ENABLE_INSTRUCTIONS"] == "AVX2", "what instructions were left out"
    written = (tmp_path / "new/products.md").read_text()
    assert written[written.index("## Products") :] in capsys.readouterr().out


def test_by_default_the_products_are_those_that_need_no_further_package(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(product_times, "measure", lambda *args: asked.append(args[1:-1]))
    run(tmp_path)
    run(tmp_path, "--dtype", "bfloat16", "--products", "onnxruntime")
    assert asked == [
        (list(NEED_NOTHING), "tiny", "float32", list(ROW_COUNTS), 9, None),
        (["onnxruntime"], "tiny", "bfloat16", list(ROW_COUNTS), 9, None),
    ]
    assert set(PRODUCTS) == set(MAKERS) == {*NEED_NOTHING, "onnxruntime"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--products fast", "templates, got 'fast'"),
        ("--dtype float16", "must be one of float32, bfloat16, got 'float16'"),
        ("--row-counts 1 0", "must be an integer of at least 1, got '0'"),
        ("--products same --dtype bfloat16", "plt: bfloat16 weights need instructions that this CPU lacks"),
        ("--products onnxruntime", "The product `onnxruntime` needs the extra `tools`."),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SystemExit) as error:
        run(tmp_path, *options.split())
    text = error.value.code if isinstance(error.value.code, str) else capsys.readouterr().err
    assert message in text and text.strip().count("\n") == 0
    assert not list(tmp_path.iterdir())


@needs_onnxruntime
def test_onnx_runtime_is_for_float32():
    with pytest.raises(ValueError, match="in float32, got torch.bfloat16"):
        MAKERS["onnxruntime"]([], torch.empty(1, 64, dtype=torch.bfloat16))
