"""`make serve`: what it starts is gone whatever happens, and says why it ends."""

import json
import sys
import time
from pathlib import Path

import pytest

from serving_plt.vllm import demo
from serving_plt.vllm.process_group import process_group
from serving_plt.vllm.server import serving
from serving_plt.vllm.tiny import save_tiny

OPTIONS = ("--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", str(64 << 20), "--max-model-len", "128")
# as a server: it starts a process of its own, which goes on when the first one is ended alone
PARENT = (
    "import subprocess, sys\nchild = subprocess.Popen(['sleep', '60'])\nprint(child.pid, flush=True)\nchild.wait()"
)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait for somebody to ask how."""
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_all_that_was_started_is_gone_after_an_error(tmp_path):
    log = tmp_path / "log"
    with pytest.raises(KeyError, match="of the body"), process_group([sys.executable, "-c", PARENT], log) as process:
        while not log.read_text().endswith("\n"):
            time.sleep(0.01)
        child = int(log.read_text())
        assert is_alive(child)
        raise KeyError("of the body")
    assert process.returncode is not None
    end = time.monotonic() + 10  # a signal takes its time on a busy machine
    while is_alive(child):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_server_that_ends_says_why(tmp_path):
    save_tiny(tmp_path / "plt")
    config = json.loads((tmp_path / "plt/config.json").read_text())
    (tmp_path / "plt/config.json").write_text(json.dumps(config | {"num_loop": 3}))
    with (
        pytest.raises(RuntimeError, match="is `num_loops` meant"),
        serving(tmp_path / "plt", tmp_path / "log", *OPTIONS),
    ):
        pass


def test_a_model_that_is_no_folder(tmp_path, capsys):
    with pytest.raises(SystemExit):
        demo.main(["--model", str(tmp_path / "nowhere")])
    assert "must be a folder" in capsys.readouterr().err
