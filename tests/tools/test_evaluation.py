# SPDX-License-Identifier: Apache-2.0
"""lm-eval on a saved PLT."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra `eval`")

PAIRS = [("def wrap", " (text):"), ("class TextWrapper: def __init__(self,", " width"), ("x", " = y")]


def make_lm(folder, batch_size: int):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", batch_size=batch_size, dtype="float32")


def requests(kind: str, arguments: list[tuple]) -> list:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=pair, idx=index) for index, pair in enumerate(arguments)]


@pytest.mark.proves(tool="lm_eval", what="`--model hf`: `loglikelihood`, in batches")
@torch.inference_mode()
def test_log_likelihoods_of_a_batch_are_those_of_the_model(chat_folder):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(chat_folder), AutoTokenizer.from_pretrained(chat_folder)
    found = make_lm(chat_folder, 3).loglikelihood(requests("loglikelihood", PAIRS))
    for (context, text), (log_likelihood, is_greedy) in zip(PAIRS, found, strict=True):
        whole, num_context = tokenizer(context + text).input_ids, len(tokenizer(context).input_ids)
        logits = model(torch.tensor([whole])).logits[0, num_context - 1 : -1].log_softmax(-1)
        targets = torch.tensor(whole[num_context:])
        assert log_likelihood == pytest.approx(logits.gather(1, targets[:, None]).sum().item(), abs=1e-4)
        assert is_greedy == logits.argmax(-1).equal(targets)


@pytest.mark.proves(tool="lm_eval", what="`--model hf`: `generate_until`, in batches with left padding")
def test_texts_of_a_batch_are_those_of_its_rows(chat_folder):
    settings = {"until": ["\n"], "max_gen_toks": 12, "do_sample": False}
    texts = [
        make_lm(chat_folder, size).generate_until(
            requests("generate_until", [(context, settings.copy()) for context, _ in PAIRS])
        )
        for size in (1, 3)
    ]
    assert all(texts[0])
    assert texts[0] == texts[1]


@pytest.mark.proves(tool="lm_eval", what="`--model hf`: another `num_loops` in `--model_args`")
def test_the_number_of_loops_is_an_argument_of_the_model(chat_folder):
    from lm_eval.models.huggingface import HFLM

    lms = [HFLM(pretrained=str(chat_folder), device="cpu", dtype="float32", num_loops=loops) for loops in (1, 2)]
    assert [lm.model.config.num_loops for lm in lms] == [1, 2]
    first, second = (lm.loglikelihood(requests("loglikelihood", PAIRS)) for lm in lms)
    assert first != second
