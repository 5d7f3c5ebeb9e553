"""`hybridflow reshard`: what it prints, and what it refuses."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hybridflow import cli

ROOT = Path(__file__).parents[3]
MODEL_32B = ROOT / "configs/models/r1-distill-qwen-32b"
RANK_KEYS = {"rank", "device_bytes", "nvlink_bytes", "network_bytes", "buffer_bytes", "buckets"}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Exit code, standard output and standard error of the command with these arguments."""

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hybridflow", "reshard", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    before = signal.getsignal(signal.SIGTERM)
    yield command
    signal.signal(signal.SIGTERM, before)


def test_json_of_a_32b_model(run: Run) -> None:
    """TP 4 x PP 2 to engines of TP 4 on one node: half of each shard is there, the other half comes over NVLink."""
    code, output, _ = run("--model", str(MODEL_32B), "--train", "tp=4,pp=2", "--rollout", "tp=4", "--json")
    report = json.loads(output)
    assert code == 0
    assert [rank["rank"] for rank in report["ranks"]] == list(range(8))
    assert all(rank.keys() == RANK_KEYS for rank in report["ranks"] + report["gather_everything"]["ranks"])
    assert report["engines"] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert report["plan_seconds"] > 0
    for rank in report["ranks"]:
        assert (rank["device_bytes"] + rank["nvlink_bytes"], rank["network_bytes"]) == (16_382_928_896, 0)
        assert 8.1e9 < rank["nvlink_bytes"] < 8.2e9
        assert 0 < rank["buffer_bytes"] <= 2 * 512 * 2**20
    for rank in report["gather_everything"]["ranks"]:
        assert rank["device_bytes"] + rank["nvlink_bytes"] == 65_527_752_704
        assert rank["buffer_bytes"] > report["ranks"][0]["buffer_bytes"]


def test_options_change_bytes_links_and_buckets(run: Run) -> None:
    """float32 doubles the bytes; nodes of 4 GPUs turn NVLink into network; smaller buckets are more."""
    options = ("--dtype", "fp32", "--gpus-per-node", "4", "--bucket-mib", "128")
    base = ("--model", str(MODEL_32B / "config.json"), "--train", "tp=4,pp=2", "--rollout", "tp=4", "--json")
    default, changed = (json.loads(run(*base, *more)[1])["ranks"][0] for more in ((), options))
    assert changed["nvlink_bytes"] == 0
    assert changed["network_bytes"] == 2 * default["nvlink_bytes"]
    assert changed["device_bytes"] == 2 * default["device_bytes"]
    assert changed["buckets"] > default["buckets"]


def test_the_table_names_every_rank_and_the_totals(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    code, output, _ = run("--model", str(MODEL_32B), "--train", "tp=4,pp=4", "--rollout", "tp=8")
    assert code == 0
    assert "From other GPUs: at most 6.241 GB per rank; 61.627 GB if all gather the model." in output
    assert "Engines on GPUs: 0 4 1 5 2 6 3 7 | 8 12 9 13 10 14 11 15" in output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--train": "tp=4,vp=2"}, "--train tp=4,vp=2: 'vp' is not one of tp, pp, vpp, ep, etp, cp, dp; did you mean"),
        ({"--train": "tp"}, "--train tp: tp = '' has to be a whole number"),
        ({"--train": "tp=0"}, "tp = '0' has to be a whole number"),
        ({"--train": "tp=2,tp=4"}, "tp is given twice"),
        ({"--rollout": "pp=2"}, "'pp' is not one of tp, ep"),
        ({"--train": "tp=3"}, "train tp = 3: it must divide the model's 40 attention heads; choose one of 1, 2, 4, 8"),
        ({"--rollout": "tp=3"}, "rollout tp = 3: it must divide the 8 GPUs"),
        ({"--model": "no/such/model"}, "--model no/such/model: there is no no/such/model/config.json"),
        ({"--model": str(ROOT / "configs/quickstart.toml")}, "is not JSON"),
    ],
)
def test_what_is_wrong_is_named_with_a_remedy(run: Run, changes: dict[str, str], message: str) -> None:
    options = {"--model": str(MODEL_32B), "--train": "tp=4,pp=2", "--rollout": "tp=4"} | changes
    code, output, errors = run(*(text for option in options.items() for text in option))
    assert (code, output) == (1, "")
    assert message in errors


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt2"}, "model_type = 'gpt2': supported are"),
        ({"model_type": "qwen2", "hidden_size": "wide"}, "'hidden_size' expected int, got str"),
        ({"model_type": "qwen3", "num_attention_heads": 0}, "num_attention_heads = 0: it must be a whole number of at"),
        ({"model_type": "llama", "num_hidden_layers": 0}, "num_hidden_layers = 0: it must be a whole number of at"),
        ({"model_type": "qwen2", "num_key_value_heads": 0}, "num_key_value_heads = 0"),
        ({"model_type": "qwen3", "head_dim": 0}, "head_dim = 0: it must be a whole number of at least 1"),
        ({"model_type": "qwen3", "head_dim": 5}, "head_dim = 5: it must be even"),
        ({"model_type": "qwen3", "num_attention_heads": 7, "num_key_value_heads": 2}, "it must divide num_attention"),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 0}, "decoder_sparse_step = 0"),
        ({"model_type": "llama", "vocab_size": -1}, "vocab_size = -1"),
    ],
)
def test_a_model_that_is_not_supported_is_refused(
    config: dict[str, Any], message: str, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, _, errors = run("--model", str(tmp_path), "--train", "tp=1", "--rollout", "tp=1")
    assert code == 1
    assert message in errors
