import torch
from tokenizer_folders import byte_level, source, target, train  # noqa: F401, fixtures

torch.set_num_threads(1)  # tiny tensors; the suite runs its files side by side
