"""What a GPU would do with a step, told from the operators that the step calls."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class NoHostData(TorchDispatchMode):
    """Refuses what copies Python numbers to a GPU, or waits for a number from it; neither can be in a CUDA graph."""

    REFUSED = {"lift_fresh", "item", "_local_scalar_dense", "nonzero", "is_nonzero", "equal"}
    REFUSED |= {"masked_select", "unique", "repeat_interleave", "resolve_conj"}  # the last by `tolist`

    def __enter__(self) -> "NoHostData":
        self.names = set()
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        masks = [
            each for each in tree_leaves(args[1:2]) if isinstance(each, torch.Tensor) and each.dtype == torch.bool
        ]
        if name in self.REFUSED or (name.startswith("index") and masks):
            raise AssertionError(f"{function} of {[getattr(each, 'shape', each) for each in args]}")
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


class Graph(TorchDispatchMode):
    """A CUDA graph without a GPU: the operators of a step, again, on the tensors they had when it was recorded."""

    def __enter__(self) -> "Graph":
        self.calls = []
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for function, args, kwargs, recorded in self.calls:
            for old, new in zip(tree_leaves(recorded), tree_leaves(function(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():  # neither a view, nor written in place
                    old.copy_(new)
