import torch

torch.set_num_threads(1)  # tiny tensors; the suite runs its files side by side
