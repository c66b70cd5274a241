"""Beam search, whose beams share prefixes and fork, finds what that of `generate` finds."""

import torch
from engines import engine
from vllm.sampling_params import BeamSearchParams

from serving_plt.vllm.tiny import byte_tokenizer, save_tiny

BEAMS, NEW = 3, 8


def test_beams_are_those_of_generate(tmp_path):
    model, tokenizer = save_tiny(tmp_path).eval(), byte_tokenizer()
    prompts = [tokenizer(text)["input_ids"] for text in ("def reach(text, width):", "import textwrap\n" * 8)]
    settings = {"max_new_tokens": NEW, "num_beams": BEAMS, "num_return_sequences": BEAMS, "do_sample": False}
    expected = [
        model.generate(torch.tensor([prompt]), eos_token_id=None, **settings)[:, len(prompt) :].tolist()
        for prompt in prompts
    ]
    with engine(tmp_path, skip_tokenizer_init=False) as llm:
        params = BeamSearchParams(beam_width=BEAMS, max_tokens=NEW, ignore_eos=True)
        answers = llm.beam_search([{"prompt_token_ids": prompt} for prompt in prompts], params)
    for prompt, found, beams in zip(prompts, answers, expected, strict=True):
        assert [sequence.tokens[len(prompt) :] for sequence in found.sequences] == beams
