import signal

import pytest
import torch
from tokenizer_folders import byte_level, source, target, train  # noqa: F401, fixtures

torch.set_num_threads(1)  # tiny tensors; the suite runs its files side by side
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with Ctrl-C ignored


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    """What a test draws without a seed of its own, such as an adapter's weights."""
    torch.manual_seed(0)
