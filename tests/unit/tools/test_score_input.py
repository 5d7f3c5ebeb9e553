"""Responses to score: order, counting, and every way in which a line can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybridflow.errors import DataError
from hybridflow.tools.score_input import Response, ResponseFile

DATA = Path("rows.jsonl")


def write(path: Path, *lines: str) -> ResponseFile:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return ResponseFile(path, num_rows=3, data=DATA)


def test_responses_keep_their_order_and_are_counted_by_row(tmp_path: Path) -> None:
    file = write(
        tmp_path / "r.jsonl",
        '{"index": 2, "response": "a"}',
        "",
        '{"index": 0, "response": ""}',
        '{"response": "b\\u2028c", "index": 2, "note": "ignored"}',
    )
    assert list(file) == [Response(2, 0, "a"), Response(0, 0, ""), Response(2, 1, "b\u2028c")]
    number, digest = file.check()
    assert number == 3
    again = write(tmp_path / "again.jsonl", '{"index": 2, "response": "a"}').check()
    assert again[1] != digest


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", ["line 2: broken JSON at column 2", "write one object per line"]),
        ("[1]", ["line 2: got [1]", "write one object per line"]),
        ('{"index": 1, "text": "a"}', ["line 2: 'response' is missing; found 'index', 'text'", "write lines such as"]),
        ('{"index": 1, "responce": "a"}', ["'response' is missing", "rename 'responce' to 'response'"]),
        ('{"response": "a"}', ["line 2: 'index' is missing; found 'response'"]),
        ('{"index": "1", "response": "a"}', ["line 2: index is '1'", "number of the row, from 0"]),
        ('{"index": true, "response": "a"}', ["line 2: index is True"]),
        ('{"index": 3, "response": "a"}', ["line 2: index is 3, rows.jsonl has the rows 0 to 2"]),
        ('{"index": -1, "response": "a"}', ["line 2: index is -1"]),
        ('{"index": 1, "response": null}', ["line 2: response is None", "an empty one is allowed"]),
        ('{"index": 1, "response": ["a"]}', ["line 2: response is ['a']"]),
        ('{"index": 1, "response": "a\\ud83d"}', ["line 2: response has half of a surrogate pair at character 1"]),
        ('{"row": 5, "completions": [{"text": "a"}]}', ["line 2: index is 5"]),
    ],
)
def test_what_cannot_be_scored(line: str, said: list[str], tmp_path: Path) -> None:
    """Beside a response that can be, it is told with its reason; alone, the file is refused."""
    path = tmp_path / "r.jsonl"
    good, bad = write(path, '{"index": 0, "response": "x"}', line)
    assert (good.problem, bad.text) == ("", "") and bad.index in (1, None)
    with pytest.raises(DataError) as caught:
        write(path, "", line).check()
    for words in [str(path), "Remedy: ", *said]:
        assert words in str(caught.value) and words in bad.problem


def test_lines_beyond_every_bound_cost_themselves(tmp_path: Path) -> None:
    deep = '{"index": 1, "response": "a", "note": ' + "[" * 100_000 + "]" * 100_000 + "}"
    number = '{"index": ' + "9" * 5000 + ', "response": "a"}'
    file = write(tmp_path / "r.jsonl", '{"index": 0, "response": "x"}', deep, number)
    assert file.check()[0] == 3
    first, second, third = file
    assert (first.problem, "more than 64 deep" in second.problem, "5000 digits" in third.problem) == ("", True, True)


def test_lines_of_generate_are_read(tmp_path: Path) -> None:
    line = '{"row": 2, "completions": [{"text": "a", "token_ids": [1]}, {"text": "b"}]}'
    good = '{"row": 0, "completions": []}'
    file = write(tmp_path / "r.jsonl", line, good, '{"row": 1, "completions": [{"token_ids": [1]}]}')
    first, second, bad = file
    assert (first, second) == (Response(2, 0, "a"), Response(2, 1, "b"))
    assert bad.index == 1 and "each with its text" in bad.problem


def test_a_missing_an_empty_and_a_binary_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        ResponseFile(tmp_path / "none.jsonl", 3, DATA).check()
    with pytest.raises(DataError, match="has no responses"):
        write(tmp_path / "empty.jsonl", "", " ").check()
    (tmp_path / "bytes.jsonl").write_bytes(b'{"index": 0, "response": "\xff"}\n')
    with pytest.raises(DataError, match="not UTF-8"):
        ResponseFile(tmp_path / "bytes.jsonl", 3, DATA).check()
