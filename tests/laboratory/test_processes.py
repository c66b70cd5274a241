"""Processes that take turns end with the one that started them, however that ends."""

import os
import signal
import subprocess
import sys
import time

import pytest
from checkout import ROOT

STARTS_ONE = """
import os, time
from measuring_plt.processes import own_process

if __name__ == "__main__":
    with own_process() as process:
        print(process.submit(os.getpid).result(), flush=True)
        process.submit(time.sleep, 600).result()
"""


def is_alive(number: int) -> bool:
    try:
        with open(f"/proc/{number}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux which processes are alive")
def test_a_process_ends_with_a_killed_parent(tmp_path):
    (tmp_path / "starts_one.py").write_text(STARTS_ONE)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "starts_one.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        number = int(parent.stdout.readline())
        assert is_alive(number)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    until = time.monotonic() + 30
    while is_alive(number) and time.monotonic() < until:
        time.sleep(0.1)
    assert not is_alive(number)
