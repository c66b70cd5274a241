# SPDX-License-Identifier: Apache-2.0
"""Every way there is on a CPU to multiply a few rows by a weight."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from modeling_plt.packed import FORMS, refuse_lacking

TEMPLATES = {"max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN"}

Product = Callable[[], list]  # multiplies the same rows by each of some weights


def plain(weights: list[Tensor], rows: Tensor) -> Product:
    return lambda: [nn.functional.linear(rows, weight) for weight in weights]


def packed(form: torch.dtype | None) -> Callable[[list[Tensor], Tensor], Product]:
    def make(weights: list[Tensor], rows: Tensor) -> Product:
        refuse_lacking(form, {weights[0].dtype})
        products = [FORMS[form](weight) for weight in weights]
        return lambda: [product(rows) for product in products]

    return make


class Several(nn.Module):
    """Products of the same rows in one graph, as those of a model are."""

    def __init__(self, weights: list[Tensor]):
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(weight, requires_grad=False) for weight in weights])

    def forward(self, rows: Tensor) -> list[Tensor]:
        return [nn.functional.linear(rows, weight) for weight in self.weights]


def frozen(**options: Any) -> Callable[[list[Tensor], Tensor], Product]:
    """torch.compile, whose graph holds the weights and may lay them out anew."""

    def make(weights: list[Tensor], rows: Tensor) -> Product:
        apart: dict[str, Any] = {"isolate_recompiles": True}  # which torch's overloads do not list
        call = torch.compile(Several(weights), fullgraph=True, dynamic=False, **apart)
        # dynamo asks for it too, so it is no option of this one call
        with torch._inductor.config.patch({"freezing": True} | options):
            call(rows)
        return lambda: call(rows)

    return make


def onnxruntime(weights: list[Tensor], rows: Tensor) -> Product:
    try:
        import onnx
        from onnxruntime import InferenceSession, SessionOptions
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}. The product `onnxruntime` needs the extra `tools`.") from None
    if rows.dtype != torch.float32:
        raise ValueError(f"The product `onnxruntime` is in float32, got {rows.dtype}.")
    # weights as `[in, out]`, in which its exporters leave those of `nn.Linear`
    held = [onnx.numpy_helper.from_array(weight.T.contiguous().numpy(), f"w{i}") for i, weight in enumerate(weights)]
    nodes = [onnx.helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]) for i in range(len(weights))]
    kind = onnx.TensorProto.FLOAT
    outputs = [onnx.helper.make_tensor_value_info(f"y{i}", kind, None) for i in range(len(weights))]
    inputs = [onnx.helper.make_tensor_value_info("x", kind, list(rows.shape))]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "products", inputs, outputs, held))
    model.ir_version = 10  # the oldest that ONNX Runtime's releases of these years read
    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {"x": rows.numpy()}
    return lambda: session.run(None, given)


BYTES = {"float16": 2, "int8": 1}  # that a weight takes, where it is not in its own dtype
MAKERS: dict[str, Callable[[list[Tensor], Tensor], Product]] = {
    "linear": plain,
    "same": packed(None),
    "float16": packed(torch.float16),
    "int8": packed(torch.int8),
    "onnxruntime": onnxruntime,
    "frozen": frozen(),
    "templates": frozen(**TEMPLATES),
}
