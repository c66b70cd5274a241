# SPDX-License-Identifier: Apache-2.0
"""One conversion from start to end: plan, write next to the target, verify, move into place."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers.dynamic_module_utils import custom_object_save

from modeling_plt import PLTForCausalLM

from .checks.distance import measure, read_text
from .checks.expected_logits import read_expected
from .checks.verify import verify_files, verify_logits
from .error_text import bytes_of
from .plan.cut import WHOLE, Cut
from .plan.plan import Plan, check_dropped, make_plan, untie_own_head
from .plan.to_plt import PLTStart, switch_on
from .reading.checkpoint import Checkpoint, open_checkpoint
from .reading.generation_config import check_generation
from .reading.hub import find_folder
from .reading.pickle_weights import has_only_pickles, unpickle
from .sources import find_source
from .target.card import write_card
from .target.copied_files import copy_belongings
from .target.staging import staged
from .target.write_weights import write_weights
from .tokenizers.tokenizer import write_tokenizer


@dataclass(frozen=True)
class Request:
    """A conversion: its source, its target and its options."""

    source: str  # folder or hub id
    target: Path
    command: str  # for the card
    revision: str | None = None
    num_loops: int | None = None  # of a vanilla loop, where the source leaves it open
    cut: Cut = WHOLE
    start: PLTStart | None = None  # switches the mechanisms on
    text: Path | None = None
    expected: Path | None = None
    ignored: frozenset[str] = frozenset()
    allow_pickle: bool = False
    keep_nan: bool = False


def convert(request: Request) -> list[str]:
    """Write the target folder; returns the checks and measurements, as sentences.

    Raises:
        ValueError: the source is not supported or is damaged, or a check failed. Nothing is left of the target.
        FileExistsError: the target exists.
        OSError: there is not enough space.
    """
    weights = ["*.safetensors", "*.bin"] if request.allow_pickle else ["*.safetensors"]
    with staged(request.target) as target:
        folder = find_folder(request.source, request.revision, weights)
        checkpoint = open_source(folder, target.with_name("pickled"), request.allow_pickle)
        source = find_source(checkpoint.config)
        exact = untie_own_head(make_plan(checkpoint, source, request.num_loops, set(request.ignored), request.cut))
        plan = exact if request.start is None else switch_on(exact, request.start)
        check_dropped(exact)
        check_generation(folder)
        expected = None
        if request.expected is not None:
            expected = read_expected(request.expected, plan.config.vocab_size)
        named_text = read_text(request.text)
        check_space(target, checkpoint.nbytes)
        sentences = write_folder(plan, folder, target)
        written = open_checkpoint(target)
        sentences += verify_files(plan, written, request.keep_nan)
        sentences.append(verify_logits(exact, written, expected))
        if plan is not exact:
            sentences.append(str(measure(exact, plan, written, *named_text)))
        write_card(target, request.source, folder, plan, request.command, sentences)
    return [*plan.notes, *sentences]


def open_source(folder: Path, pickled: Path, allow_pickle: bool) -> Checkpoint:
    """The checkpoint in a folder; pickle weights, if allowed, are first written to `pickled` as safetensors."""
    if not has_only_pickles(folder):
        return open_checkpoint(folder)
    if not allow_pickle:
        raise ValueError(f"{folder} has only pickle weights, which are not read unless `--allow-pickle` is given.")
    pickled.mkdir()
    unpickle(folder, pickled)
    return open_checkpoint(folder, weights=pickled)


def check_space(folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise OSError(
            f"The disk of the target must have {bytes_of(wanted)} free for the weights, got {bytes_of(free)}."
        )


def write_folder(plan: Plan, source: Path, target: Path) -> list[str]:
    """Write weights, config, code, tokenizer and the small files; returns sentences about the last two."""
    start, size = time.perf_counter(), plan.nbytes
    with tqdm(total=size, desc="Writing weights", unit="B", unit_scale=True) as bar:
        write_weights(plan, target, bar.update)
    print(f"Wrote {bytes_of(size)} of weights in {time.perf_counter() - start:.1f} seconds.")
    with torch.device("meta"):
        # its annotation says dict, its code takes configs
        custom_object_save(PLTForCausalLM(plan.config), target, config=plan.config)  # type: ignore[arg-type]
    plan.config.save_pretrained(target)
    return copy_belongings(source, target) + write_tokenizer(source, target)
