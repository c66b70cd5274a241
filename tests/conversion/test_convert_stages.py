"""What a conversion counts are the layers that run, also where some of them are not looped."""

from types import SimpleNamespace

import pytest
from three_stages import three_stages
from tiny import tiny_ids, tiny_model

from conversion_plt.checks.verify import progress
from conversion_plt.target.card import describe

MODELS = {
    "looped": lambda: tiny_model(num_loops=3),
    "others before and after": lambda: three_stages(num_loops=3).float(),
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_bar_is_full_when_all_layers_have_run(kind):
    model = MODELS[kind]()
    with progress(model, model.config) as bar:
        model(tiny_ids(1, 5), use_cache=False)
        assert bar.n == bar.total


@pytest.mark.parametrize("kind", MODELS)
def test_the_card_counts_looped_layers(kind):
    plan = SimpleNamespace(config=MODELS[kind]().config)
    around = ", between a prelude of 2 and a coda of 1" if kind == "others before and after" else ""
    assert describe(plan).startswith(
        f"3 loops over 2 layers{around}; a later loop reads the previous token's state and "
    )
