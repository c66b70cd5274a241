"""Masks in blocks and a dense mask give the same window; the section measures both."""

import json

import pytest
import torch

from command_plt.main import main
from laboratory.costs.window_masks import MASKS, WORK, Case
from measuring_plt.models import Setup
from measuring_plt.sizes import SIZES
from modeling_plt.blocks_plt import BlockMask

FIELDS = SIZES["0.5b"] | {"sliding_window": 8, "hidden_size": 192, "num_attention_heads": 12}


def case(attention, num_tokens):
    return Case(Setup(FIELDS, torch.device("cpu"), torch.float32, attention), num_tokens)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("num_tokens", [9, 16, 50])
def test_both_masks_give_the_same_output_and_gradients(attention, num_tokens):
    window = case(attention, num_tokens)
    for kind in ("forward", "forward and backward"):
        blocks, dense = (window.work(kind, mask)() for mask in MASKS)
        torch.testing.assert_close(blocks, dense, rtol=0, atol=1e-5)  # fp32 summation order
    output = window.work("forward", "blocks")()
    assert output.shape == (1, 1, num_tokens, 12, 16) and output.std() > 0.1


def test_one_mask_is_in_blocks_and_the_other_has_an_entry_for_each_pair():
    window = case("sdpa", 50)
    made = {mask: window.work("mask", mask)() for mask in MASKS}
    assert isinstance(made["blocks"], BlockMask) and made["blocks"].visible.shape == (7, 1, 1, 8, 15)
    assert made["dense"].shape == (1, 1, 50, 50)
    assert made["dense"].sum() == 8 * 50 - 28, "eight keys for each query, but for the first seven"


def test_the_section_has_every_length_and_kind_of_work(tmp_path):
    main(
        ["bench", "masks", "--size", "tiny", "--device", "cpu", "--threads", "1", "--lengths", "12", "40"]
        + ["--rounds", "2", "--output", str(tmp_path)]
    )
    lines = json.loads((tmp_path / "masks.json").read_text())["masks"]
    assert [(line["tokens"], line["work"]) for line in lines] == [(n, kind) for n in (12, 40) for kind in WORK]
    for line in lines:
        rounds = [line[f"{mask}, ms, by round"] for mask in MASKS]
        ratios = sorted(own / other for own, other in zip(*rounds, strict=True))
        assert line["blocks / dense"] == pytest.approx(sum(ratios) / 2)
        assert all(min(times) <= line[f"{mask}, ms"] <= max(times) for mask, times in zip(MASKS, rounds, strict=True))
