"""Whether loops run in one pass is a switch of the run: models have it, saved configs do not, but for old ones."""

import json

import pytest
from tiny import tiny_config, tiny_ids, tiny_model
from transformers import AutoModelForCausalLM

from modeling_plt import PLTForCausalLM, PLTForSequenceClassification, PLTModel


def rows_of_a_decoded_token(model):
    """How many positions the first layer is given, call by call."""
    rows, decoder = [], model.base_model
    cache = decoder(tiny_ids(1, 5), use_cache=True).past_key_values
    hook = decoder.layers[0].register_forward_pre_hook(lambda layer, inputs: rows.append(inputs[0].shape[1]))
    decoder(tiny_ids(1, 1), past_key_values=cache)
    hook.remove()
    return rows


@pytest.mark.parametrize("kind", [PLTModel, PLTForCausalLM, PLTForSequenceClassification])
def test_every_head_has_the_switch(kind):
    model = kind(tiny_config(num_loops=3)).eval()
    assert model.one_pass and rows_of_a_decoded_token(model) == [3]
    model.one_pass = False
    assert not model.one_pass and rows_of_a_decoded_token(model) == [1, 1, 1]
    assert tiny_model().one_pass  # another model's


def test_a_saved_folder_does_not_say_how_the_model_ran(tmp_path):
    tiny_model(one_pass=False).save_pretrained(tmp_path)
    assert "one_pass" not in (tmp_path / "config.json").read_text()
    assert PLTForCausalLM.from_pretrained(tmp_path).one_pass
    assert not PLTForCausalLM.from_pretrained(tmp_path, one_pass=False).one_pass


@pytest.mark.parametrize("said", [True, False])
def test_what_an_old_folder_says_is_heeded_and_not_saved_again(said, tmp_path):
    tiny_model(num_loops=2).save_pretrained(tmp_path / "old")
    file = tmp_path / "old/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"one_pass": said}))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "old")
    assert rows_of_a_decoded_token(model) == ([2] if said else [1, 1])
    model.save_pretrained(tmp_path / "new")
    assert "one_pass" not in (tmp_path / "new/config.json").read_text()
