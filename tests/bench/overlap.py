"""A step whose reward takes as long as its decoding, on the real stack; prints one JSON line.

    python tests/bench/overlap.py

`hybridflow train` on the tiny model: Megatron, one SGLang engine that decodes 4 completions at a time, reward workers.
The verifier, a function of this file, sleeps. The first steps tell how long decoding takes; then the verifier is told
to sleep so long for each completion that all workers together need the same time for a step: `score_s`, the sleep of
all completions over the number of workers. All else is read from timeline.jsonl of the run, the median over the later
steps.

`ratio` is the whole step, training and publishing included, over the longer of `decode_s` and `score_s`;
`rollout_ratio` the same for collecting alone. One after the other would be 2.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.stack_cpu.command import ROOT, read_lines, settings, started_train

SECONDS_FILE = "OVERLAP_SECONDS_FILE"
NUM_CALIBRATION_STEPS = 3
DECODED_TOGETHER = 4


def verify(text: str, ground_truth: str) -> float:
    """Sleeps as the file says, then finds about every second completion right, so that most groups are trained on."""
    time.sleep(float(Path(os.environ[SECONDS_FILE]).read_text()))
    return float(zlib.crc32(text.encode()) % 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="steps that are measured")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128, help="of each completion: the model is untrained")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(options, Path(folder))))


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    seconds_file, timeline = folder / "seconds", folder / "quickstart/timeline.jsonl"
    seconds_file.write_text("0")
    os.environ[SECONDS_FILE] = str(seconds_file)
    os.environ["PYTHONPATH"] = str(ROOT)
    num_steps = NUM_CALIBRATION_STEPS + 1 + options.steps  # what changes during a step makes it neither
    arguments = settings(
        ROOT / "configs/models/tiny",
        folder,
        model__init="seeded",
        train__num_steps=num_steps,
        train__prompts_per_step=options.prompts,
        eval__num_prompts=0,
        checkpoint__every_steps=0,
        tracking__wandb="disabled",
        rollout__max_new_tokens=options.tokens,
        reward__num_workers=options.workers,
    )
    verifiers = 'reward.rules.verifiers={"doc-qa" = "tests.bench.overlap:verify"}'
    engine = f"rollout.sglang={{max_running_requests = {DECODED_TOGETHER}}}"
    log = folder / "output.txt"
    with started_train(["--set", *arguments, verifiers, engine], log) as process:
        while len(read_lines(timeline)) < NUM_CALIBRATION_STEPS:
            if process.poll() is not None:
                raise SystemExit(f"the run ended early:\n{log.read_text()[-3000:]}")
            time.sleep(0.05)
        num_items = options.prompts * 4
        decode_s = statistics.median(_length(line, "decode") for line in read_lines(timeline)[1:])
        item_s = decode_s * options.workers / num_items
        seconds_file.write_text(f"{item_s:.6f}")
        if process.wait() != 0:
            raise subprocess.CalledProcessError(process.returncode, "hybridflow train", log.read_text()[-3000:])
    return _measure(read_lines(timeline)[-options.steps :], item_s * num_items / options.workers, options)


def _measure(lines: list[dict[str, Any]], score_s: float, options: argparse.Namespace) -> dict[str, Any]:
    def median(name: str) -> float:
        return round(statistics.median(_length(line, name) for line in lines), 3)

    longer = [max(_length(line, "decode"), score_s) for line in lines]
    ratios = {
        name: statistics.median(_length(line, name) / one for line, one in zip(lines, longer, strict=True))
        for name in ("step", "rollout")
    }
    return {
        "ratio": round(ratios["step"], 3),
        "rollout_ratio": round(ratios["rollout"], 3),
        "decode_s": median("decode"),
        "score_s": round(score_s, 3),
        "step_s": median("step"),
        "rollout_s": median("rollout"),
        "score_span_s": median("score"),
        "train_s": median("train"),
        "sync_s": median("sync"),
        "completions": options.prompts * 4,
        "workers": options.workers,
        "steps": len(lines),
    }


def _length(line: dict[str, Any], name: str) -> float:
    began, ended = line["spans"][name]
    return ended - began


if __name__ == "__main__":
    main()
