"""`hybridflow generate` with something wrong: one message, exit code 1, nothing written, before Ray is started."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybridflow.data.chat_encoding import encode_chat, encode_text
from hybridflow.errors import DataError
from hybridflow.policy.init import write_policy
from hybridflow.tools.generate import GenerateJob, build_requests, in_order, plan_job
from hybridflow.tools.token_rows import TokenRows
from hybridflow.types import Completion, GroupRequest, SamplingParams
from tests.builders import build_completion
from tests.unit.data.families import family
from tests.unit.loop.fakes import ROOT
from tests.unit.tools.conftest import Refuse


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with its tokenizer: 4 heads."""
    hf_dir = tmp_path_factory.mktemp("model") / "hf"
    write_policy(ROOT / "configs/models/tiny", hf_dir, seed=0)
    return hf_dir


def refused(refuse: Refuse, model: Path, folder: Path, rows: str, *options: object) -> str:
    prompts, output = folder / "rows.jsonl", folder / "new" / "out.jsonl"
    prompts.write_text(rows)
    message = refuse("generate", "--model", model, "--prompts", prompts, "--output", output, *options)
    assert not output.parent.exists()
    return message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tp", 3], "--tp 3: it must divide the model's 4 attention heads; choose one of 1, 2, 4"),
        (["--engines", 0], "--engines 0: it must be at least 1"),
        (["-n", 0], "--num-completions 0: it must be at least 1"),
        (["--temperature", -1], "--temperature -1.0: it must be a number of at least 0; 0 is greedy"),
        (["--top-p", 0], "--top-p 0.0: it must be above 0 and at most 1"),
        (["--stop", ""], '--stop "": an empty text would end every completion'),
        (["--seed", 2**64], "--seed 18446744073709551616: it must be at least 0"),
        (["--kv-cache-tokens", 18, "--max-new-tokens", 16], "--kv-cache-tokens 18: the longest prompt, 3 tokens, and"),
        (["--max-new-tokens", 10**6], "--max-new-tokens 1000000: with the longest prompt, 3 tokens, that is 1000003"),
    ],
)
def test_an_option_that_cannot_be(refuse: Refuse, model: Path, tmp_path: Path, options: list, said: str) -> None:
    assert said in refused(refuse, model, tmp_path, '{"input_ids": [5, 6, 7]}\n', *options)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("", "--prompts"),
        ('{"question": "x"}\n', 'Remedy: use {"input_ids": [...]} or {"text": "..."}, or {"messages": [...]}'),
        ('{"prompt": 7}\n', 'Remedy: use {"input_ids": [...]} or {"text": "..."}, or {"messages": [...]}'),
        ('{"input_ids": [5]}\n{"input_ids": [99999]}\n', "line 2, row 1: token id 99999 is not in the vocabulary"),
        ('{"messages": [{"role": 3}]}\n', "row 0, column 'messages[0]': got dict"),
        ('{"messages": "[{\\"role\\": \\"robot\\", \\"content\\": \\"x\\"}]"}\n', "got str 'robot'"),
        ("{\"prompt\": \"[{'role': 'user', 'content': 'x'}]\"}\n", "write the messages as JSON"),
    ],
)
def test_a_row_that_cannot_be_read(refuse: Refuse, model: Path, tmp_path: Path, rows: str, said: str) -> None:
    assert said in refused(refuse, model, tmp_path, rows)


def test_a_conversation_ends_with_the_turn_to_write(model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    rows = tmp_path / "rows.jsonl"
    messages = [{"role": "user", "content": "What is the rate ?"}]
    rows.write_text(json.dumps({"messages": messages}) + "\n" + json.dumps({"prompt": messages}) + "\n")
    request, same = build_requests(plan_job(GenerateJob(model, rows, tmp_path / "out.jsonl")))
    assert request.prompt.token_ids == same.prompt.token_ids
    text = AutoTokenizer.from_pretrained(model).decode(request.prompt.token_ids)
    assert "What is the rate ?" in text and "assistant" in text.split("What is the rate ?")[1]


class ReversedEngines:
    """Completions of all groups, last first."""

    def generate(self, requests: list[GroupRequest], sampling: SamplingParams) -> Iterator[Completion]:
        for request in reversed(requests):
            for index in reversed(range(request.num_completions)):
                yield build_completion(request, index, 0)


def test_lines_stand_in_the_order_of_rows_and_places(model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"input_ids": [5]}\n' * 3)
    job = GenerateJob(model, rows, tmp_path / "out.jsonl", num_completions=2)
    block = list(build_requests(plan_job(job)))
    lines = [json.loads(line) for line in in_order(ReversedEngines(), block, job.sampling)]  # pyright: ignore[reportArgumentType]
    assert [line["row"] for line in lines] == [0, 1, 2]
    assert all(len(line["completions"]) == 2 for line in lines)
    assert lines[0]["completions"][0] == {
        "text": "The answer is yen.",
        "token_ids": [5, 6],
        "logprobs": [-0.5, -0.25],
        "finish_reason": "stop",
    }


def test_every_form_of_a_prompt_is_the_same_tokens(model: Path, tmp_path: Path) -> None:
    """Rows of training, JSON or Parquet, and what they hold alone; `logprobs` takes the same."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from hybridflow.policy.load import load_tokenizer

    tokenizer = load_tokenizer(model)
    messages = [{"role": "user", "content": "What is the rate ?"}]
    row = {"data_source": "m", "ability": "doc-qa", "prompt": messages, "reward_model": {"ground_truth": "x"}}
    forms = [
        row, row | {"prompt": messages[0]["content"]}, {"messages": messages}, {"prompt": messages},
        {"conversations": [{"from": "human", "value": messages[0]["content"]}]},
        {"input_ids": encode_chat(tokenizer, messages)},
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(form) + "\n" for form in forms))
    (tmp_path / "rows.json").write_text(json.dumps(forms))
    pq.write_table(pa.Table.from_pylist([row, row]), tmp_path / "rows.parquet")
    for name, number in (("rows.jsonl", 6), ("rows.json", 6), ("rows.parquet", 2)):
        rows = TokenRows(
            tmp_path / name,
            lambda text: tokenizer(text)["input_ids"],
            window=256,
            vocab_size=len(tokenizer),
            encode_chat=lambda messages: encode_chat(tokenizer, messages),
        )
        assert list(rows) == [encode_chat(tokenizer, messages)] * number
        assert rows.check().num_rows == number


def test_a_conversation_that_the_template_refuses_is_an_error_of_its_row(tmp_path: Path) -> None:
    tokenizer = family("Mistral")
    (tmp_path / "rows.jsonl").write_text('{"messages": [{"role": "system", "content": "Be brief."}]}\n')
    rows = TokenRows(
        tmp_path / "rows.jsonl",
        lambda text: encode_text(tokenizer, text),
        window=64,
        vocab_size=1024,
        encode_chat=lambda messages: encode_chat(tokenizer, messages),
    )
    with pytest.raises(DataError, match=r"rows\.jsonl, line 1, row 0: the chat template .* of the roles system: Conv"):
        rows.check()
