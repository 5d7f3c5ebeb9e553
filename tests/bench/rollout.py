"""Completion tokens per second of the rollout engines, against bare SGLang; prints one JSON line.

    python tests/bench/rollout.py

4 prompts x 8 completions of 1,024 + 64 tokens on the tiny model, one engine, no stop token. Ours: driver, leases, Ray
actor, ZeroMQ. Bare: the same SGLang engine with the same arguments, in a process of its own, given the same requests in
one call. Both are warmed up on other prompts; rounds of the two sides alternate, on a cache that is new to the prompts,
and the median of each side counts: other load on the machine moves both alike.

    ratio             ours / bare
    prefill_tokens    prompt tokens that were computed in a round of ours
    prompt_tokens     tokens of the 4 prompts: what has to be computed at least
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

from hybridflow.config.rollout_section import RolloutSection
from hybridflow.observability.reporter import Notes
from hybridflow.policy.init import write_policy
from hybridflow.rollout.driver.opening import RolloutSettings
from hybridflow.rollout.engine.arguments import build_arguments, engine_environment
from hybridflow.runtime.open_engines import Engines, open_engines
from hybridflow.types import GroupRequest, Prompt, SamplingParams

ROOT = Path(__file__).parents[2]
Round = tuple[float, int, int]
"""Seconds, completion tokens, prompt tokens computed."""


def main() -> None:
    options = parse_arguments()
    section = RolloutSection(num_threads=1, context_tokens=4096, kv_cache_tokens=65_536, start_timeout_s=600)
    sampling = SamplingParams(temperature=1.0, max_new_tokens=options.response_tokens)
    with tempfile.TemporaryDirectory() as folder:
        hf_dir = Path(folder) / "hf"
        write_policy(ROOT / "configs/models/tiny", hf_dir, seed=0)
        # Every completion is as long as asked for: no token of this model ends one.
        edit_json(hf_dir / "config.json", eos_token_id=None)
        edit_json(hf_dir / "generation_config.json", eos_token_id=None)
        edit_json(hf_dir / "tokenizer_config.json", eos_token=None)
        settings = RolloutSettings(section, "float32", seed=0, initial_version=0)
        with open_engines(settings, hf_dir, Path(folder) / "logs", Notes()) as engines:
            bare = BareEngine(hf_dir, build_arguments(section, dtype="float32", seed=0), engine_environment(section, 0))
            rounds: dict[str, list[Round]] = {"ours": [], "bare": []}
            for number in range(options.rounds + 1):
                prompts = draw_prompts(number, options)
                ours = our_round(engines, f"r{number}", prompts, options.completions, sampling)
                theirs = bare.round(prompts, options.completions, sampling.max_new_tokens)
                if number:  # the first warms up
                    rounds["ours"].append(ours)
                    rounds["bare"].append(theirs)
            bare.close()
    speed = {side: statistics.median(tokens / seconds for seconds, tokens, _ in rounds[side]) for side in rounds}
    result = {
        "ratio": round(speed["ours"] / speed["bare"], 3),
        "prefill_tokens": max(computed for _, _, computed in rounds["ours"]),
        "prompt_tokens": options.prompts * options.prompt_tokens,
        "tokens_per_s": round(speed["ours"]),
        "bare_tokens_per_s": round(speed["bare"]),
        "bare_prefill_tokens": max(computed for _, _, computed in rounds["bare"]),
        "completion_tokens": rounds["ours"][0][1],
        "completions": options.completions,
        "rounds": options.rounds,
    }
    print(json.dumps(result))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--completions", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--response-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def edit_json(path: Path, **values: Any) -> None:
    if path.exists():
        path.write_text(json.dumps(json.loads(path.read_text()) | values))


def draw_prompts(number: int, options: argparse.Namespace) -> list[list[int]]:
    draw = random.Random(number)
    return [[draw.randrange(5, 300) for _ in range(options.prompt_tokens)] for _ in range(options.prompts)]


def our_round(engines: Engines, name: str, prompts: list[list[int]], num: int, sampling: SamplingParams) -> Round:
    requests = [
        GroupRequest(
            group_id=f"{name}-g{slot:04d}",
            prompt=Prompt(prompt_id=f"p{slot}", token_ids=tokens, data_source="", ability="", ground_truth=""),
            num_completions=num,
        )
        for slot, tokens in enumerate(prompts)
    ]
    started = time.monotonic()
    completions = list(engines.generate(requests, sampling))
    seconds = time.monotonic() - started
    computed = sum(completion.prompt_tokens - completion.cached_tokens for completion in completions)
    return seconds, sum(len(completion.token_ids) for completion in completions), computed


class BareEngine:
    """SGLang alone in a process of its own."""

    def __init__(self, hf_dir: Path, arguments: dict[str, Any], environment: dict[str, str]) -> None:
        before = dict(os.environ)
        os.environ.update(environment)  # for the process that is started here, and its own
        try:
            self._pipe, theirs = multiprocessing.get_context("spawn").Pipe()
            self._process = multiprocessing.get_context("spawn").Process(
                target=serve_bare, args=(theirs, str(hf_dir), arguments)
            )
            self._process.start()
            theirs.close()  # so that its end is seen here
        finally:
            os.environ.clear()
            os.environ.update(before)

    def round(self, prompts: list[list[int]], num: int, max_new_tokens: int) -> Round:
        try:
            self._pipe.send((prompts, num, max_new_tokens))
            return self._pipe.recv()
        except (BrokenPipeError, EOFError) as error:
            self._process.join(timeout=10)
            raise RuntimeError(f"the bare engine ended with exit code {self._process.exitcode}") from error

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join(timeout=30)


def serve_bare(pipe: Connection, hf_dir: str, arguments: dict[str, Any]) -> None:
    # A spawned process takes over the search path of its parent, without what the environment adds.
    sys.path[:0] = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    from sglang.srt.entrypoints.engine import Engine

    logging.getLogger().setLevel(logging.ERROR)
    engine = Engine(model_path=hf_dir, **arguments)
    while (work := pipe.recv()) is not None:
        prompts, num, max_new_tokens = work
        input_ids = [tokens for tokens in prompts for _ in range(num)]
        started = time.monotonic()
        outputs = engine.generate(
            input_ids=input_ids,
            sampling_params={"temperature": 1.0, "max_new_tokens": max_new_tokens},
            return_logprob=True,
        )
        seconds = time.monotonic() - started
        computed = sum(
            output["meta_info"]["prompt_tokens"] - output["meta_info"]["cached_tokens"] for output in outputs
        )
        pipe.send((seconds, sum(len(output["output_ids"]) for output in outputs), computed))
    engine.shutdown()


if __name__ == "__main__":
    main()
