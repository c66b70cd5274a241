import signal

import checkout  # noqa: F401, first: what follows imports the packages
import pytest
import torch
from chat_folder import chat_folder  # noqa: F401, a fixture
from tokenizer_folders import byte_level, source, target, train  # noqa: F401, fixtures

torch.set_num_threads(1)  # tiny tensors; the suite runs its files side by side
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with Ctrl-C ignored


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    """What a test draws without a seed of its own, such as an adapter's weights."""
    torch.manual_seed(0)
