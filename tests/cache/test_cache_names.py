"""A cache is taken as `past_key_values` and as `cache`, whichever of them the installed transformers says."""

import inspect
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tiny import tiny_ids, tiny_model
from transformers import Trainer, TrainingArguments

import modeling_plt
from modeling_plt import PLTCache, PLTStaticCache
from modeling_plt.names_plt import CACHE_NAMES, THEIRS

GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 12}


@pytest.mark.parametrize("make", [PLTCache, lambda config: PLTStaticCache(config, 40)], ids=["dynamic", "static"])
@pytest.mark.parametrize("name", CACHE_NAMES)
def test_both_models_continue_a_cache_under_either_name(name, make):
    model, input_ids = tiny_model(num_loops=3), tiny_ids(2, 9)
    with torch.no_grad():
        logits, states = model(input_ids).logits, model.model(input_ids).last_hidden_state
        for part, expected, output in ((model, logits, "logits"), (model.model, states, "last_hidden_state")):
            cache = make(model.config)
            part(input_ids[:, :5], **{name: cache})
            continued = part(input_ids[:, 5:], **{name: cache})
            torch.testing.assert_close(continued[output], expected[:, 5:], rtol=0, atol=2e-5)  # summation order
            assert continued.past_key_values is cache and continued[THEIRS] is cache
            assert cache.get_seq_length() == 9


@pytest.mark.parametrize("name", CACHE_NAMES)
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_generate_takes_and_returns_a_cache_under_either_name(name, static):
    model, input_ids = tiny_model(num_loops=3).double(), tiny_ids(2, 9)
    mask = torch.ones_like(input_ids)
    expected = model.generate(input_ids, attention_mask=mask, use_cache=False, **GREEDY)
    cache = PLTStaticCache(model.config, 40) if static else PLTCache(model.config)
    output = model.generate(input_ids, attention_mask=mask, return_dict_in_generate=True, **{name: cache}, **GREEDY)
    assert torch.equal(output.sequences, expected)
    assert output.past_key_values is cache and cache.get_seq_length() == 20


def test_both_names_at_once_are_refused():
    model, input_ids = tiny_model(), tiny_ids(1, 4)
    both = {name: PLTCache(model.config) for name in CACHE_NAMES}
    for call in (model, model.model, model.generate, model.prepare_inputs_for_generation):
        with pytest.raises(ValueError, match="two names of one argument"):
            call(input_ids, **both)


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_inputs_are_prepared_under_the_name_that_adapters_read(name):
    model = tiny_model()
    cache = PLTCache(model.config)
    prepared = model.prepare_inputs_for_generation(tiny_ids(1, 4), **{name: cache}, use_cache=True)
    assert prepared["past_key_values"] is cache and "cache" not in prepared


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_adapters_pass_a_cache_on_under_either_name(name):
    model, input_ids = tiny_model(num_loops=3).double(), tiny_ids(1, 9)
    config = LoraConfig(target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False).eval().double()
    cache = PLTCache(model.config)
    with torch.no_grad():
        expected = adapted(input_ids=input_ids).logits
        adapted(input_ids=input_ids[:, :5], **{name: cache})
        logits = adapted(input_ids=input_ids[:, 5:], **{name: cache}).logits
    torch.testing.assert_close(logits, expected[:, 5:], rtol=0, atol=1e-9)  # summation order


def test_virtual_tokens_are_put_before_the_prompt_once():
    """PEFT asks the cache of the prepared inputs whether the prompt has been seen."""
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(tiny_model(num_loops=3).double(), config).eval()
    input_ids = tiny_ids(1, 6)
    tokens = input_ids
    for _ in range(12):
        with torch.no_grad():
            logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits
        tokens = torch.cat((tokens, logits[:, -1:].argmax(-1)), dim=1)
    generated = model.generate(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **GREEDY)
    assert torch.equal(generated, tokens)


def test_a_cache_is_no_prediction(tmp_path):
    model = tiny_model()
    model.config.use_cache = True
    arguments = TrainingArguments(tmp_path, report_to=[], use_cpu=True, use_cache=True)
    trainer = Trainer(model, arguments)
    rows = [{"input_ids": row, "labels": row} for row in tiny_ids(2, 6)]
    predictions = trainer.predict(rows).predictions
    assert predictions.shape == (2, 6, 61)


def test_devices_are_not_placed_for_a_cache():
    assert set(CACHE_NAMES) <= set(tiny_model()._skip_keys_device_placement)


def test_one_file_knows_both_names():
    """What else says `cache` is a class, a field or a sentence, not the name of an argument."""
    folder = Path(modeling_plt.__file__).parent
    for file in folder.glob("*.py"):
        if file.name != "names_plt.py":
            text = file.read_text()
            assert '"cache"' not in text and "cache=" not in text.replace("use_cache=", ""), file.name


def test_tools_that_read_signatures_see_our_name():
    model = tiny_model()
    for function in (model.forward, model.model.forward):
        assert "past_key_values" in inspect.signature(function).parameters
