"""Models some of whose layers run once and others loop, by a config that overrides `stages` alone."""

from tiny import randomize, tiny_config

from configuration_plt import PLTConfig, Stage
from modeling_plt import PLTForCausalLM

CUTS = {"prelude and coda": (2, 1), "prelude": (2, 0), "coda": (0, 2)}  # how many layers before and after the loop
NUM_BEFORE, NUM_AFTER = CUTS["prelude and coda"]


class Cut(PLTConfig):
    """Layers that run once before and after those that loop."""

    num_before, num_after = NUM_BEFORE, NUM_AFTER

    @property
    def stages(self):
        (whole,) = super().stages
        first, last = self.num_before, self.num_hidden_layers - self.num_after
        cut = (
            Stage(whole.layers[:first], range(1), whole.later_see),
            Stage(whole.layers[first:last], whole.loops, whole.later_see),
            Stage(whole.layers[last:], range(1), whole.later_see),
        )
        return tuple(stage for stage in cut if stage.layers)


def three_stages(attn_implementation="sdpa", cut="prelude and coda", **overrides):
    kind = type("Cut", (Cut,), dict(zip(("num_before", "num_after"), CUTS[cut], strict=True)))
    fields = tiny_config(num_hidden_layers=5, **overrides).to_dict()
    config = kind(**{name: value for name, value in fields.items() if name != "layer_types"})
    config._attn_implementation = attn_implementation
    return randomize(PLTForCausalLM(config)).double().eval()
