# SPDX-License-Identifier: Apache-2.0
"""The ways that there are on a CPU to multiply a few rows by a weight, as the command line names them."""

PRODUCTS = {
    "linear": "PyTorch's F.linear",
    "same": "pack_weights(model)",
    "float16": "pack_weights(model, torch.float16)",
    "int8": "pack_weights(model, torch.int8)",
    "onnxruntime": "ONNX Runtime's MatMul",
    # the last, because they take minutes and those above can be refused
    "frozen": "torch.compile with freezing",
    "templates": "torch.compile with freezing and C++ templates",
}
NEED_NOTHING = tuple(name for name in PRODUCTS if name != "onnxruntime")  # beyond the extra `bench`
ROW_COUNTS = (1, 2, 3, 4, 8, 12)  # loops times batch
