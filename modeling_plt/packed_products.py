# SPDX-License-Identifier: Apache-2.0
"""Products with packed weights, of libraries that PyTorch brings: they read a weight once for a few rows of input.

PyTorch's own product on a CPU hands one row to a kernel, and a few rows to another, which reads the weight for each.
"""

from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.nn.functional import pad

FEW_ROWS = 4  # for which oneDNN lays weights out
SMALLEST = 1e-30  # that a scale may be: of a row of zeros


class PackedProduct:
    """A product with one weight `[out, in]`, which it holds in packed form.

    Attributes:
        out_features: the length of an output row.
        nbytes: of the packed weight.
        is_exact: whether `unpack` gives back the very weight.
    """

    is_exact = True

    def __init__(self, weight: Tensor, bits: int):
        self.dtype, self.out_features, self.nbytes = weight.dtype, weight.shape[0], weight.numel() * bits // 8
        self.key = next(KEYS)
        PRODUCTS[self.key] = self

    def __deepcopy__(self, memo: Any) -> "PackedProduct":
        return self  # nothing changes a packed weight, so copies of a model share it

    def __call__(self, rows: Tensor) -> Tensor:
        """`[n, in]` -> `[n, out]` in the same dtype."""
        if torch.compiler.is_compiling():
            return packed_product(rows, self.key, self.out_features)
        return self.multiply(rows)

    def multiply(self, rows: Tensor) -> Tensor:
        raise NotImplementedError

    def unpack(self) -> Tensor:
        """The weight `[out, in]`, in its dtype."""
        raise NotImplementedError


KEYS = count()
PRODUCTS: WeakValueDictionary[int, PackedProduct] = WeakValueDictionary()


# Packed weights are no tensors that a compiler knows: a compiled graph calls this operator with the number of one.
@torch.library.custom_op("plt::packed_product", mutates_args=())
def packed_product(rows: Tensor, key: int, out_features: int) -> Tensor:
    return PRODUCTS[key].multiply(rows)


@packed_product.register_fake
def _(rows: Tensor, key: int, out_features: int) -> Tensor:
    return rows.new_empty(rows.shape[0], out_features)


def least_rows() -> int:
    """The least rows of a product: oneDNN's AVX-512 kernels for one to three rows take longer than that for four."""
    return FEW_ROWS if "AVX512" in torch.backends.cpu.get_cpu_capability() else 1


def filled_up(rows: Tensor, least: int) -> Tensor:
    return pad(rows, (0, 0, 0, least - len(rows))) if len(rows) < least else rows


class SameDtypeProduct(PackedProduct):
    """oneDNN's product in the dtype of the weight: exact to rounding."""

    def __init__(self, weight: Tensor):
        super().__init__(weight, 8 * weight.itemsize)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, FEW_ROWS)
        self.least_rows = least_rows()

    def multiply(self, rows: Tensor) -> Tensor:
        filled = filled_up(rows, self.least_rows)
        return torch.ops.mkldnn._linear_pointwise(filled, self.packed, None, "none", [], "")[: len(rows)]

    def unpack(self) -> Tensor:
        return self.packed.to_dense()


class Float16Product(PackedProduct):
    """FBGEMM: a float16 weight with float32 rows, exact if float16 holds the weight, as it does nearly all of bf16."""

    def __init__(self, weight: Tensor):
        super().__init__(weight, 16)
        self.is_exact = torch.equal(weight.to(torch.float16).to(weight.dtype), weight)
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight.float(), None)

    def multiply(self, rows: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic_fp16(rows.float(), self.packed).to(rows.dtype)

    def unpack(self) -> Tensor:
        return torch.ops.quantized.linear_unpack_fp16(self.packed)[0].to(self.dtype)


class Int8Product(PackedProduct):
    """oneDNN's product of an int8 weight, whose rows have a scale each, with int8 rows, which have a scale each.

    Dynamic quantization usually has one scale for all rows of a call, so that cached logits differ from uncached ones.
    """

    is_exact = False

    def __init__(self, weight: Tensor):
        super().__init__(weight, 8)
        weight = weight.float()
        self.scales = (weight.abs().amax(dim=1) / 127).clamp(min=SMALLEST)
        self.zero_points = torch.zeros(self.out_features, dtype=torch.int64)
        rounded = (weight / self.scales[:, None]).round().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(rounded, [FEW_ROWS, weight.shape[1]])
        # without these instructions two products are added in 16 bits, which hold them of inputs of 7 bits only
        has_vnni = "AVX512" in torch.backends.cpu.get_cpu_capability() and torch.cpu._is_vnni_supported()
        self.steps, self.least_rows = 127 if has_vnni else 63, least_rows()

    def multiply(self, rows: Tensor) -> Tensor:
        # rows are rounded to steps from minus to plus their greatest entry: as if it were 1, so all share a scale
        greatest = rows.abs().amax(dim=1, keepdim=True).float().clamp(min=SMALLEST)
        zero = self.steps + 1
        rounded = filled_up((rows * (self.steps / greatest) + (zero + 0.5)).to(torch.uint8), self.least_rows)
        weight = (self.packed, self.scales, self.zero_points)
        inputs_and_weight = (rounded, 1 / self.steps, zero, *weight, None)
        product = torch.ops.onednn.qlinear_pointwise(*inputs_and_weight, 1.0, 0, torch.float32, "none", [], "")
        return (product[: len(rows)] * greatest).to(rows.dtype)
