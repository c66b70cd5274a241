"""The number of loops is chosen at load, and what fewer loops do not read is kept."""

import json
import logging
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from reference import ReferencePLT
from three_stages import ADAPTER, HUGINN, three_stages
from tiny import ABLATION_ROWS, tiny_ids, tiny_model

from modeling_plt import PLTConfig, PLTForCausalLM

PUBLISHED = Path(__file__).parents[1] / "data/loopcoder_v2"
KINDS = pytest.mark.parametrize(
    "fields",
    [
        *ABLATION_ROWS.values(),
        {"learned_scales": True},
        {"gate_input": "query", "loop_shift": False},
        ADAPTER | {"num_hidden_layers": 3, "num_prelude_layers": 1},
        HUGINN | {"num_hidden_layers": 3, "num_coda_layers": 1},
        ADAPTER | {"loop_attention": "own"},
    ],
    ids=str,
)


@torch.no_grad()
def logits_of(model, ids):
    return model.eval()(ids).logits


@pytest.mark.parametrize("num_loops", [1, 2, 3, 4])
@KINDS
def test_any_number_of_loops_is_loaded_and_nothing_is_lost_when_it_is_saved(tmp_path, caplog, fields, num_loops):
    whole, ids = tiny_model(num_loops=3, **fields), tiny_ids(1, 9)
    whole.save_pretrained(tmp_path / "whole")
    model, info = PLTForCausalLM.from_pretrained(tmp_path / "whole", num_loops=num_loops, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    logits = logits_of(model, ids)
    reference = ReferencePLT(model.config, model.state_dict())
    wanted = torch.from_numpy(reference.logits(ids[0].tolist())).float()
    torch.testing.assert_close(logits[0], wanted, rtol=0, atol=1e-4 * wanted.abs().max())
    if num_loops < 3:
        with torch.no_grad():
            states = whole(ids, output_loop_hidden_states=True).loop_hidden_states[num_loops - 1]
        torch.testing.assert_close(whole.lm_head(states), logits, rtol=0, atol=1e-5)

    model.save_pretrained(tmp_path / "saved")
    again = PLTForCausalLM.from_pretrained(tmp_path / "saved")
    assert again.config.num_loops == num_loops
    assert torch.equal(logits_of(again, ids), logits)
    back = PLTForCausalLM.from_pretrained(tmp_path / "saved", num_loops=3)
    assert torch.equal(logits_of(back, ids), logits_of(whole, ids))
    back.save_pretrained(tmp_path / "back")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@KINDS
def test_what_an_edit_to_one_loop_leaves_unread_is_saved_too(tmp_path, fields):
    whole, ids = tiny_model(num_loops=3, **fields), tiny_ids(1, 9)
    wanted = logits_of(whole, ids)
    whole.config.num_loops = 1
    whole.save_pretrained(tmp_path)
    assert PLTForCausalLM.from_pretrained(tmp_path).config.num_loops == 1
    assert torch.equal(logits_of(PLTForCausalLM.from_pretrained(tmp_path, num_loops=3), ids), wanted)


@pytest.mark.parametrize("num_loops, warned", [(2, False), (3, False), (4, True)])
def test_more_loops_than_trained_are_warned_of_once(tmp_path, caplog, num_loops, warned):
    tiny_model(num_loops=3).save_pretrained(tmp_path)
    logger = logging.getLogger("transformers")
    caplog.set_level(logging.WARNING)
    logger.addHandler(caplog.handler)
    from transformers.utils.logging import warning_once

    warning_once.cache_clear()
    try:
        for _ in range(2):
            PLTForCausalLM.from_pretrained(tmp_path, num_loops=num_loops)
    finally:
        logger.removeHandler(caplog.handler)
    found = [record for record in caplog.records if "was trained with 3" in record.getMessage()]
    assert len(found) == warned


@pytest.mark.parametrize(
    "fields, needed",
    [
        ({}, "gates"),
        ({"learned_scales": True}, "gates and learned scales"),
        ({"loop_attention": "own", "learned_scales": True}, "learned scales"),
        (ADAPTER | {"loop_attention": "shared"}, "an adapter"),
    ],
    ids=str,
)
def test_a_folder_of_one_loop_has_not_what_later_ones_need(tmp_path, fields, needed):
    tiny_model(num_loops=1, **fields).save_pretrained(tmp_path)
    with pytest.raises(
        StrictDataclassClassValidationError,
        match=f"`num_loops` must be 1, got 2: .* need {needed}, .* `plt convert FOLDER TARGET --to-plt --loops 2`",
    ):
        PLTForCausalLM.from_pretrained(tmp_path, num_loops=2)


@pytest.mark.parametrize("fields", [{}, HUGINN], ids=["sum", "adapter"])
def test_other_folders_of_one_loop_run_any_number(tmp_path, fields):
    model, ids = three_stages(num_loops=1, loop_attention="own", loop_shift=False, **fields), tiny_ids(1, 7)
    model.save_pretrained(tmp_path)
    looped, info = PLTForCausalLM.from_pretrained(tmp_path, num_loops=3, output_loading_info=True)
    assert not info["missing_keys"]
    wanted = torch.from_numpy(ReferencePLT(looped.config, looped.state_dict()).logits(ids[0].tolist()))
    torch.testing.assert_close(logits_of(looped, ids)[0].double(), wanted, rtol=0, atol=1e-4 * wanted.abs().max())


def test_a_forward_and_generate_take_no_number_of_loops():
    model, ids = tiny_model(num_loops=2), tiny_ids(1, 5)
    for call in (model, model.model, model.generate):
        with pytest.raises(ValueError, match="num_loops"):
            call(ids, num_loops=1)


@pytest.mark.parametrize(
    "fields",
    [{"learned_scales": True}, ADAPTER, HUGINN | {"num_hidden_layers": 3, "num_coda_layers": 1}],
    ids=["scales", "adapter", "huginn"],
)
@pytest.mark.parametrize("num_loops", [1, 2])
def test_every_parameter_has_a_gradient_in_any_number_of_loops(fields, num_loops):
    model, ids = tiny_model(num_loops=num_loops, trained_loops=3, **fields).train(), tiny_ids(2, 9)
    model(ids, labels=ids).loss.backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []


def test_a_published_plt_is_loaded_with_one_loop(tmp_path):
    model, info = PLTForCausalLM.from_pretrained(PUBLISHED, num_loops=1, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    model.save_pretrained(tmp_path)
    ids, whole = tiny_ids(1, 7), PLTForCausalLM.from_pretrained(PUBLISHED)
    assert torch.equal(logits_of(PLTForCausalLM.from_pretrained(tmp_path, num_loops=2), ids), logits_of(whole, ids))


def test_a_config_says_what_the_folder_was_trained_with(tmp_path):
    tiny_model(num_loops=3).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()).get("trained_loops") is None
    loaded = PLTConfig.from_pretrained(tmp_path, num_loops=1)
    assert (loaded.num_loops, loaded.trained_loops) == (1, 3)
    assert PLTConfig.from_pretrained(tmp_path, num_loops=3).trained_loops is None
