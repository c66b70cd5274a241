import random
import signal

import checkout  # noqa: F401, first: what follows imports the packages
import pytest
import tiny
import torch
from chat_folder import chat_folder  # noqa: F401, a fixture
from tokenizer_folders import byte_level, source, target, train  # noqa: F401, fixtures

torch.set_num_threads(1)  # tiny tensors; the suite runs its files side by side
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with Ctrl-C ignored


MOST_CASES = {"experts": 12, "core": 6}  # of one test over a further family; of more, so many are drawn


def pytest_generate_tests(metafunc):
    """A module that says `FAMILIES = ("dense", "experts")` runs its tests over tiny models of each family."""
    families = getattr(metafunc.module, "FAMILIES", None)
    if families is not None:
        metafunc.parametrize("family", families, indirect=True)


@pytest.fixture(autouse=True)
def family(request, monkeypatch):
    monkeypatch.setattr(tiny, "family", getattr(request, "param", "dense"))


def chosen(items):
    """All tests of the first family, and of each further one `MOST_CASES` of each function.

    Drawn, the same every time: of cases in even steps, all may have the same value of one parameter.
    """
    groups = {}
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        groups.setdefault((item.nodeid.split("[")[0], params.get("family", "dense")), []).append(item)
    for (test, name), cases in groups.items():
        yield from random.Random(test).sample(cases, min(len(cases), MOST_CASES.get(name, len(cases))))


def pytest_collection_modifyitems(items):
    kept = set(chosen(items))
    items[:] = [item for item in items if item in kept]
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    """What a test draws without a seed of its own, such as an adapter's weights."""
    torch.manual_seed(0)
