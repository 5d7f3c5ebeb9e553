"""Verdicts of the judge's client against a server that misbehaves; prints one JSON line.

    python tests/bench/judge.py --verdicts 1000 --concurrency 16

The server, a process of its own, refuses 20% of the requests (429), fails on 5% (500), never answers 5%, answers 5%
with garbage and the rest rightly, after 50 to 500 ms.

`ratio` is verdicts per second over what `--concurrency` requests at a time permit to the best client there can be: one
that loses no time but what the server costs it. Of 20 requests, 13 are answered rightly; refusals and failures cost
nothing, an answer, right or garbage, 275 ms of its slot, and one that never comes 500 ms, as only then it is certain
that it will not. So each right answer costs 335 ms of a slot. `ratio_to_faultless` is over what a server without
faults would permit; with these faults it cannot be above 0.82.

The end is in it: the last verdicts, when slots stay empty because nothing is left to ask. So is all other work of the
machine: `client_cpu_ms_per_request` says what is the client's own, and `--slower 8` makes what that work costs the
client small beside the server's times.

With `--down`, nobody listens at either of two endpoints: all verdicts must be unknown, within the deadline.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from hybridflow.config.judge_section import JudgeSection
from hybridflow.reward_service.judge.client import JudgeClient, Judgement
from tests.bench.judge_server import BUSY, ERROR, FAULTY_TWENTY, GARBAGE, NEVER, RIGHT, serving_apart
from tests.ports import free_port

DELAY_S = (0.05, 0.5)
SLOT_S = {RIGHT: sum(DELAY_S) / 2, GARBAGE: sum(DELAY_S) / 2, NEVER: DELAY_S[1], BUSY: 0.0, ERROR: 0.0}
SLOT_S_PER_RIGHT_ANSWER = sum(SLOT_S[kind] for kind in FAULTY_TWENTY) / FAULTY_TWENTY.count(RIGHT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verdicts", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--votes", type=int, default=1)
    parser.add_argument("--deadline-s", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slower", type=float, default=1.0, help="the server's times are multiplied by this")
    parser.add_argument("--down", action="store_true")
    options = parser.parse_args()
    settings = {
        "max_concurrency": options.concurrency, "num_votes": options.votes, "deadline_s": options.deadline_s
    }  # fmt: skip
    if options.down:
        section = JudgeSection(
            endpoints=[f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"], **settings
        )
        print(json.dumps(asyncio.run(judge_all(section, options))))
        return
    delay_s = (DELAY_S[0] * options.slower, DELAY_S[1] * options.slower)
    with serving_apart(plan=FAULTY_TWENTY, delay_s=delay_s, seed=options.seed) as server:
        result = asyncio.run(judge_all(JudgeSection(endpoints=[server.url], **settings), options))
    votes_needed = options.votes // 2 + 1
    faultless = options.concurrency / (sum(delay_s) / 2) / votes_needed
    permitted = options.concurrency / (SLOT_S_PER_RIGHT_ANSWER * options.slower) / votes_needed
    result |= {
        "permitted_per_s": round(permitted, 2),
        "ratio": round(result["verdicts_per_s"] / permitted, 3),
        "ratio_to_faultless": round(result["verdicts_per_s"] / faultless, 3),
        "most_in_flight": server.most_in_flight,
        "server": server.counts,
    }
    print(json.dumps(result))


async def judge_all(section: JudgeSection, options: argparse.Namespace) -> dict[str, Any]:
    """All verdicts at once; half of the gold answers agree."""
    client = JudgeClient(section, random.Random(options.seed))
    longest = 0.0

    async def decide(number: int) -> Judgement:
        nonlocal longest
        started = time.monotonic()
        gold = f"gold {number} {'agrees' if number % 2 else 'differs'}"
        judgement = await client.decide("Which?", f"prediction {number}", gold)
        longest = max(longest, time.monotonic() - started)
        return judgement

    started, cpu_started = time.monotonic(), time.process_time()
    judgements = await asyncio.gather(*(decide(number) for number in range(options.verdicts)))
    seconds, cpu_s = time.monotonic() - started, time.process_time() - cpu_started
    report = client.report()
    await client.close()
    return {
        "verdicts": options.verdicts,
        "right": sum(j.vote == ("yes" if number % 2 else "no") for number, j in enumerate(judgements)),
        "wrong": sum(j.vote == ("no" if number % 2 else "yes") for number, j in enumerate(judgements)),
        "unknown": sum(j.vote == "unknown" for j in judgements),
        "seconds": round(seconds, 3),
        "verdicts_per_s": round(options.verdicts / seconds, 2),
        "client_cpu_ms_per_request": round(1000 * cpu_s / report["requests"], 3),
        "longest_s": round(longest, 3),
        "deadline_s": options.deadline_s,
        "report": report,
    }


if __name__ == "__main__":
    main()
