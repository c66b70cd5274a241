"""Packed documents: what enters a block, and that none sees another."""

from itertools import chain

import pytest
import torch
from datasets import Dataset
from tiny import tiny_model
from training_texts import TEXTS, byte_tokenizer

from training_plt.data.packing import NO_LABEL, PackingCollator, pack

BLOCK = 49  # the longest text is longer, two of the others fit together


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module", params=["whole", "streaming"])
def entries(request, tokenizer):
    texts = Dataset.from_dict({"text": TEXTS})
    return list(pack(texts.to_iterable_dataset() if request.param == "streaming" else texts, tokenizer, BLOCK))


def documents(tokenizer) -> list[list[int]]:
    """The documents as they are packed: ended, and cut where they are longer than a block."""
    ended = [[*tokenizer(text).input_ids, tokenizer.eos_token_id] for text in TEXTS]
    return [tokens[start : start + BLOCK] for tokens in ended for start in range(0, len(tokens), BLOCK)]


def split(entry) -> list[list[int]]:
    tokens = iter(entry["input_ids"])
    return [[next(tokens) for _ in range(length)] for length in entry["seq_lengths"]]


def test_every_token_is_packed_once(entries, tokenizer):
    assert all(sum(entry["seq_lengths"]) == len(entry["input_ids"]) <= BLOCK for entry in entries)
    packed = chain.from_iterable(split(entry) for entry in entries)
    assert sorted(packed) == sorted(documents(tokenizer))
    assert len(entries) < len(documents(tokenizer)) > len(TEXTS)


def test_positions_restart_and_first_tokens_have_no_label():
    batch = PackingCollator(block_size=6, pad_token_id=9)(
        [{"input_ids": [1, 2, 3, 4, 5], "seq_lengths": [2, 3]}, {"input_ids": [5, 6, 7, 8, 1, 2], "seq_lengths": [6]}]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 9], [5, 6, 7, 8, 1, 2]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5]]
    assert batch["labels"].tolist() == [
        [NO_LABEL, 2, NO_LABEL, 4, 5, NO_LABEL],
        [NO_LABEL, 6, 7, 8, 1, 2],
    ]


def gradients(model, batches) -> dict[str, torch.Tensor]:
    """Of the sum of the losses of all tokens that have one."""
    model.zero_grad()
    for batch in batches:
        model(**batch, use_cache=False, num_items_in_batch=1).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_gradients_of_packed_documents_are_those_of_each_alone(entries, tokenizer, attn_implementation):
    model = tiny_model(num_loops=3, vocab_size=len(tokenizer), attn_implementation=attn_implementation).double()
    batch = PackingCollator(BLOCK, tokenizer.eos_token_id)(entries)
    alone = [torch.tensor([document]) for document in documents(tokenizer)]
    expected = gradients(model, [{"input_ids": each, "labels": each} for each in alone])
    for name, gradient in gradients(model, [batch]).items():
        # norms and losses round to float32
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-5 * expected[name].abs().max(), msg=name)
    unrestarted = batch | {"position_ids": torch.arange(BLOCK).expand(len(entries), -1)}
    changed = gradients(model, [unrestarted])
    distances = {name: (changed[name] - expected[name]).abs().max() / expected[name].abs().max() for name in expected}
    assert min(distances.values()) > 1e-3, "documents that see each other give other gradients"


def test_what_cannot_be_packed_is_refused(tokenizer):
    few, wrong = Dataset.from_dict({"text": ["def"]}), Dataset.from_dict({"text": ["def", None]})
    with pytest.raises(ValueError, match="at least one block of 50 tokens, got 4 in all"):
        pack(few, tokenizer, 50)
    with pytest.raises(ValueError, match="must hold strings, got None"):
        pack(wrong, tokenizer, 4)
    endless = byte_tokenizer()
    endless.eos_token = None
    with pytest.raises(ValueError, match="must have an end token"):
        pack(few, endless, 4)
