"""Models some of whose layers run once and others loop."""

from tiny import tiny_model

CUTS = {"prelude and coda": (2, 1), "prelude": (2, 0), "coda": (0, 2)}  # how many layers before and after the loop
NUM_BEFORE, NUM_AFTER = CUTS["prelude and coda"]
ADAPTER = {"loop_input": "adapter", "embedding_scale": 1.0, "hidden_scale": 0.02}  # the scales are not read
HUGINN = ADAPTER | {
    "initial_state": "zeros",
    "norm_placement": "residual",
    "coda_norm": True,
    "loop_norm": False,
    "embedding_multiplier": 3.0,
}
OLMO = ADAPTER | {"initial_state": "prelude", "norm_placement": "output", "qk_norm": "whole"}


def three_stages(cut="prelude and coda", **overrides):
    """A model of five layers; without a coda, `coda_norm` is left out."""
    before, after = CUTS[cut]
    fields = {"num_hidden_layers": 5, "num_prelude_layers": before, "num_coda_layers": after} | overrides
    if after == 0:
        fields.pop("coda_norm", None)
    return tiny_model(**fields).double()
