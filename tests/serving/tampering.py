"""What tests do to the model of a server, as the class of its option `--worker-extension-cls`."""


class Tampering:
    def shift_tokens(self) -> None:
        """Each token is read as its neighbour; products on a CPU keep weights of their own."""
        weight = self.get_model().model.embed_tokens.weight
        weight.copy_(weight.roll(1, dims=0))
