"""What tests do to the model of a server, as the class of its option `--worker-extension-cls`."""

from serving_plt.vllm.metrics import Metrics


class Tampering:
    def count_pruned(self, positions: str) -> None:
        """Count as a step of the model would; clients give texts alone."""
        Metrics(self.get_model().config).count_pruned(int(positions))

    def shift_tokens(self) -> None:
        """Each token is read as its neighbour; products on a CPU keep weights of their own."""
        weight = self.get_model().model.embed_tokens.weight
        weight.copy_(weight.roll(1, dims=0))
