# SPDX-License-Identifier: Apache-2.0
"""The trainings of the study: sources, their healing, and controls with as many steps."""

from dataclasses import dataclass, field
from pathlib import Path

from measuring_plt import rows

STEPS = 2000  # that a source is trained for
SIZE = ["hidden_size=64", "intermediate_size=192", "num_hidden_layers=2"]
VANILLA = [f"{name}={value}" for name, value in rows.LOOP.items()]
LOOP = [*VANILLA, "embedding_scale=0.0", "hidden_scale=1.0"]  # as most published loops, and hardly used at this size
EMBEDS = [*VANILLA, "embedding_scale=1.0", "hidden_scale=0.05"]  # whose later loop is needed
SHARED = "--block_size 128 --held_out 12 --per_device_train_batch_size 8 --save_strategy no --eval_on_start"
RATE, LATER_RATE = 4e-3, 1e-3  # of sources, and of what goes on with them
EVALUATIONS = 2  # after the first; each takes seconds


@dataclass(frozen=True)
class Training:
    """A run of `pretrain` or `heal`.

    Attributes:
        name: of its folder and its result.
        steps: that it trains for.
        fields: of PLTConfig, for a new model.
        source: the name of the training that it goes on with.
        heals: whether the source is converted and healed, or trained on as it is.
        teacher_weight: of the source's distribution, where it is the teacher too.
        options: of the module, beside these.
    """

    name: str
    steps: int
    fields: list[str] = field(default_factory=list, hash=False)
    source: str | None = None
    heals: bool = False
    teacher_weight: float | None = None
    options: str = ""

    def command(self, runs: Path, seed: int) -> list[str]:
        """The module's name and its arguments."""
        rate = RATE if self.source is None else LATER_RATE
        options = ["--max_steps", self.steps, "--learning_rate", rate, "--seed", seed, "--eval_steps"]
        options += [
            self.steps // EVALUATIONS,
            "--output_dir",
            runs / f"{self.name}-{seed}",
            *SHARED.split(),
            "--disable_tqdm",
            "true",
        ]
        if self.source is None:
            options += ["--set", *SIZE, *self.fields]
        elif self.heals:
            options += ["--model", runs / f"{self.source}-converted-{seed}"]
        else:
            options += ["--model", runs / f"{self.source}-{seed}"]
        if self.teacher_weight is not None:
            options += ["--teacher", runs / f"{self.source}-{seed}", "--kl_weight", self.teacher_weight]
        options += self.options.split()
        return ["heal" if self.heals else "pretrain", *map(str, options)]


TENTH, HALF = STEPS // 10, STEPS // 2
TRAININGS = (
    Training("loop", STEPS, fields=LOOP),
    Training("loop-healed", TENTH, source="loop", heals=True, teacher_weight=4.0),
    Training("loop-healed-by-text", TENTH, source="loop", heals=True),
    Training("embeds", STEPS, fields=EMBEDS),
    Training("embeds-healed", TENTH, source="embeds", heals=True, teacher_weight=4.0),
    Training("embeds-healed-longer", 3 * TENTH, source="embeds", heals=True, teacher_weight=4.0),
    Training("plain", STEPS, fields=["num_loops=1"]),
    Training("plain-more", HALF, source="plain"),
    Training("plt", STEPS),
    Training("plain-healed", HALF, source="plain", heals=True),
    Training("plain-more-twice", 2 * HALF, source="plain"),
)
