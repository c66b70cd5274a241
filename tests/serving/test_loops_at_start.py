"""`hf_overrides` with `num_loops` serve what `from_pretrained(num_loops=...)` loads, and refuse what it refuses."""

import logging

import pytest
from engines import OPTIONS, engine, generated, random_prompts, save_tiny, served
from transformers.utils.logging import warning_once
from vllm.engine.arg_utils import EngineArgs

from modeling_plt import PLTForCausalLM
from modeling_plt.modeling_plt import logger


@pytest.fixture
def warnings(caplog):
    """What the model says."""
    warning_once.cache_clear()
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING, logger.name):
        yield caplog
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize("num_loops", [1, 2, 3, 4])
def test_fewer_and_more_loops_than_trained(num_loops, warnings, tmp_path):
    """What fewer loops do not read, gates and scales, is in the folder all the same."""
    trained = save_tiny(tmp_path, num_loops=3, learned_scales=True)
    model = PLTForCausalLM.from_pretrained(tmp_path, num_loops=num_loops).eval()
    prompts = random_prompts()
    expected = generated(model, prompts)
    assert (expected == generated(trained, prompts)) == (num_loops == 3)
    warning_once.cache_clear()
    warnings.clear()
    with engine(tmp_path, hf_overrides={"num_loops": num_loops}) as llm:
        assert served(llm, prompts) == expected
        assert served(llm, prompts) == expected  # from cached prefixes
    said = {record.getMessage() for record in warnings.records}
    assert any("but was trained with 3" in each for each in said) == (num_loops > 3)


def test_a_folder_that_was_saved_with_another_number_than_trained(tmp_path):
    save_tiny(tmp_path / "trained", num_loops=3)
    model = PLTForCausalLM.from_pretrained(tmp_path / "trained", num_loops=1).eval()
    model.save_pretrained(tmp_path)
    prompts = random_prompts()
    with engine(tmp_path) as llm:
        assert served(llm, prompts) == generated(model, prompts)


@pytest.mark.parametrize(
    ("trained", "overrides", "message"),
    [
        (1, {"num_loops": 2}, "the folder was saved with one loop, and later ones need gates"),
        (2, {"num_loops": 0}, "`?num_loops"),
        (2, {"num_loops": "2"}, "`?num_loops"),
        (2, {"num_loop": 3}, "is `num_loops` meant"),
        (2, {"plt_num_loops": 3}, "as `num_loops`, got `plt_num_loops`"),
    ],
    ids=str,
)
def test_refusals(trained, overrides, message, tmp_path):
    save_tiny(tmp_path, num_loops=trained)
    with pytest.raises(Exception, match=message):
        EngineArgs(model=str(tmp_path), hf_overrides=overrides, **OPTIONS).create_engine_config()
