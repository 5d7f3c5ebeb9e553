"""Peak memory, time and error of the chunked logprobs against full logits; prints one JSON line.

    python tests/bench/logprob_memory.py --tokens 4096 --vocab 152064 --hidden 512 --response-fraction 0.15

Both variants run forward and backward of the same policy-gradient-like loss over the response tokens, each in a process
of its own. The naive one makes float32 logits and log_softmax at every position. A peak is the most resident memory on
a CPU (allocated memory on CUDA) above what holds the hidden states, the weight and its gradient.

With --entropy two more: the chunked one with the entropy measured, as each run does, and with it in the loss, as an
entropy bonus has it. `bonus_cpu_ratio` is of CPU seconds, the second to the first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from megatron_ext.model.logprob import vocab_parallel_logprobs

MIB = 2**20
COEFFICIENT = 0.001


def main() -> None:
    options = parse_arguments()
    if options.variant:
        measure(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        ours, naive = (run_variant(name, folder) for name in ("chunked", "naive"))
        errors = compare(Path(folder))
        entropy = compare_entropy(folder) if options.entropy else {}
    result = {
        "peak_mib": round(ours["peak_mib"], 1),
        "naive_peak_mib": round(naive["peak_mib"], 1),
        "ratio": round(ours["peak_mib"] / naive["peak_mib"], 5),
        "seconds": round(ours["seconds"], 3),
        "naive_seconds": round(naive["seconds"], 3),
        **errors,
        **entropy,
    }
    print(json.dumps(result))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocab", type=int, default=152064)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--response-fraction", type=float, default=0.15, help="share of tokens that are predicted")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--entropy", action="store_true", help="what measuring entropy costs, and a bonus for it")
    parser.add_argument("--variant", choices=("chunked", "entropy", "bonus", "naive"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def run_variant(name: str, folder: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], "--variant", name, "--folder", folder]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output)


def measure(options: argparse.Namespace) -> None:
    """Runs one variant, writes its results to the folder and prints its peak and time."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)
    hidden_TH = torch.randn(options.tokens, options.hidden, generator=generator).to(device).requires_grad_()
    weight_VH = torch.randn(options.vocab, options.hidden, generator=generator).mul_(options.hidden**-0.5).to(device)
    weight_VH.requires_grad_()
    targets_T = torch.randint(0, options.vocab, (options.tokens,), generator=generator).to(device)
    num_predicted = max(1, round(options.tokens * options.response_fraction))
    predict_index_N = torch.arange(options.tokens - num_predicted, options.tokens, device=device)
    advantage_N = torch.randn(num_predicted, generator=generator).to(device)
    # Gradients that are there already, as in training, and pages that are really there: zeros alone are not.
    hidden_TH.grad, gradient = torch.ones_like(hidden_TH).zero_(), torch.ones_like(weight_VH).zero_()

    is_naive = options.variant == "naive"
    setattr(weight_VH, "grad" if is_naive else "main_grad", gradient)
    (torch.ones(64, 64) @ torch.ones(64, 64)).sum()  # the library of matrix products takes its own memory first
    resident = reset_peak(device)
    started, cpu_started = time.perf_counter(), time.process_time()
    inputs = hidden_TH, weight_VH, targets_T, predict_index_N, options.temperature
    logprobs_N, entropy_N = (
        (naive(*inputs), None) if is_naive else chunked(*inputs, with_entropy=options.variant != "chunked")
    )
    loss = (logprobs_N * advantage_N).sum()
    if options.variant == "bonus":
        assert entropy_N is not None
        loss = loss - COEFFICIENT * entropy_N.sum()
    loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    peak = read_peak(device) - resident
    results = {"logprobs": logprobs_N.detach(), "hidden_grad": hidden_TH.grad, "weight_grad": gradient}
    torch.save(results, options.folder / f"{options.variant}.pt")
    print(json.dumps({"peak_mib": peak / MIB, "seconds": seconds, "cpu_seconds": cpu_seconds}))


def chunked(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    targets_T: torch.Tensor,
    predict_index_N: torch.Tensor,
    temperature: float,
    with_entropy: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    return vocab_parallel_logprobs(
        hidden_TH.index_select(0, predict_index_N),
        weight_VH,
        targets_T[predict_index_N],
        temperature=temperature,
        tp_group=None,
        vocab_size=weight_VH.size(0),
        with_entropy=with_entropy,
    )


def naive(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    targets_T: torch.Tensor,
    predict_index_N: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    log_softmax_TV = torch.log_softmax((hidden_TH @ weight_VH.t()).float() / temperature, dim=-1)
    return log_softmax_TV.gather(1, targets_T[:, None])[predict_index_N, 0]


def reset_peak(device: torch.device) -> int:
    """Forgets earlier peaks; returns the bytes in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # see proc_pid_clear_refs(5)
    return read_status("VmRSS")


def read_peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else read_status("VmHWM")


def read_status(key: str) -> int:
    """Bytes under `key` of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def compare(folder: Path) -> dict[str, float]:
    """Largest difference of logprobs; largest difference of gradients relative to the largest gradient."""
    ours, naive = (torch.load(folder / f"{name}.pt", mmap=True) for name in ("chunked", "naive"))
    gradient_errors = [
        ((ours[key] - naive[key]).abs().max() / naive[key].abs().max()).item() for key in ("hidden_grad", "weight_grad")
    ]
    error = (ours["logprobs"] - naive["logprobs"]).abs().max().item()
    return {"max_abs_err": float(f"{error:.3g}"), "max_rel_grad_err": float(f"{max(gradient_errors):.3g}")}


def compare_entropy(folder: str) -> dict[str, float]:
    """Peaks with the entropy measured and rewarded, and what the reward costs in CPU seconds."""
    measured, rewarded = (run_variant(name, folder) for name in ("entropy", "bonus"))
    return {
        "entropy_peak_mib": round(measured["peak_mib"], 1),
        "bonus_peak_mib": round(rewarded["peak_mib"], 1),
        "bonus_cpu_ratio": round(rewarded["cpu_seconds"] / measured["cpu_seconds"], 3),
    }


if __name__ == "__main__":
    main()
