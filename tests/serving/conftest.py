import os

import pytest

# read when vLLM is imported: the engine runs in this process, on one thread, and says only what goes wrong
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1"}
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")  # of n-grams: two that wait for each other take ten times as long here
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # files run side by side, and processes of one engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def model(folder):
    """A tiny PLT, saved in `folder`."""
    from engines import LOOPS, save_tiny  # imports vLLM, for which the environment is set above

    return save_tiny(folder, num_loops=LOOPS)
