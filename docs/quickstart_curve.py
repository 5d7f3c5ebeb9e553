"""Draws the reward of a run, step by step, and its greedy accuracy on test prompts, as docs/quickstart.svg.

python docs/quickstart_curve.py runs/quickstart
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

WIDTH, HEIGHT = 640, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 14, 34
INK, REWARD, ACCURACY = "#57606a", "#0969da", "#bc4c00"

Point = tuple[int, float]
"""RL step, and a number from 0 to 1."""


def read_curves(folder: Path) -> tuple[list[Point], list[Point]]:
    """(mean reward of each step, greedy accuracy after steps)."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rewards = [(line["step"], line["reward/mean"]) for line in lines if line.get("reward/mean") is not None]
    accuracies = [(line["step"], line["eval/accuracy"]) for line in lines if line.get("eval/accuracy") is not None]
    return rewards, accuracies


def draw(rewards: Sequence[Point], accuracies: Sequence[Point]) -> str:
    """A curve of the rewards, and a ring with its value for each accuracy; axes from 0 to the last step and to 1."""
    last = max(step for step, _ in [*rewards, *accuracies])

    def place(point: Point) -> tuple[float, float]:
        step, value = point
        x = LEFT + step / last * (WIDTH - LEFT - RIGHT)
        return round(x, 1), round(HEIGHT - BOTTOM - value * (HEIGHT - TOP - BOTTOM), 1)

    grid = "".join(
        f'<line x1="{LEFT}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="{INK}" stroke-opacity="0.25"/>'
        f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{value:g}</text>'
        for value in (0.0, 0.25, 0.5, 0.75, 1.0)
        for y in [place((0, value))[1]]
    )
    ticks = "".join(
        f'<text x="{place((step, 0))[0]}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{step}</text>'
        for step in range(0, last + 1, max(last // 6, 1))
    )
    curve = " ".join(f"{x},{y}" for x, y in map(place, rewards))
    rings = "".join(
        f'<circle cx="{x}" cy="{y}" r="5" fill="none" stroke="{ACCURACY}" stroke-width="2"/>'
        for x, y in map(place, accuracies)
    )
    said = " and ".join(f"{value:.3f} after {step} steps" for step, value in accuracies)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="12" fill="{INK}">\n'
        f"<title>Mean reward of each GRPO step; greedy accuracy on test documents {said}</title>\n"
        f'{grid}\n{ticks}\n<polyline points="{curve}" fill="none" stroke="{REWARD}" stroke-width="2"/>\n{rings}\n'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">GRPO step</text>\n'
        f'<text x="{LEFT + 150}" y="{HEIGHT - BOTTOM - 34}" fill="{REWARD}">mean reward of the step</text>\n'
        f'<text x="{LEFT + 150}" y="{HEIGHT - BOTTOM - 16}" fill="{ACCURACY}">'
        f"greedy accuracy on test documents: {said}</text>\n</svg>\n"
    )


if __name__ == "__main__":
    Path(__file__).with_name("quickstart.svg").write_text(draw(*read_curves(Path(sys.argv[1]))))
