# SPDX-License-Identifier: Apache-2.0
"""The memory of a server."""

from pathlib import Path

from serving_plt.vllm.server import Server


def resident(server: Server) -> int:
    """Bytes of all of its processes; what they share counts in each."""
    total = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            group = file.read_text().rpartition(")")[2].split()[2]
            if int(group) == server.process.pid:
                lines = (file.parent / "status").read_text().splitlines()
                total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
    return total
