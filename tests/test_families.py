"""A family that a test is named after is the family of the models that it makes."""

from tiny import tiny_config, tiny_model

FAMILIES = ("dense", "experts", "core")


def test_the_family_of_a_test_reaches_its_models(request):
    family = request.node.callspec.params["family"]
    for config in (tiny_config(), tiny_model(num_hidden_layers=2).config):
        assert (config.num_experts > 0) == (family == "experts")
        assert (len(config.stages) == 3) == (family == "core")
        assert len(config.looped_stage.layers) == 2
