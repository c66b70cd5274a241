# SPDX-License-Identifier: Apache-2.0
"""Packed weights: how a loaded model decodes fastest on a CPU, all loops of a token for about the price of one.

An explicit call on a loaded model of any kind; this file is not part of saved folders.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any, NamedTuple, NoReturn, cast

import torch
from torch import Tensor, nn

from .packed_products import Float16Product, Int8Product, PackedProduct, SameDtypeProduct

FORMS: dict[torch.dtype | None, Callable[[Tensor], PackedProduct]] = {
    None: SameDtypeProduct,
    torch.float16: Float16Product,
    torch.int8: Int8Product,
}
LARGEST_FLOAT16 = torch.finfo(torch.float16).max
PACKED = "its weights are packed. `unpack_weights` gives the plain ones back."


class Memory(NamedTuple):
    """Bytes of the weights of all `nn.Linear` that `pack_weights` has packed.

    Experts and routers of a mixture are no `nn.Linear`: they stay as they are, and are not counted.

    Attributes:
        before: bytes of the plain weights.
        after: bytes of the packed ones.
        kept: bytes of plain weights that stay in memory, because something else has them too, as embeddings do.
    """

    before: int
    after: int
    kept: int


def pack_weights(model: nn.Module, dtype: torch.dtype | None = None) -> Memory:
    """Let every `nn.Linear` of a model compute with a packed weight, for decoding on a CPU. The plain weights go.

    Args:
        model: a model of any kind, in eval mode.
        dtype: the dtype of the packed weights. None is their own, exact to rounding. `torch.float16` takes 2 bytes a
            weight, and is exact for those that float16 holds, as nearly all of a bfloat16 checkpoint. `torch.int8`
            takes 1 byte, and rounds weights and inputs, row by row.

    Raises:
        ValueError: another dtype, a model in training mode, or one with no `nn.Linear`, or with one whose weight is no
            parameter in float32 or bfloat16 on a CPU, is adapted, or is beyond float16.
        NotImplementedError: this build of PyTorch or this CPU lacks the product.
    """
    if dtype not in FORMS:
        raise ValueError(f"`dtype` must be None, `torch.float16` or `torch.int8`, got {dtype}.")
    return pack_with(model, dtype, FORMS[dtype])


def pack_with(model: nn.Module, dtype: torch.dtype | None, form: Callable[[Tensor], PackedProduct]) -> Memory:
    """As `pack_weights`, with the products that `form` gives: models of the same weights can share them."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    refuse_unusual(model, names, dtype)
    refuse_lacking(dtype, {cast(nn.Linear, model.get_submodule(name)).weight.dtype for name in names})
    before = after = kept = 0
    # one after the other, so that memory never holds both forms of all
    for name in names:
        linear: Any = model.get_submodule(name)
        model.set_submodule(name, packed := PackedLinear(linear, form))
        before, after = before + linear.weight.nbytes, after + packed.product.nbytes
        if any(parameter is linear.weight for parameter in model.parameters()):
            packed.weight = linear.weight
            kept += linear.weight.nbytes
    # the model refuses conversions and loading before its modules would refuse them half-way
    model._apply = MethodType(refuse_conversion, model)  # type: ignore[method-assign]
    model.load_state_dict = MethodType(refuse_loading, model)  # type: ignore[method-assign]
    return Memory(before, after, kept)


def unpack_weights(model: nn.Module) -> None:
    """Undo `pack_weights`.

    Raises:
        ValueError: nothing is packed, or weights were rounded when they were.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, PackedLinear)]
    if not names:
        raise ValueError("The model has no packed weights to unpack.")
    for name in names:
        cast(PackedLinear, model.get_submodule(name)).refuse_rounded()
    for name in names:
        model.set_submodule(name, cast(PackedLinear, model.get_submodule(name)).plain())
    del model._apply, model.load_state_dict


class PackedLinear(nn.Module):
    """In the place of an `nn.Linear`. `product` holds its weight; the plain one is here only if others have it too."""

    def __init__(self, linear: nn.Linear, form: Callable[[Tensor], PackedProduct]):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.requires_grad = linear.weight.requires_grad
        self.product = form(linear.weight.detach())
        self.eval()

    def forward(self, input: Tensor) -> Tensor:
        """`[..., in]` -> `[..., out]`."""
        rows = input.reshape(-1, self.in_features)
        has_gradient = torch.is_grad_enabled() and input.requires_grad
        output = OneWay.apply(rows, self.product) if has_gradient else self.product(rows)
        if self.bias is not None:
            output = output + self.bias
        return output.view(*input.shape[:-1], self.out_features)

    def train(self, mode: bool = True) -> "PackedLinear":
        if mode:
            raise ValueError(f"A model cannot be trained while {PACKED}")
        return super().train(mode)

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and not self.has_plain:
            raise AttributeError(f"A module has no `weight` while {PACKED}")
        return super().__getattr__(name)

    @property
    def has_plain(self) -> bool:
        return "weight" in self._parameters

    def refuse_rounded(self) -> None:
        if not self.has_plain and not self.product.is_exact:
            raise ValueError(
                "The plain weights are lost, because packing rounded them: load the model again to unpack or save it."
            )

    def plain(self) -> nn.Linear:
        """The `nn.Linear` that this was."""
        with torch.device("meta"):
            linear = nn.Linear(self.in_features, self.out_features, bias=False)
        linear.weight = self.weight if self.has_plain else nn.Parameter(self.product.unpack(), self.requires_grad)
        linear.bias = self.bias
        return linear.eval()

    def _load_from_state_dict(self, *_: Any) -> NoReturn:
        refuse_loading(self)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """The plain weight, so that a saved folder is that of the plain model."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self.has_plain:
            self.refuse_rounded()
            destination[f"{prefix}weight"] = self.product.unpack()


class OneWay(torch.autograd.Function):
    """A product that no gradient passes."""

    @staticmethod
    def forward(context: Any, rows: Tensor, product: PackedProduct) -> Tensor:
        return product(rows)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> NoReturn:
        raise RuntimeError(f"A model has no gradients while {PACKED}")


def refuse_unusual(model: nn.Module, names: list[str], dtype: torch.dtype | None) -> None:
    if model.training:
        raise ValueError("Weights are packed for decoding: call `model.eval()` first.")
    if any(isinstance(module, PackedLinear) for module in model.modules()):
        raise ValueError("The weights are packed already.")
    if not names:
        raise ValueError("The model has no `nn.Linear` to pack.")
    for name, module in model.named_modules():
        if hasattr(module, "base_layer"):
            raise ValueError(f"`{name}` is adapted: merge the adapter into the model before packing.")
    for name in names:
        linear: Any = model.get_submodule(name)
        weight = linear.weight
        is_plain = type(linear) is nn.Linear and type(weight) is nn.Parameter and "forward" not in vars(linear)
        if not is_plain or weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(
                f"Weights to pack must be plain parameters in float32 or bfloat16 on a CPU, got `{name}`: a "
                f"{type(weight).__name__} in {weight.dtype} on {weight.device} of a {type(linear).__name__}."
            )
        if dtype is torch.float16 and (greatest := weight.detach().abs().max().item()) > LARGEST_FLOAT16:
            raise ValueError(f"float16 holds weights up to {LARGEST_FLOAT16:g}, got {greatest:g} in `{name}`.")


def refuse_lacking(dtype: torch.dtype | None, dtypes: set[torch.dtype]) -> None:
    if dtype is torch.float16 and "fbgemm" not in torch.backends.quantized.supported_engines:
        raise NotImplementedError("float16 weights need FBGEMM, which this build of PyTorch lacks.")
    if dtype is not torch.float16 and not torch.backends.mkldnn.is_available():
        raise NotImplementedError("Packed weights need oneDNN, which this build of PyTorch lacks.")
    if dtype is None and torch.bfloat16 in dtypes and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise NotImplementedError(
            "bfloat16 weights need instructions that this CPU lacks: pack them as `torch.float16`, or load the model "
            "in float32."
        )


def refuse_conversion(model: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    """`nn.Module._apply`, through which `to`, `half` and the like go, for a model with packed weights."""
    probes = [torch.empty(0, dtype=dtype) for dtype in {parameter.dtype for parameter in model.parameters()}]
    if any(fn(probe).dtype != probe.dtype or fn(probe).device != probe.device for probe in probes):
        raise ValueError(f"A model changes neither dtype nor device while {PACKED}")
    return type(model)._apply(model, fn, recurse)


def refuse_loading(*_: Any) -> NoReturn:
    raise ValueError(f"A model loads no tensors while {PACKED}")
