# SPDX-License-Identifier: Apache-2.0
"""The picture of one decode step in README.md.

python -m laboratory.decode_step    # in a checkout; writes docs/decode_step.svg
"""

from collections.abc import Iterator
from pathlib import Path

FILE = Path(__file__).resolve().parents[1] / "docs/decode_step.svg"
WIDTH, HEIGHT = 900, 452
LOOPS, SEEN, WINDOW = 3, 14, 4  # tokens that are drawn, and how many of them a window holds
ROWS = [96, 166, 236]  # the top of each loop's boxes
LIGHT = {"page": "#ffffff", "ink": "#1f2328", "layers": "#eef1f4", "carry": "#cfe8ff", "keys": "#ffe7b3"}
DARK = {"page": "#0d1117", "ink": "#f0f6fc", "layers": "#1c232b", "carry": "#17406d", "keys": "#5c4400"}
TITLE = "One decode step of a PLT with three loops: one pass, which reads every weight once"


def style() -> str:
    """The colours, of a page that is light or dark as the reader's browser is."""

    def rules(colours: dict[str, str]) -> str:
        fills = " ".join(f".{name} {{ fill: {colour}; }}" for name, colour in colours.items())
        return f"{fills} .box {{ stroke: {colours['ink']}; }} .arrow {{ stroke: {colours['ink']}; fill: none; }}"

    return (
        f"<style>text {{ font: 14px sans-serif; }} .title {{ font-size: 16px; font-weight: bold; }} {rules(LIGHT)} "
        f"@media (prefers-color-scheme: dark) {{ {rules(DARK)} }}</style>"
    )


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "ink") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{words}</text>'


def box(kind: str, x: float, y: float, width: float, height: float, words: str = "") -> str:
    drawn = f'<rect class="{kind} box" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4"/>'
    return drawn + (text(x + width / 2, y + height / 2 + 5, words, "middle") if words else "")


def arrow(*points: tuple[float, float]) -> str:
    path = " L".join(f"{x:g} {y:g}" for x, y in points)
    return f'<path class="arrow" marker-end="url(#head)" d="M{path}"/>'


def passes() -> Iterator[str]:
    """From left to right: the carry, the input of each loop, the layers, and the states."""
    for x, words in (
        (110, "from token i - 1"),
        (316, "input at token i"),
        (538, "the layers, once"),
        (781, "state at token i"),
    ):
        yield text(x, 72, words, "middle")
    yield box("layers", 440, 84, 196, 212)
    for loop, y in enumerate(ROWS):
        middle = y + 23
        if loop:
            yield box("carry", 24, y, 172, 46, f"carry: state of loop {loop - 1}")
            yield arrow((196, middle), (212, middle))
        yield box("page", 213, y, 206, 46, "a * embedding + b * carry" if loop else "embedding")
        yield arrow((419, middle), (451, middle))
        yield box("page", 452, y, 172, 46, f"loop {loop}{', gated' if loop else ''}")
        yield arrow((624, middle), (685, middle))
        is_last = loop == LOOPS - 1
        yield box("page" if is_last else "carry", 686, y, 190, 46, "logits" if is_last else "carry for token i + 1")


def memory() -> Iterator[str]:
    """The keys and values that the layers read: a row of tokens for loop 0, and the last ones for later loops."""
    cell = 24
    left = 876 - SEEN * cell
    for number, (words, shown) in enumerate(
        (
            ("shared KV: loop 0 adds one token, every loop reads all", SEEN),
            *((f"window of loop {loop}: its last {WINDOW} tokens, never more", WINDOW) for loop in range(1, LOOPS)),
        )
    ):
        y = 326 + number * 36
        yield text(24, y + 17, words)
        for token in range(SEEN - shown, SEEN):
            yield box("keys", left + token * cell, y, cell, cell)
    yield text(876, HEIGHT - 10, "token i", "end")


def picture() -> str:
    head = (
        '<marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        '<path class="ink" d="M0 0 L8 4 L0 8 z"/></marker>'
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{TITLE}">',
        style(),
        f"<defs>{head}</defs>",
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}"/>',
        text(WIDTH / 2, 32, TITLE, "middle", "ink title"),
        *passes(),
        *memory(),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    FILE.write_text(picture(), encoding="utf-8")
