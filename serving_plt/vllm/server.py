# SPDX-License-Identifier: Apache-2.0
"""vLLM's OpenAI server on a free port of loopback, gone at the end."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

from .process_group import process_group

PATIENCE = 600  # seconds until the server must answer
NAME = "plt"  # of the model, for its clients
DIRECTLY = build_opener(ProxyHandler({}))


@dataclass(frozen=True)
class Server:
    """One that has answered.

    Attributes:
        address: `http://127.0.0.1:` and its port.
        process: the first of its group of processes.
    """

    address: str
    process: subprocess.Popen

    def page(self, path: str) -> str:
        """The text of a page, such as `/metrics`.

        Raises:
            OSError: there is none, or the server is gone.
        """
        return page(self.address + path)


def page(url: str) -> str:
    with DIRECTLY.open(url, timeout=PATIENCE) as response:
        return response.read().decode()


@contextlib.contextmanager
def serving(folder: Path, log: Path, *options: str) -> Iterator[Server]:
    """A server of the model in a folder, whose output goes to `log`; at the end, whatever happens, it is gone.

    Raises:
        RuntimeError: the server ends before it answers; with the end of its log.
        TimeoutError: it does not answer in time.
    """
    port = free_port()
    # what `vllm serve` runs; the CPU build's own command asks for a package named vllm, and finds none
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder]
    command += ["--host", "127.0.0.1", "--port", port, "--served-model-name", NAME, *options]
    with process_group(command, log) as process:
        server = Server(f"http://127.0.0.1:{port}", process)
        wait_for(server, log)
        yield server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(server: Server, log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if server.process.poll() is not None:
            raise RuntimeError(f"The server ended with {server.process.returncode}:\n{log.read_text()[-4000:]}")
        with contextlib.suppress(OSError):
            server.page("/health")
            return
        time.sleep(0.5)
    raise TimeoutError(f"The server has not answered in {PATIENCE} s:\n{log.read_text()[-4000:]}")
