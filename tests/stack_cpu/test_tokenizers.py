"""Texts of real engines, under a folder whose class transformers would rebuild without spaces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from hybridflow.data.chat_encoding import encode_chat
from hybridflow.policy.init import write_policy
from hybridflow.policy.load import load_tokenizer
from hybridflow.tools.generate import GenerateJob, write_completions
from hybridflow.tools.progress import RowProgress
from hybridflow.types import SamplingParams
from tests.stack_cpu.command import ROOT
from tests.unit.data.families import write_family

pytestmark = [pytest.mark.stack_cpu, pytest.mark.full, pytest.mark.timeout(600)]

STOP = " "


def test_completions_are_decoded_and_stopped_as_the_tokenizer_file_says(tmp_path: Path) -> None:
    source = write_family(tmp_path / "source", "R1-Distill present")
    file = Tokenizer.from_file(str(source / "tokenizer.json"))
    config = json.loads((ROOT / "configs/models/tiny/config.json").read_text())
    ids = {"vocab_size": file.get_vocab_size(), "eos_token_id": 1, "pad_token_id": 1}
    (source / "config.json").write_text(json.dumps(config | ids))
    write_policy(source, tmp_path / "hf", seed=0)
    rows = [{"messages": [{"role": "user", "content": f"Which <｜User｜> bond {n} 债券?"}]} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = GenerateJob(
        model=tmp_path / "hf",
        prompts=tmp_path / "rows.jsonl",
        output=tmp_path / "out.jsonl",
        num_completions=4,
        sampling=SamplingParams(temperature=1.0, max_new_tokens=48, stop=[STOP]),
        kv_cache_tokens=8192,
    )
    with RowProgress() as progress:
        assert write_completions(job, progress) == len(rows)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    completions = [completion for line in lines for completion in line["completions"]]
    stopped = 0
    for completion in completions:
        whole = file.decode(completion["token_ids"], skip_special_tokens=True)
        before, found, _ = whole.partition(STOP)
        stopped += bool(found)
        # SGLang leaves out the half of a character at which a text ends
        assert completion["text"].rstrip("\ufffd") == before.rstrip("\ufffd")
        assert not found or completion["finish_reason"] == "stop"
    assert stopped > len(completions) // 4 and any("\n" in completion["text"] for completion in completions)
    tokenizer = load_tokenizer(tmp_path / "hf")
    marks = [tokenizer.convert_tokens_to_ids(mark) for mark in ("<｜User｜>", "<｜Assistant｜>")]
    asked = encode_chat(tokenizer, rows[0]["messages"])
    assert [asked.count(mark) for mark in marks] == [1, 1]
