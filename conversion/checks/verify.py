# SPDX-License-Identifier: Apache-2.0
"""Checking what was written: every tensor in the folder, and the logits that they give."""

from collections import Counter

import torch
import transformers
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from configuration_plt import PLTConfig
from modeling_plt import PLTForCausalLM

from ..error_text import named
from ..plan.plan import Plan, expected_shapes
from ..plan.shapes import check_shapes
from ..reading.checkpoint import Checkpoint
from .expected_logits import Expected
from .streamed_model import streamed_model

TOLERANCE = 1e-4  # of logits; in float32 summation order alone was measured at 1e-5
# where rounding moves them further, they may differ by so many times as much, up to the second number
ROUNDINGS, LARGEST_ROUNDING = 4, 0.05
LENGTH = 160  # tokens of each sequence; a window or a limit of positions beyond it would not be seen
PART = 1 << 20  # values looked at together


def verify_files(plan: Plan, written: Checkpoint, keep_nan: bool) -> list[str]:
    """Compare the written folder with the plan; returns sentences about what was checked.

    Raises:
        ValueError: the config or a tensor differs from the plan, or a tensor holds NaN or infinity.
    """
    if PLTConfig.from_pretrained(written.folder).to_dict() != plan.config.to_dict():
        raise ValueError("The config reads back differently from what was written.")
    check_shapes({name: tensor.shape for name, tensor in written.tensors.items()}, expected_shapes(plan.config))
    not_finite = {}
    for name, expected in tqdm(plan.tensors(), total=len(written.tensors), desc="Checking tensors", unit="tensor"):
        values = written.tensors[name].load().flatten()
        if values.dtype != expected.dtype or not same_bits(values, expected.flatten()):
            raise ValueError(f"{named(name)} in the written folder differs from what the source gives.")
        count = sum(int((~part.isfinite()).sum()) for part in values.split(PART))
        if count:
            not_finite[name] = count
    if not_finite and not keep_nan:
        name, count = next(iter(not_finite.items()))
        raise ValueError(
            f"{len(not_finite)} tensors hold NaN or infinity, {named(name)} {count} times; `--keep-nan` keeps them."
        )
    dtypes = ", ".join(
        f"{count} {dtype}" for dtype, count in Counter(t.dtype for t in written.tensors.values()).items()
    )
    finite = (
        f"{sum(not_finite.values()):,} values are NaN or infinite" if not_finite else "No value is NaN or infinite"
    )
    return [
        f"{len(written.tensors)} tensors ({dtypes}) are exactly those of the config: {len(plan.kept)} equal to the "
        f"source's to the bit, {plan.num_derived} computed from the source's, {len(plan.added)} new; "
        f"{len(plan.dropped)} of the source were dropped.",
        f"{finite}.",
    ]


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two flat tensors have the same bytes, which makes NaN equal to itself."""
    return all(
        torch.equal(one.view(torch.uint8), other.view(torch.uint8))
        for one, other in zip(first.split(PART), second.split(PART), strict=True)
    )


def verify_logits(exact: Plan, written: Checkpoint, expected: Expected | None) -> str:
    """Compare the logits of the written weights with those of the source, whose config `exact` expresses exactly.

    Both are computed in float32, with one layer in memory at a time, and if they differ in float64. The source's
    logits come from `--expected`, or else from transformers' own class for it.

    Raises:
        ValueError: the logits differ by more than 1e-4, and by more than rounding does; or they are not finite.
    """
    name = exact.source.reference_class
    if expected is not None:
        input_ids, origin = expected.input_ids, expected.file.name
    else:
        shape = 2, min(LENGTH, exact.config.max_position_embeddings)
        input_ids = torch.randint(exact.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
        origin = f"transformers' {name}"

    actual = plt_logits(exact.config, written, input_ids)
    if not actual.isfinite().all():
        raise ValueError("The written weights give logits that are not finite.")
    if expected is None and name is None:
        return (
            "Logits are finite. Nothing here can run the source; `--expected FILE` would compare them with its logits."
        )

    def source_logits(dtype: torch.dtype) -> Tensor:
        if expected is not None:
            return expected.logits
        assert name is not None  # as just checked
        return reference_logits(exact, getattr(transformers, name), input_ids, dtype)

    tokens = " x ".join(map(str, input_ids.shape))
    error = largest_difference(actual, source_logits(torch.float32))
    if error <= TOLERANCE:
        return f"Logits of {tokens} tokens agree with {origin}: largest difference {error:.1e}."
    # residual norms and many loops enlarge what rounding does, in the source as here
    precise = plt_logits(exact.config, written, input_ids, torch.float64)
    rounding = largest_difference(actual, precise)
    if rounding > LARGEST_ROUNDING:
        raise ValueError(
            f"Logits can be compared with those of {origin} if float32 moves them by {LARGEST_ROUNDING} at most, got "
            f"{rounding:.1e}: run fewer loops there and here, or leave out `--expected`."
        )
    error, allowed = largest_difference(precise, source_logits(torch.float64)), allowed_difference(rounding)
    if not error <= allowed:
        raise ValueError(f"Logits differ from those of {origin} by {error:.1e}, more than {allowed:.1g}.")
    return (
        f"Logits of {tokens} tokens agree with {origin}: largest difference {error:.1e} in float64; float32 moves "
        f"them by {rounding:.1e}."
    )


def allowed_difference(rounding: float) -> float:
    """How much logits may differ, if rounding to float32 moves them so much: norms and rotations stay in float32."""
    return max(TOLERANCE, min(ROUNDINGS * rounding, LARGEST_ROUNDING))


def largest_difference(logits: Tensor, others: Tensor) -> float:
    return (logits - others).abs().max().item()


@torch.inference_mode()
def plt_logits(
    config: PLTConfig, checkpoint: Checkpoint, input_ids: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Logits `[B, T, V]` that a checkpoint gives under a config."""
    model = streamed_model(PLTForCausalLM, config, checkpoint.tensors, dtype)
    with progress(model, config):
        return model(input_ids, use_cache=False).logits


@torch.inference_mode()
def reference_logits(exact: Plan, model_class: type[PreTrainedModel], input_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Logits `[B, T, V]` of transformers' own class on the source's files.

    Its layers run as often as the config says, the norm after each loop of those that loop, and once more at the end.
    """
    model = reference_model(exact, model_class, dtype)
    with progress(model, exact.config):
        states, layers, norm = model.model.embed_tokens(input_ids), model.model.layers, model.model.norm
        for stage in exact.config.stages:
            model.model.layers = nn.ModuleList([layers[exact.layers[layer_idx]] for layer_idx in stage.layers])
            for loop_idx in stage.loops:
                feeds_a_loop = loop_idx != stage.loops[-1]
                model.model.norm = norm if feeds_a_loop else nn.Identity()
                states = model.model(inputs_embeds=states, use_cache=False).last_hidden_state
        return model.lm_head(norm(states))


@torch.inference_mode()
def whole_source_logits(exact: Plan, model_class: type[PreTrainedModel], input_ids: Tensor) -> Tensor:
    """The same of all its layers, also of those that were left out."""
    return reference_model(exact, model_class, torch.float32)(input_ids, use_cache=False).logits


def reference_model(exact: Plan, model_class: type[PreTrainedModel], dtype: torch.dtype) -> PreTrainedModel:
    config = exact.source.reference_config(exact.checkpoint.config)[0]
    config.tie_word_embeddings = exact.config.tie_word_embeddings  # not where a head of its own is stored
    return streamed_model(model_class, config, exact.checkpoint.tensors, dtype)


def progress(model: PreTrainedModel, config: PLTConfig) -> tqdm:
    """A bar that counts the layers that have run, of as many as the config says."""
    total = sum(len(stage.layers) * len(stage.loops) for stage in config.stages)
    bar = tqdm(total=total, desc=f"Running {type(model).__name__}", unit="layer")
    for layer in model.model.layers:
        layer.register_forward_hook(lambda *_: bar.update() and None)
    return bar
