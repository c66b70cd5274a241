# SPDX-License-Identifier: Apache-2.0
"""Programs made of a forward without a cache, run at other shapes than they were made at."""

from typing import NamedTuple

import pytest
import torch
from tiny import ABLATION_ROWS, tiny_ids, tiny_model
from torch import Tensor, nn
from torch.export import Dim


class Logits(nn.Module):
    """The forward as exporters like it: tensors in, one tensor out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids, attention_mask=attention_mask, use_cache=False).logits


class Inputs(NamedTuple):
    input_ids: Tensor
    attention_mask: Tensor


def left_padded(batch_size: int, length: int) -> Inputs:
    mask = torch.ones(batch_size, length, dtype=torch.long)
    mask[0, : length // 3] = 0
    return Inputs(tiny_ids(batch_size, length), mask)


MADE_AT = left_padded(2, 9)
RUN_AT = [left_padded(*shape) for shape in ((3, 17), (2, 4), (2, 2), (5, 31))]  # windows are of 4 tokens
SHAPES = {name: {0: Dim("batch", min=2, max=64), 1: Dim("length", min=2, max=512)} for name in Inputs._fields}


def assert_same_logits(program, model: nn.Module) -> None:
    for inputs in RUN_AT:
        real = inputs.attention_mask.bool()
        expected = model(*inputs)[real]
        torch.testing.assert_close(program(*inputs)[real], expected, rtol=0, atol=1e-4)


@pytest.mark.proves(tool="torch", what="`torch.export`: any batch and length, left padding")
@pytest.mark.parametrize("row", ABLATION_ROWS)
@torch.no_grad()
def test_an_exported_program_takes_other_shapes(row):
    model = Logits(tiny_model(num_loops=3, **ABLATION_ROWS[row]))
    assert_same_logits(torch.export.export(model, tuple(MADE_AT), dynamic_shapes=SHAPES).module(), model)


@pytest.mark.proves(tool="torch", what="`torch.export.save` and `load`")
@torch.no_grad()
def test_an_exported_program_is_saved_and_loaded(tmp_path):
    model = Logits(tiny_model(num_loops=3))
    torch.export.save(torch.export.export(model, tuple(MADE_AT), dynamic_shapes=SHAPES), tmp_path / "plt.pt2")
    assert_same_logits(torch.export.load(tmp_path / "plt.pt2").module(), model)


@pytest.mark.proves(
    tool="onnxruntime",
    what="ONNX by `torch.onnx.export(dynamo=True)`: any batch and length, left padding",
)
@torch.no_grad()
def test_an_onnx_program_takes_other_shapes(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `tools`")
    pytest.importorskip("onnxscript", reason="needs the extra `tools`")
    model, path = Logits(tiny_model(num_loops=3)), tmp_path / "plt.onnx"
    torch.onnx.export(model, tuple(MADE_AT), path, dynamo=True, dynamic_shapes=SHAPES)
    session = onnxruntime.InferenceSession(path)
    assert [argument.name for argument in session.get_inputs()] == list(Inputs._fields)

    def run(*inputs: Tensor) -> Tensor:
        feeds = {name: value.numpy() for name, value in zip(Inputs._fields, inputs, strict=True)}
        return torch.from_numpy(session.run(None, feeds)[0])

    assert_same_logits(run, model)


@pytest.mark.proves(tool="torch", what="`torch.jit.trace`: any batch and length, left padding")
@torch.no_grad()
def test_a_traced_program_takes_other_shapes():
    model = Logits(tiny_model(num_loops=3))
    program, single = torch.jit.trace(model, tuple(MADE_AT)), Inputs(tiny_ids(2, 1), torch.ones(2, 1))
    assert_same_logits(program, model)
    torch.testing.assert_close(program(*single), model(*single), rtol=0, atol=1e-5)


@pytest.mark.proves(tool="transformers", what="ExecuTorch (`TorchExportableModuleForDecoderOnlyLM`)")
def test_the_cache_of_executorch_is_refused(refused):
    from transformers.integrations.executorch import TorchExportableModuleForDecoderOnlyLM

    module = TorchExportableModuleForDecoderOnlyLM(tiny_model(), batch_size=1, max_cache_len=16)
    with refused(TypeError, "got `StaticCache`"):
        module.model(input_ids=tiny_ids(1, 1), cache_position=torch.tensor([0]))  # what it exports
