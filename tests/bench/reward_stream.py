"""Completions per second through the reward stream, against bare pyzmq; prints one JSON line.

    python tests/bench/reward_stream.py --items 20000 --payload-kib 40 --workers 2

The stream: an engine process that sends finished completions of `--payload-kib` on the wire (token ids, logprobs and
text as a model of 4 characters per token gives them), this process with broker and consumer, and `--workers` reward
workers, each with its scoring process. The verifier gives every item the same verdict, so that what is measured is the
service: packing, leases, acceptance, pipes, checks. The consumer takes each completion as it came, as bare pyzmq does.
`numbers_*` is the same with a consumer that makes Python lists of all ids and logprobs (4,550 objects an item), as a
training step does of the completions that it trains on.

Bare pyzmq: as many processes and sockets, over sockets of the same kind (ipc), and frames of the same sizes: an engine
that sends (DEALER to ROUTER, at most as many without an answer as the stream allows), this process that hands each on
to the worker with most free credits, and workers that answer with as many bytes as a verdict has, each beside a process
of its own to which it hands the item over a socket pair. It keeps and moves what every service must: an item stays in
memory of its own in the engine until it is answered, and in this process until its verdict is there, and what a worker
gets is cut out of the item that came. Nothing is encoded, checked, leased or handed to a consumer.

All run in turns, `--repeat` times, and medians are compared: the load of other programs moves all. CPU time is that of
all processes from the first item to the last; `cpu_ratio` is that of bare pyzmq over ours. Latency is from send() to
next(). Memory is the peak of this process, in a process of its own for each number of items.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import socket as sockets
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections import Counter, defaultdict, deque
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import msgspec
import psutil
import zmq

from hybridflow.reward_service.sandbox.process_scorer import ProcessScorer
from hybridflow.reward_service.sandbox.protocol import Setup, Verify
from hybridflow.reward_service.worker import RewardWorkerLoop
from hybridflow.types import Completion, GroupRequest, Prompt, Scored, ScoreRequest, TokenColumns, Verdict
from hybridflow.wire.codec import encode
from hybridflow.wire.completion_sender import CompletionSender
from hybridflow.wire.endpoint import Endpoint
from hybridflow.wire.flow import WINDOW
from hybridflow.wire.messages import Finished, Packer, ScoreReply, Task, Work
from hybridflow.wire.reward_stream import RewardStream

GROUP_SIZE = 8
CREDITS = 16
STEP_ITEMS = 1024
"""Items are expected step by step, as in training; the engine may begin with a step while the one before is scored."""
MAX_PENDING_BYTES = 8 * 2**20
"""Above it the engine is held back; the share of peak memory that depends on how far rewards lag is thus small."""
WIRE_BYTES_PER_TOKEN = 18
"""5 for the id of a large vocabulary, 9 for the logprob, 4 of text."""
WAIT_S = 120.0

_VERDICT = Scored(value=1.0, rule="constant", extracted="yen", why="every answer is right")


def build_constant() -> Verify:
    """A verifier that takes no time."""

    def verify(request: ScoreRequest) -> Verdict:
        return _VERDICT

    return verify


def build_completion(number: int, num_tokens: int, text: str) -> Completion:
    group = number // GROUP_SIZE
    return Completion(
        completion_id=f"t0-g{group:05d}-c{number % GROUP_SIZE:02d}",
        group_id=f"t0-g{group:05d}",
        prompt_id=f"p{group}",
        index=number % GROUP_SIZE,
        tokens=TokenColumns(
            ids=list(range(100_000, 100_000 + num_tokens)),
            rollout_logprobs=[-0.1 * (n % 17) for n in range(num_tokens)],
        ),
        text=text,
        finish_reason="stop",
        policy_version=0,
        prompt_tokens=60_000,
        cached_tokens=59_000,
    )


def build_requests(first: int, end: int) -> list[GroupRequest]:
    """The groups of items first .. end - 1; both are whole groups."""
    return [
        GroupRequest(
            group_id=f"t0-g{group:05d}",
            prompt=Prompt(
                prompt_id=f"p{group}", token_ids=[1], data_source="bench", ability="doc-qa", ground_truth="yen"
            ),
            num_completions=GROUP_SIZE,
        )
        for group in range(first // GROUP_SIZE, end // GROUP_SIZE)
    ]


def text_of(num_tokens: int) -> str:
    return ("The rate is five. " * num_tokens)[: 4 * num_tokens]


# ------------------------------------------------------------------------------------------------------ the stream


def run_engine(endpoint: Endpoint, num_items: int, num_tokens: int, sent: Any, expected: Any, is_started: Any) -> None:
    """Writes into `sent[i]` when item i was handed over."""
    template = build_completion(0, num_tokens, text_of(num_tokens))
    ids = [
        (f"t0-g{number // GROUP_SIZE:05d}", f"p{number // GROUP_SIZE}", number % GROUP_SIZE)
        for number in range(num_items)
    ]
    with CompletionSender(endpoint, "engine-0", flush_timeout_s=WAIT_S, send_timeout_s=WAIT_S) as sender:
        is_started.value = True
        for number, (group, prompt, index) in enumerate(ids):
            completion = msgspec.structs.replace(
                template, completion_id=f"{group}-c{index:02d}", group_id=group, prompt_id=prompt, index=index
            )
            while number >= expected.value:
                time.sleep(0.001)
            sent[number] = time.monotonic()
            sender.send(completion)


def run_worker(endpoint: Endpoint, worker_id: str) -> None:
    scorer = ProcessScorer(Setup(build_verify="tests.bench.reward_stream:build_constant"))
    RewardWorkerLoop(endpoint, worker_id, scorer, CREDITS).run()


def cpu_seconds() -> dict[int, float]:
    """CPU time so far of this process and its descendants, by process id."""
    this = psutil.Process()
    return {process.pid: sum(process.cpu_times()[:2]) for process in [this, *this.children(recursive=True)]}


def measure_stream(num_items: int, num_tokens: int, num_workers: int, needs_numbers: bool = False) -> dict[str, Any]:
    """`needs_numbers`: the consumer unpacks every completion into lists."""
    context = multiprocessing.get_context("spawn")
    stream = RewardStream(max_pending_bytes=MAX_PENDING_BYTES)
    workers = [
        context.Process(target=run_worker, args=(stream.endpoint_workers, f"w{n}"), daemon=True)
        for n in range(num_workers)
    ]
    for worker in workers:
        worker.start()
    while len(stream.workers) < num_workers:
        time.sleep(0.05)
    sent = context.Array("d", num_items, lock=False)
    expected, is_started = context.Value("q", 0, lock=False), context.Value("b", 0, lock=False)

    def expect(end: int) -> None:
        stream.expect(build_requests(expected.value, min(end, num_items)))
        expected.value = min(end, num_items)

    arguments = (stream.endpoint_completions, num_items, num_tokens, sent, expected, is_started)
    engine = context.Process(target=run_engine, args=arguments, daemon=True)
    engine.start()
    while not is_started.value:
        time.sleep(0.05)
    cpu_before = cpu_seconds()
    expect(2 * STEP_ITEMS)
    seen = bytearray(num_items)
    latencies = array("d")
    for number in range(num_items):
        if number and number % STEP_ITEMS == 0:
            expect(expected.value + STEP_ITEMS)
        item = stream.next(WAIT_S)
        if item is None:
            break
        completion = item.completion if needs_numbers else item.head
        index = int(completion.prompt_id[1:]) * GROUP_SIZE + completion.index
        seen[index] += 1
        latencies.append(time.monotonic() - sent[index])
    seconds = time.monotonic() - sent[0]
    cpu = {pid: cpu_s - cpu_before[pid] for pid, cpu_s in cpu_seconds().items()}
    more = stream.next(0.2)
    duplicated = sum(number - 1 for number in seen if number > 1) + (more is not None)
    stream.close()
    for process in (engine, *workers):
        process.join(WAIT_S)
    return {
        "items_per_s": num_items / seconds,
        "cpu_us_per_item": 1e6 * sum(cpu.values()) / num_items,
        "p50_ms": 1000 * statistics.median(latencies),
        "p99_ms": 1000 * statistics.quantiles(latencies, n=100)[98],
        "lost": seen.count(0),
        "duplicated": duplicated,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


# ------------------------------------------------------------------------------------------------------ bare pyzmq


def run_bare_engine(address: str, num_items: int, frame: bytes, started: Any) -> None:
    socket = zmq.Context().socket(zmq.DEALER)
    socket.connect(address)
    in_flight = 0
    frames = [bytes(bytearray(frame)) for _ in range(WINDOW)]  # an item that is not answered keeps its memory
    started.value = -1.0
    while started.value < 0:
        time.sleep(0.001)
    started.value = time.monotonic()
    for number in range(num_items):
        while in_flight >= WINDOW or socket.poll(0):
            in_flight -= int.from_bytes(socket.recv(), "little")
        socket.send(frames[number % WINDOW])
        in_flight += 1
    while in_flight:
        in_flight -= int.from_bytes(socket.recv(), "little")


def run_bare_worker(address: str, reply: bytes, size: int) -> None:
    """Beside it stands a process that gets each item over a socket pair and sends the reply back."""
    ours, theirs = sockets.socketpair()
    program = "\n".join(
        [
            "import socket, sys",
            "channel = socket.socket(fileno=int(sys.argv[1]))",
            "size, reply, have = int(sys.argv[2]), bytes.fromhex(sys.argv[3]), 0",
            "while data := channel.recv(1 << 17):",
            "    have += len(data)",
            "    while have >= size: have -= size; channel.sendall(reply)",
        ]
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(theirs.fileno()), str(size), reply.hex()], pass_fds=[theirs.fileno()]
    )
    theirs.close()
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(address)
    socket.send(b"ready")
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    poller.register(ours.fileno(), zmq.POLLIN)
    have = 0
    while True:
        ready = dict(poller.poll())
        if socket in ready:
            try:
                while work := socket.recv(zmq.NOBLOCK):
                    ours.sendall(work)
                else:
                    break
            except zmq.Again:
                pass
        if ours.fileno() in ready:
            have += len(ours.recv(1 << 17))
            while have >= len(reply):
                have -= len(reply)
                socket.send(reply)
    ours.close()
    child.wait()


def measure_bare(num_items: int, num_tokens: int, num_workers: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        return measure_bare_in(Path(folder), num_items, num_tokens, num_workers)


def measure_bare_in(folder: Path, num_items: int, num_tokens: int, num_workers: int) -> dict[str, Any]:
    packed = Packer().pack(build_completion(0, num_tokens, text_of(num_tokens)))
    finished = encode(Finished("engine-0", 1, packed))
    completion_id = packed.head.completion_id
    task = memoryview(msgspec.msgpack.encode(Task("bench", "doc-qa", "yen", "")))
    work, reply = encode(Work(completion_id, task, packed.text)), encode(ScoreReply(completion_id, _VERDICT))
    context = zmq.Context()
    completions, workers = context.socket(zmq.ROUTER), context.socket(zmq.ROUTER)
    addresses = [f"ipc://{folder}/{name}" for name in ("completions", "workers")]
    for socket, address in zip((completions, workers), addresses, strict=True):
        socket.bind(address)
    spawn = multiprocessing.get_context("spawn")
    started = spawn.Value("d", 0.0)
    processes = [
        spawn.Process(target=run_bare_worker, args=(addresses[1], reply, len(work)), daemon=False)
        for _ in range(num_workers)
    ]
    for process in processes:
        process.start()
    free: dict[bytes, int] = {}
    while len(free) < num_workers:
        identity, _ = workers.recv_multipart()
        free[identity] = CREDITS
    engine = spawn.Process(target=run_bare_engine, args=(addresses[0], num_items, finished, started), daemon=True)
    engine.start()
    while started.value == 0:
        time.sleep(0.05)
    cpu_before = cpu_seconds()
    started.value = 1.0
    poller = zmq.Poller()
    poller.register(completions, zmq.POLLIN)
    poller.register(workers, zmq.POLLIN)
    queued: deque[bytes] = deque()
    held: defaultdict[bytes, deque[bytes]] = defaultdict(deque)  # of each worker, in order
    num_done = 0
    while num_done < num_items:
        ready = dict(poller.poll())
        taken: Counter[bytes] = Counter()
        for socket in ready:
            try:
                for _ in range(256):
                    identity, content = socket.recv_multipart(zmq.NOBLOCK)
                    if socket is completions:
                        taken[identity] += 1
                        queued.append(content)
                    else:
                        free[identity] += 1
                        held[identity].popleft()
                        num_done += 1
            except zmq.Again:
                pass
        for identity, number in taken.items():
            completions.send_multipart([identity, number.to_bytes(2, "little")])
        while queued and (best := max(free, key=free.__getitem__)) and free[best]:
            item = queued.popleft()
            workers.send_multipart([best, memoryview(item)[-len(work) :]])
            held[best].append(item)
            free[best] -= 1
    seconds = time.monotonic() - started.value
    cpu = {pid: cpu_s - cpu_before[pid] for pid, cpu_s in cpu_seconds().items()}
    for identity in free:
        workers.send_multipart([identity, b""])
    for process in (engine, *processes):
        process.join(WAIT_S)
    context.destroy(linger=0)
    return {"items_per_s": num_items / seconds, "cpu_us_per_item": 1e6 * sum(cpu.values()) / num_items}


# ------------------------------------------------------------------------------------------------------------ figures


def in_process(what: str, num_items: int, options: argparse.Namespace) -> dict[str, Any]:
    """One measurement in a fresh process, so that its peak of memory is its own."""
    command = [sys.executable, __file__, "--only", what, "--items", str(num_items)]
    command += ["--payload-kib", str(options.payload_kib), "--workers", str(options.workers)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=Path(__file__).parents[2])
    return json.loads(done.stdout)


def medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    """The median of each figure."""
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--payload-kib", type=float, default=40.0, help="size of a finished completion on the wire")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", choices=["stream", "numbers", "bare"], help="one measurement, for internal use")
    options = parser.parse_args()
    if options.items % GROUP_SIZE:
        parser.error(f"--items {options.items} is not a multiple of the group size {GROUP_SIZE}")
    num_tokens = int(options.payload_kib * 1024 / WIRE_BYTES_PER_TOKEN)
    if options.only:
        measure = {
            "stream": measure_stream,
            "numbers": partial(measure_stream, needs_numbers=True),
            "bare": measure_bare,
        }[options.only]
        print(json.dumps(measure(options.items, num_tokens, options.workers)))
        return
    streams, numbers, bares = [], [], []
    for _ in range(options.repeat):
        for what, runs in (("stream", streams), ("bare", bares), ("numbers", numbers)):
            runs.append(in_process(what, options.items, options))
    fewer = in_process("stream", max(options.items // 10 // GROUP_SIZE * GROUP_SIZE, GROUP_SIZE), options)
    stream = medians(streams)
    bare, with_numbers = medians(bares), medians(numbers)
    peak = max(run["peak_rss_mib"] for run in streams)
    figures = {
        "items_per_s": round(stream["items_per_s"], 1),
        "raw_pyzmq_items_per_s": round(bare["items_per_s"], 1),
        "ratio": round(stream["items_per_s"] / bare["items_per_s"], 3),
        "p50_ms": round(stream["p50_ms"], 2),
        "p99_ms": round(stream["p99_ms"], 2),
        "peak_rss_mib": round(peak, 1),
        "peak_rss_mib_tenth": round(fewer["peak_rss_mib"], 1),
        "rss_ratio": round(peak / fewer["peak_rss_mib"], 3),
        "lost": sum(run["lost"] for run in streams + numbers),
        "duplicated": sum(run["duplicated"] for run in streams + numbers),
        "cpu_us_per_item": round(stream["cpu_us_per_item"]),
        "raw_pyzmq_cpu_us_per_item": round(bare["cpu_us_per_item"]),
        "cpu_ratio": round(bare["cpu_us_per_item"] / stream["cpu_us_per_item"], 3),
        "numbers_items_per_s": round(with_numbers["items_per_s"], 1),
        "numbers_ratio": round(with_numbers["items_per_s"] / bare["items_per_s"], 3),
        "numbers_cpu_us_per_item": round(with_numbers["cpu_us_per_item"]),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
