# SPDX-License-Identifier: Apache-2.0
"""Pipelines, streamers and generation of transformers on a saved PLT."""

from threading import Thread

import pytest
import torch
from greedy import greedy
from tiny import tiny_ids, tiny_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    TextIteratorStreamer,
    pipeline,
)

from modeling_plt import PLTForQuestionAnswering, PLTForSequenceClassification, PLTForTokenClassification

PROMPTS = ["def wrap(", "class TextWrapper: def __init__(self, width", "x"]
GREEDY = {"max_new_tokens": 12, "do_sample": False}


def proves(what: str, **note: str) -> pytest.MarkDecorator:
    return pytest.mark.proves(tool="transformers", what=what, **note)


@pytest.fixture(scope="module")
def model(chat_folder):
    return AutoModelForCausalLM.from_pretrained(chat_folder)


@pytest.fixture(scope="module")
def tokenizer(chat_folder):
    return AutoTokenizer.from_pretrained(chat_folder)


def continued(model, tokenizer, prompt: str) -> str:
    """The new text, of a single row and without a cache."""
    input_ids = tokenizer(prompt, return_tensors="pt").input_ids
    output = model.generate(input_ids, **GREEDY, use_cache=False)
    return tokenizer.decode(output[0, input_ids.shape[1] :], skip_special_tokens=True)


@proves('pipeline("text-generation"), in batches of rows with left padding')
def test_generated_texts_of_a_batch_are_those_of_its_rows(chat_folder, model, tokenizer):
    generator = pipeline("text-generation", str(chat_folder), device="cpu")
    rows = generator(PROMPTS, batch_size=3, return_full_text=False, **GREEDY)
    assert [row[0]["generated_text"] for row in rows] == [continued(model, tokenizer, prompt) for prompt in PROMPTS]


@proves('pipeline("text-generation") of a chat')
def test_a_generated_reply_is_what_generate_says(chat_folder, model, tokenizer):
    chat = [{"role": "user", "content": PROMPTS[0]}]
    reply = pipeline("text-generation", str(chat_folder), device="cpu")(chat, **GREEDY)[0]["generated_text"][-1]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert reply == {"role": "assistant", "content": continued(model, tokenizer, prompt)}


@proves('pipeline("feature-extraction")')
def test_features_are_the_last_states(chat_folder, model, tokenizer):
    features = pipeline("feature-extraction", str(chat_folder), device="cpu", return_tensors=True)(PROMPTS[1])
    expected = model.model(tokenizer(PROMPTS[1], return_tensors="pt").input_ids).last_hidden_state
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)


@pytest.fixture
def head_folder(chat_folder, tokenizer, tmp_path):
    """Saves the chat folder's decoder under another head, and its tokenizer."""

    def save(head: type) -> str:
        torch.manual_seed(0)
        head.from_pretrained(chat_folder, num_labels=3).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return str(tmp_path)

    return save


@proves('pipeline("text-classification"), by `PLTForSequenceClassification`')
def test_classes_of_a_batch_are_those_of_its_rows(head_folder):
    classify = pipeline("text-classification", head_folder(PLTForSequenceClassification), device="cpu", top_k=None)
    for batched, prompt in zip(classify(PROMPTS, batch_size=3), PROMPTS, strict=True):
        (alone,) = classify([prompt])
        assert [item["label"] for item in batched] == [item["label"] for item in alone]
        assert [item["score"] for item in batched] == pytest.approx([item["score"] for item in alone], abs=1e-5)


@proves('pipeline("token-classification"), by `PLTForTokenClassification`')
def test_classes_of_tokens_in_a_batch_are_those_of_its_rows(head_folder):
    classify = pipeline("token-classification", head_folder(PLTForTokenClassification), device="cpu")
    rows = classify(PROMPTS, batch_size=3)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        alone = classify(prompt)
        assert [item["entity"] for item in row] == [item["entity"] for item in alone]
        assert [item["score"] for item in row] == pytest.approx([item["score"] for item in alone], abs=1e-5)


@proves("`PLTForQuestionAnswering`", note="transformers 5 has no pipeline for it")
@torch.inference_mode()
def test_starts_and_ends_of_answers_in_a_batch_are_those_of_its_rows(head_folder, tokenizer):
    answer = PLTForQuestionAnswering.from_pretrained(head_folder(PLTForQuestionAnswering))
    batch = answer(**tokenizer(PROMPTS, return_tensors="pt", padding=True))
    for row, prompt in enumerate(PROMPTS):
        alone = answer(**tokenizer(prompt, return_tensors="pt"))
        num_tokens = alone.start_logits.shape[1]
        for name in ("start_logits", "end_logits"):
            torch.testing.assert_close(batch[name][row, -num_tokens:], alone[name][0], rtol=0, atol=1e-5)


@proves("`TextIteratorStreamer`")
def test_a_streamed_text_is_the_text(model, tokenizer):
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    inputs = tokenizer(PROMPTS[1], return_tensors="pt")
    thread = Thread(target=model.generate, kwargs={**inputs, **GREEDY, "streamer": streamer})
    thread.start()
    assert "".join(streamer) == continued(model, tokenizer, PROMPTS[1])
    thread.join(60)


@proves("assisted decoding, of a PLT by a plain decoder, and of a Llama by a PLT")
def test_assisted_decoding_gives_the_tokens_of_decoding_alone():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    llama, input_ids = LlamaForCausalLM(LlamaConfig(vocab_size=61, **sizes)).eval(), tiny_ids(1, 9)
    plt, plain = tiny_model(num_loops=3, pad_token_id=None), tiny_model(num_loops=1, pad_token_id=None)
    for target, assistant in ((plt, plain), (plt, llama), (llama, plt)):
        assert torch.equal(greedy(target, input_ids, assistant_model=assistant), greedy(target, input_ids))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=proves(f'`cache_implementation="{name}"`'))
        for name in ("offloaded", "quantized", "offloaded_static", "paged")
    ],
)
def test_other_caches_are_refused(name, refused):
    with refused(NotImplementedError, "is not supported"):
        greedy(tiny_model(), tiny_ids(1, 9), cache_implementation=name)


@proves("continuous batching: `generate_batch`")
def test_continuous_batching_is_refused(refused):
    with refused(NotImplementedError, "continuous batching has no place"):
        tiny_model().generate_batch([[5, 6]])


@proves("a `DynamicCache` of the caller")
def test_a_cache_that_is_not_ours_is_refused(refused):
    with refused(TypeError, "got `DynamicCache`"):
        greedy(tiny_model(), tiny_ids(1, 9), past_key_values=DynamicCache())


@pytest.mark.proves(tool="gguf", what="a GGUF file")
def test_a_gguf_file_is_refused(tmp_path, refused):
    gguf = pytest.importorskip("gguf", reason="needs the extra `tools`")
    writer = gguf.GGUFWriter(tmp_path / "plt.gguf", "plt")
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with refused(ValueError, "plt"):
        AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="plt.gguf")
