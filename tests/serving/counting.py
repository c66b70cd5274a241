"""What `--worker-extension-cls` adds to the process that runs a server's model."""

from serving_plt.vllm.metrics import Metrics


class Counting:
    def count_pruned(self, positions: str) -> None:
        """Count as a step of the model would; clients give texts alone."""
        Metrics(self.get_model().config).count_pruned(int(positions))
