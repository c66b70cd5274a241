# SPDX-License-Identifier: Apache-2.0
"""The plugin's own metrics on the page `/metrics` of vLLM's server.

The model runs in other processes than the server. prometheus_client has a way for that: each process keeps its numbers
in a mapped file, and the page adds the files up. With several API servers vLLM takes that way for all its numbers, in
the folder `PROMETHEUS_MULTIPROC_DIR`; with one it does not, so its process opens a folder for the plugin's alone.
"""

import os
from tempfile import TemporaryDirectory

from prometheus_client import REGISTRY
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.logger import init_logger

from configuration_plt import PLTConfig

logger = init_logger(__name__)

OF_VLLM = "PROMETHEUS_MULTIPROC_DIR"
OF_OURS = "PLT_METRICS_DIR"  # processes that the server starts inherit it
FOLDERS: list[TemporaryDirectory] = []  # of this process: one, once it is open; gone when the process ends

LOOPS = mmap_key("plt_loops", "plt_loops", [], [], "Loops of the model.")
WINDOW = mmap_key("plt_window", "plt_window", [], [], "Tokens that a later loop sees of its own keys.")
PRUNED = mmap_key(
    "plt_pruned_positions",
    "plt_pruned_positions_total",
    [],
    [],
    "Positions of prompts that layers of later loops left out, summed over layers and loops.",
)


def show_metrics() -> None:
    """In the server's process, before it starts the engine: let its page show what the engine's processes count."""
    if OF_VLLM not in os.environ and not FOLDERS:
        FOLDERS.append(TemporaryDirectory(prefix="plt-metrics-"))
        os.environ[OF_OURS] = FOLDERS[0].name
        MultiProcessCollector(REGISTRY, path=FOLDERS[0].name)


class Metrics:
    """Those of a process that runs the model. Of processes that share its heads the first one counts for all.

    A process that the server did not start on its own machine, as Ray starts them, has nowhere to count, and warns.
    """

    def __init__(self, config: PLTConfig):
        self.counters: MmapedDict | None = None
        folder = os.environ.get(OF_VLLM) or os.environ.get(OF_OURS)
        if folder is None:
            logger.warning("The page /metrics has no numbers of the plugin: `%s` is not set in this process.", OF_OURS)
        elif get_tensor_model_parallel_rank() == 0:
            # by these names prometheus_client knows of what kind the numbers are, and what makes one of all processes'
            gauges = MmapedDict(f"{folder}/gauge_max_plt-{os.getpid()}.db")
            gauges.write_value(LOOPS, config.num_loops, 0)
            if config.looped_stage.has_gate:
                gauges.write_value(WINDOW, config.sliding_window, 0)
            gauges.close()
            self.counters = MmapedDict(f"{folder}/counter_plt-{os.getpid()}.db")
            self.count_pruned(0)

    def count_pruned(self, positions: int) -> None:
        """Add positions that layers leave out in a step, summed over layers; on the host, in about a microsecond."""
        if self.counters is not None:
            value, _ = self.counters.read_value(PRUNED)
            self.counters.write_value(PRUNED, value + positions, 0)
