"""Swapped products: an explicit call, the same numbers, and nothing of it in a saved folder."""

import copy
from functools import partial

import pytest
import torch
from tiny import tiny_ids, tiny_model

from modeling_plt.few_rows import MOST_ROWS, MOST_ROWS_OF_THREADS, few_rows_linear, speed_up_few_rows


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"], autouse=True)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def avx2(monkeypatch):
    """The products are right on every CPU; whether they are fast is asked of AVX2 alone."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")


@pytest.mark.parametrize("bias", [False, True])
def test_few_rows_equal_many(threads, monkeypatch, bias):
    torch.manual_seed(0)
    plain = torch.nn.Linear(24, 10, bias=bias)
    layer = torch.nn.Linear(24, 10, bias=bias)
    layer.load_state_dict(plain.state_dict())
    layer.forward = partial(few_rows_linear, layer)
    swapped = []
    monkeypatch.setattr(
        "modeling_plt.few_rows.linear", lambda *args: swapped.append(len(args[1])) or args[0] @ args[1].T
    )
    for num_rows in (1, 2, 3, 5, 9, 17, MOST_ROWS_OF_THREADS, MOST_ROWS_OF_THREADS + 1):
        rows = torch.randn(1, num_rows, 24)
        torch.testing.assert_close(layer(rows), plain(rows), rtol=0, atol=1e-6)  # summation order
    assert swapped == ([2, 4] if threads == 1 else [2, 4, 8, 16, 17, 32])
    assert MOST_ROWS == 4


def test_a_model_decodes_the_same_and_saves_the_same(avx2, tmp_path):
    model, plain, input_ids = tiny_model(num_loops=3), tiny_model(num_loops=3), tiny_ids(1, 12)
    assert speed_up_few_rows(model) == 2 * 7 + 1
    with torch.no_grad():
        cache = model(input_ids[:, :11], use_cache=True).past_key_values
        logits = model(input_ids[:, 11:], past_key_values=cache).logits
        torch.testing.assert_close(logits, plain(input_ids).logits[:, 11:], rtol=0, atol=2e-5)  # summation order
    model.save_pretrained(tmp_path / "fast")
    plain.save_pretrained(tmp_path / "plain")
    saved = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("fast", "plain")]
    assert saved[0] == saved[1] and "few_rows.py" not in saved[0]


def test_quantizers_still_find_the_layers(avx2):
    model = tiny_model(num_loops=3)
    names = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear]
    speed_up_few_rows(model)
    assert [name for name, module in model.named_modules() if type(module) is torch.nn.Linear] == names
    copied = copy.deepcopy(model)
    layer = copied.model.layers[0].mlp.up_proj
    with torch.no_grad():
        layer.weight.zero_()
    assert layer(torch.ones(1, 2, 32)).abs().max() == 0, "a copy computes with its own weights"
    assert model.model.layers[0].mlp.up_proj(torch.ones(1, 2, 32)).abs().max() > 0


def test_where_it_would_not_win_it_is_refused(avx2, monkeypatch):
    with pytest.raises(ValueError, match="float32 on a CPU"):
        speed_up_few_rows(tiny_model().double())
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    with pytest.raises(ValueError, match="AVX2 only, this one has AVX512"):
        speed_up_few_rows(tiny_model())
