"""`hybridflow logprobs` with something wrong: one message, exit code 1, nothing written, before Ray is started."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hybridflow import cli
from hybridflow.tools.logprobs import LogprobsJob, plan_job
from hybridflow.tools.options import LayoutRequest
from tests.unit.tools.conftest import Refuse

ROW = '{"input_ids": [5, 6, 7]}\n'
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text(ROW)
    return path


@pytest.fixture
def logprobs(refuse: Refuse, rows: Path, tmp_path: Path) -> Refuse:
    """Runs the command on a model, which must refuse and leave no output."""

    def run(model: Path, *options: object, code: int = 1) -> str:
        out = tmp_path / "new" / "out.jsonl"
        message = refuse("logprobs", "--model", model, "--input", rows, "--output", out, *options, code=code)
        assert not out.parent.exists()
        return message

    return run


# ---------------------------------------------------------------------------------------------------------- layout


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("llama", ["--tp", 3], "tp = 3: it must divide the model's 4 attention heads; choose one of 1, 2"),
        ("llama", ["--tp", 4], "tp = 4: it must divide the model's 2 key-value heads; choose one of 1, 2"),
        ("llama", ["--pp", 3], "pp = 3: it must divide the model's 4 layers; choose one of 1, 2, 4"),
        ("qwen3_moe", ["--ep", 3], "ep = 3: it must divide the model's 8 experts; choose one of 1, 2, 4, 8"),
        ("qwen3_moe", ["--ep", 2, "--dp", 1], "ep x etp = 2 x 1 = 2: it must divide the 1 ranks of a pipeline stage"),
        ("qwen3_moe", ["--ep", 2, "--dp", 3], "it must divide the 3 ranks of a pipeline stage (tp x cp x dp); change"),
        ("qwen3_moe", ["--tp", 2, "--no-sp"], "a mixture of experts with tp = 2 needs it"),
        ("llama", ["--ep", 2], "ep = 2: model_type = 'llama' has no experts; set ep = 1"),
        ("llama", ["--sequence-parallel"], "sequence_parallel = true: it needs tp > 1"),
        ("llama", ["--pp", 0], "--pp 0: a parallel size must be at least 1; use 1 for none"),
        ("llama", ["--dp", -2], "--dp -2: a parallel size must be at least 1"),
    ],
)
def test_a_layout_that_does_not_fit(
    logprobs: Refuse, models: dict[str, Path], model: str, options: list[object], said: str
) -> None:
    assert said in logprobs(models[model], *options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-tokens", 2], "--max-tokens 2: the longest row has 3 tokens, and no row is split. Give 3 or more"),
        (["--max-tokens", 0], "--max-tokens 0: the longest row has 3 tokens"),
        (["--temperature", 0], "--temperature 0.0: it must be a positive number"),
        (["--temperature", "nan"], "--temperature nan: it must be a positive number"),
        (["--num-threads", 0], "--num-threads 0: a worker needs at least 1 thread"),
    ],
)
def test_a_value_that_cannot_be(logprobs: Refuse, models: dict[str, Path], options: list[object], said: str) -> None:
    assert said in logprobs(models["llama"], *options)


@pytest.mark.parametrize("options", [["--tp", "two"], ["--tensor-parallel", 2], ["--dtype", "int8"]])
def test_a_command_line_that_is_none(logprobs: Refuse, models: dict[str, Path], options: list[object]) -> None:
    assert str(options[0]) in logprobs(models["llama"], *options, code=2)


# ----------------------------------------------------------------------------------------------------------- model


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def replaced(name: str, value: torch.Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: value}


NORM, DOWN = "model.norm.weight", "model.layers.2.mlp.down_proj.weight"
EXPERT = "model.layers.3.mlp.experts.7.up_proj.weight"
ROUTER = "model.layers.0.mlp.gate.weight"
BIAS = "model.layers.1.self_attn.q_proj.bias"


@pytest.mark.parametrize(
    ("model", "change", "said"),
    [
        ("llama", without(DOWN), f"{DOWN} is not in"),
        ("llama", without("lm_head.weight"), "lm_head.weight is not in"),
        ("llama", replaced(DOWN, torch.zeros(64, 95)), f"{DOWN} in .* has shape [64, 95], the config implies [64, 96]"),
        ("llama", replaced(NORM, torch.zeros(64, 1)), "has shape [64, 1], the config implies [64]"),
        ("llama", replaced(BIAS, torch.zeros(64)), f"{BIAS} in .* a llama with this config.json has no such tensor"),
        ("llama", replaced(NORM, torch.zeros(64, dtype=torch.int8)), f"{NORM} in .* has dtype I8, it must be one of"),
        ("qwen3_moe", without(EXPERT), f"{EXPERT} is not in"),
        ("qwen3_moe", replaced(ROUTER, torch.zeros(7, 64)), "has shape [7, 64], the config implies [8, 64]"),
    ],
)
def test_a_tensor_that_does_not_fit(
    logprobs: Refuse,
    models: dict[str, Path],
    tmp_path: Path,
    model: str,
    change: Callable[[Tensors], Tensors],
    said: str,
) -> None:
    """Known from the headers of the files: no worker is started to find out."""
    broken = tmp_path / "broken"
    shutil.copytree(models[model], broken)
    save_file(change(load_file(broken / "model.safetensors")), broken / "model.safetensors")
    message = logprobs(broken)
    assert message.startswith(f"error: ConfigError --model {broken} does not hold the model: ")
    for part in said.split(" .* "):
        assert part in message


def test_weight_files_that_are_not_there_or_cut(logprobs: Refuse, models: dict[str, Path], tmp_path: Path) -> None:
    cut, lost, empty = (tmp_path / name for name in ("cut", "lost", "empty"))
    for folder in (cut, lost, empty):
        shutil.copytree(models["llama"], folder)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert f"{weights} is damaged or cut short" in logprobs(cut)

    names = load_file(lost / "model.safetensors")
    index = {"weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}
    (lost / "model.safetensors.index.json").write_text(json.dumps(index))
    (lost / "model.safetensors").unlink()  # which would make the index void
    assert "model-00001-of-00002.safetensors does not exist, but model.safetensors.index.json" in logprobs(lost)
    (lost / "model.safetensors.index.json").write_text('{"weight_map": ')
    assert "model.safetensors.index.json is damaged" in logprobs(lost)

    (empty / "model.safetensors").unlink()
    assert "has no weights" in logprobs(empty) and "neither model.safetensors nor" in logprobs(empty)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "no config.json there. Name a Hugging Face model directory"),
        ("{", "cannot read its config.json"),
        ("[]", "cannot read its config.json"),
        ('{"model_type": "gemma3"}', "model_type = 'gemma3': supported are llama, qwen2, qwen3, qwen3_moe"),
        ("{}", "model_type = None: supported are"),
        ('{"model_type": "llama", "hidden_act": "gelu"}', "hidden_act = 'gelu' (llama): only 'silu' is supported"),
        ('{"model_type": "llama", "num_attention_heads": "many"}', "cannot read its config.json"),
        ('{"model_type": "llama", "num_attention_heads": 0}', "cannot read its config.json"),
    ],
)
def test_a_config_that_is_none_of_ours(
    logprobs: Refuse, models: dict[str, Path], tmp_path: Path, config: str | None, said: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models["llama"], folder)
    if config is None:
        (folder / "config.json").unlink()
    else:
        (folder / "config.json").write_text(config)
    message = logprobs(folder)
    assert f"--model {folder}" in message and said in message


def test_a_model_that_is_not_there(logprobs: Refuse, tmp_path: Path) -> None:
    assert f"--model {tmp_path / 'none'}: no config.json there" in logprobs(tmp_path / "none")


# ------------------------------------------------------------------------------------------------------------ rows


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"input_ids": [' + "5, " * 256 + "5]}", "row 1: the row has 257 tokens, the window of the model is 256"),
        ('{"input_ids": [5, 259]}', "row 1: token id 259 is not in the vocabulary, 0 .. 258"),
        ('{"input_ids": [-1]}', "row 1: token id -1 is not in the vocabulary, 0 .. 258"),
        ('{"input_ids": []}', "row 1: the row has no tokens"),
        ('{"input_ids": [5, 6.5]}', "row 1: input_ids = [5, 6.5]. Remedy: use a list of whole numbers"),
        ('{"input_ids": [5, true]}', "row 1: input_ids = [5, True]. Remedy: use a list of whole numbers"),
        ('{"input_ids": "5 6"}', "row 1: input_ids = 5 6. Remedy: use a list of whole numbers"),
        ('{"tokens": [5]}', 'got {"tokens": [5]}. Remedy: use {"input_ids": [...]} or {"text": "..."}'),
        ('{"text": 5}', 'got {"text": 5}. Remedy: use {"input_ids": [...]} or {"text": "..."}'),
        ('{"input_ids": [5]', "row 1: broken JSON"),
        (b'{"text": "\xff"}', "row 1: not UTF-8 text"),
        ('{"input_ids": [' + "9" * 5000 + "]}", "row 1: a number of 5000 digits"),
        ('{"input_ids": ' + "[" * 100_000, "row 1: lists and objects more than 64 deep"),
        (
            '{"text": "hello"}',
            "no tokenizer files there. Add tokenizer.json, or use input_ids",
        ),
    ],
)
def test_a_row_that_cannot_be_scored(
    logprobs: Refuse, models: dict[str, Path], rows: Path, line: str | bytes, said: str
) -> None:
    rows.write_bytes(ROW.encode() + b"\n" + (line.encode() if isinstance(line, str) else line) + b"\n")
    message = logprobs(models["llama"])
    assert f"{rows}, line 3, row 1: " in message and said.removeprefix("row 1: ") in message


def test_an_input_without_rows(logprobs: Refuse, models: dict[str, Path], rows: Path) -> None:
    rows.write_text("\n \n")
    assert f"--input {rows}: the file has no rows" in logprobs(models["llama"])
    rows.unlink()
    assert f"--input {rows}: no such file" in logprobs(models["llama"])
    rows.mkdir()
    assert f"--input {rows}: no row file in this folder" in logprobs(models["llama"])


def test_a_window_that_yarn_stretches(models: dict[str, Path], rows: Path, tmp_path: Path) -> None:
    """max_position_embeddings may be the window before stretching: 32 x 4 tokens fit, one more does not."""
    folder = tmp_path / "yarn"
    shutil.copytree(models["qwen3_tied"], folder)
    config = json.loads((folder / "config.json").read_text())
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 32, "rope_parameters": rope}))
    rows.write_text(json.dumps({"input_ids": [5] * 128}))
    assert plan_job(LogprobsJob(folder, rows, tmp_path / "out.jsonl")).summary.longest == 128


# ---------------------------------------------------------------------------------------------------------- output


def test_an_output_that_cannot_be_written(refuse: Refuse, models: dict[str, Path], rows: Path, tmp_path: Path) -> None:
    command = ["logprobs", "--model", models["llama"], "--input", rows, "--output"]
    assert f"--output {tmp_path} is a directory. Name a file in it" in refuse(*command, tmp_path)
    assert f"--output {rows} is the file of --input" in refuse(*command, rows, "--overwrite")
    assert f"--output {rows / 'out.jsonl'} cannot be written" in refuse(*command, rows / "out.jsonl")
    assert rows.read_text() == ROW


def test_a_job_keeps_what_decides_its_numbers(models: dict[str, Path], rows: Path, tmp_path: Path) -> None:
    """And not how it is spread over workers, so that an interrupted job may go on over more of them."""

    def describe(**changes: object) -> dict[str, object]:
        settings = {"model": models["llama"], "input": rows, "output": tmp_path / "out.jsonl", **changes}
        return plan_job(LogprobsJob(**settings)).describe()  # type: ignore[arg-type]

    job = describe()
    assert job == describe(layout=LayoutRequest(tp=2, dp=2), num_threads=2, max_tokens=99)
    for change in ({"dtype": "bfloat16"}, {"temperature": 0.5}, {"fp32_head": True}, {"model": models["qwen3_tied"]}):
        assert job != describe(**change)
    (models["llama"] / "model.safetensors").touch()
    assert job != describe()
    rows.write_text(ROW + ROW)
    assert job["input_sha256"] != describe()["input_sha256"]


def test_an_output_that_is_complete_is_left_as_it_is(
    models: dict[str, Path],
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output, line = tmp_path / "out.jsonl", '{"logprobs": [-1.5, -2.5]}\n'
    plan = plan_job(LogprobsJob(models["llama"], rows, output))
    plan.output.resume(plan.describe(), overwrite=False)
    output.write_text(line)
    arguments = ["--model", str(models["llama"]), "--input", str(rows), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["hybridflow", "logprobs", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    assert f"{output}: complete already, nothing to do" in capsys.readouterr().out
    assert output.read_text() == line
