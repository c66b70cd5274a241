# SPDX-License-Identifier: Apache-2.0
"""The cache that requests of a PLT need in vLLM, by context and batch, as vLLM counts before it admits them.

    python -m serving_plt.vllm.sizing FOLDER
    python -m serving_plt.vllm.sizing 1.3b --contexts 4096 32768 --batches 1 32 --in-flight 4096

A name of a size is a PLT-2 of that size (`measuring_plt/sizes.py`).
"""

import argparse
from pathlib import Path
from typing import Any

from configuration_plt import PLTConfig
from measuring_plt.rows import ALL_ROWS
from measuring_plt.sizes import DENSE_SIZES, SIZES

from .groups import group_size, has_carry, layers_with_keys, num_slices

ITEM_SIZES = {"float32": 4, "bfloat16": 2, "fp8": 1}  # bytes of a number in the cache


def request_bytes(
    config: PLTConfig,
    context: int,
    item_size: int,
    block_size: int,
    in_flight: int,
    prefix_caching: bool = True,
    pruned: bool = False,
    drafts: int = 0,
) -> int:
    """Bytes of the blocks that vLLM counts for a request; in use they are fewer once its prompt is done.

    In a server of one process: of several, each has its share of the keys, and all of the carry.

    vLLM has layers of three kinds here: loops that keep all their keys, windows, and slices of the carry. It puts the
    layers of a kind into groups of one size, and a block holds B tokens of a group. For S tokens a group needs

        of all keys         ceil(S / B) blocks
        of windows of W     ceil(min(S, W - 1 + F) / B) + 1, where F is the number of tokens under way
        of the carry        1, and one for each draft of a step; with prefix caching 2 more, of pruned prompts 1 more

    Args:
        item_size: bytes of a number in the cache.
        block_size: B, tokens of a block.
        in_flight: F: `max_num_batched_tokens`, twice with async scheduling.
        pruned: whether prompts are, see `pruning.py`.
        drafts: `num_speculative_tokens`.
    """
    whole, windowed = layers_with_keys(config)
    slices = num_slices(config) if has_carry(config) else 0
    group = group_size(whole, windowed, slices)
    of_window = blocks(min(context, config.sliding_window - 1 + in_flight), block_size) + 1
    number = blocks(whole, group) * blocks(context, block_size) + blocks(windowed, group) * of_window
    number += blocks(slices, group) * (1 + drafts + prefix_caching * (1 if pruned else 2))
    assert config.num_key_value_heads is not None and config.head_dim is not None  # the config has set both
    column = 2 * config.num_key_value_heads * config.head_dim * item_size
    return number * group * block_size * column


def blocks(number: int, size: int) -> int:
    """How many of a size hold a number."""
    return -(-number // size)


def config_of(model: str) -> PLTConfig:
    """Of a size, or of a folder."""
    if model in SIZES:
        return PLTConfig(**SIZES[model] | ALL_ROWS["plt-2"].fields)
    return PLTConfig.from_pretrained(model)


def table(config: PLTConfig, contexts: list[int], batches: list[int], **settings: Any) -> str:
    """GB by context and batch, with the ratio to the same model of one loop, as Markdown."""
    plain = PLTConfig(**{**config.to_dict(), "num_loops": 1, "trained_loops": None})
    lines = ["| context | to plain |" + "".join(f" batch {batch}, GB |" for batch in batches)]
    lines.append("|---|---|" + "---|" * len(batches))
    for context in contexts:
        size = request_bytes(config, context, **settings)
        ratio = size / request_bytes(plain, context, **settings)
        cells = "".join(f" {batch * size / 1e9:.2f} |" for batch in batches)
        lines.append(f"| {context} | {ratio:.2f} |{cells}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help=f"a folder with a PLT, or one of {', '.join(DENSE_SIZES)}")
    parser.add_argument("--contexts", nargs="+", type=int, default=[2048, 8192, 32768], help="tokens of a request")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32], help="numbers of requests")
    parser.add_argument("--cache-dtype", choices=ITEM_SIZES, default="bfloat16", help="default: %(default)s")
    parser.add_argument("--block-size", type=int, default=16, help="tokens of a block; default: %(default)s, vLLM's")
    parser.add_argument(
        "--in-flight",
        type=int,
        default=4096,
        help="tokens under way: `--max-num-batched-tokens`, twice with async scheduling; default: %(default)s",
    )
    parser.add_argument(
        "--drafts", type=int, default=0, help="of a step: `num_speculative_tokens`; default: %(default)s, no drafts"
    )
    parser.add_argument(
        "--prefix-caching", action=argparse.BooleanOptionalAction, default=True, help="vLLM's; default: %(default)s"
    )
    parser.add_argument("--pruned", action="store_true", help="as with `--kv-sharing-fast-prefill`")
    args = parser.parse_args(arguments)
    if args.model not in SIZES and not Path(args.model).is_dir():
        parser.error(f"`model` must be a folder or one of {', '.join(DENSE_SIZES)}, got {args.model}.")
    settings = {"item_size": ITEM_SIZES[args.cache_dtype]}
    names = ("block_size", "in_flight", "prefix_caching", "pruned", "drafts")
    settings |= {name: getattr(args, name) for name in names}
    print(table(config_of(args.model), args.contexts, args.batches, **settings))


if __name__ == "__main__":
    main()
