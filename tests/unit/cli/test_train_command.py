"""`hybridflow train` with something wrong: one message, exit code 1, before Ray or a worker is started.

The entry point runs in this process, where starting Ray is an error (tests/unit/conftest.py).
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hybridflow import cli
from hybridflow.data.schema import Row
from hybridflow.data.synth.spec import SynthSpec, generate_rows
from hybridflow.policy.init import write_policy
from megatron_ext.checkpoint import commit
from megatron_ext.checkpoint.identity import describe_model
from megatron_ext.hf.config import read_hf_config
from tests.unit.loop.fakes import build_config

ROOT = Path(__file__).parents[3]
TINY = ROOT / "configs/models/tiny"

Train = Callable[..., str]


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """run.directory"""
    return tmp_path / "runs"


@pytest.fixture
def train(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Train:
    """Runs the command on quickstart.toml, which must refuse; returns its message."""

    def run(*overrides: str, options: tuple[str, ...] = (), config: Path = ROOT / "configs/quickstart.toml") -> str:
        settings = [f"run.directory={runs}", f"model.path={TINY}", "data.synth.num_train=16", *overrides]
        arguments = ["hybridflow", "train", "--config", str(config), *options, "--set", *settings]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as caught:
            cli.main()
        output = capsys.readouterr()
        assert caught.value.code == 1, output.err
        assert "Traceback" not in output.out + output.err
        assert "starting" not in output.out
        assert output.err.startswith("error: "), output.err
        return output.err

    return run


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Path]:
    """Writes a data file of four good rows, the third of which is changed."""

    def write(change: Callable[[dict[str, Any]], object] = lambda row: None) -> Path:
        spec = SynthSpec(tier="easy", doc_tokens=64, num_records=4, num_train=4, num_test=0)
        values = [to_dict(row) for row in generate_rows(spec, "train", 0)]
        change(values[2])
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(value) + "\n" for value in values))
        return path

    return write


def to_dict(row: Row) -> dict[str, Any]:
    import msgspec

    return msgspec.to_builtins(row)


def test_unknown_key(train: Train) -> None:
    message = train("train.num_stps=5")
    assert "train.num_stps = 5" in message and "did you mean 'num_steps'?" in message


def test_value_out_of_bounds(train: Train) -> None:
    assert "give a value of at most 1" in train("rollout.top_p=1.5")


def test_verifier_that_does_not_exist(train: Train, runs: Path) -> None:
    message = train("reward.rules.verifiers.doc-qa=docq")
    assert "reward.rules.verifiers.doc-qa = 'docq': no verifier has this name. Remedy: use one of docqa," in message
    assert not runs.exists()


def test_missing_config_file(train: Train) -> None:
    message = train(config=ROOT / "configs/quikstart.toml")
    assert "quikstart.toml does not exist" in message and "quickstart.toml" in message.partition("Nearest")[2]


def test_missing_data_file(train: Train, rows: Callable[..., Path]) -> None:
    path = rows()
    message = train(f"data.train_path={path.with_name('row.jsonl')}", "eval.num_prompts=0")
    assert f"row.jsonl: no such file. Remedy: check the path; did you mean {path}?" in message


def test_own_training_rows_are_not_evaluated_on_generated_ones(train: Train, rows: Callable[..., Path]) -> None:
    message = train(f"data.train_path={rows()}")
    assert "data.test_path is not set" in message and "eval.num_prompts = 0" in message


def test_wrong_column(train: Train, rows: Callable[..., Path]) -> None:
    path = rows(lambda row: row.update(question=row.pop("prompt")))
    message = train(f"data.train_path={path}", "eval.num_prompts=0")
    assert f"{path}, line 3, row 2" in message and "'prompt' is missing" in message


def test_empty_document(train: Train, rows: Callable[..., Path]) -> None:
    def empty(row: dict[str, Any]) -> None:
        content = row["prompt"][-1]["content"]
        start, stop = content.find("<text>") + 6, content.rfind("</text>")
        row["prompt"][-1]["content"] = content[:start] + "\n" + content[stop:]

    message = train(f"data.train_path={rows(empty)}", "eval.num_prompts=0")
    assert "row 2" in message and "the document between <text> and </text> is empty" in message


def test_long_prompt(train: Train, rows: Callable[..., Path]) -> None:
    path = rows()
    message = train(f"data.train_path={path}", "data.max_prompt_tokens=70", "eval.num_prompts=0")
    assert str(path) in message and "the limit max_prompt_tokens is 70" in message and "row 0" in message


def test_layout_that_does_not_fit(train: Train) -> None:
    message = train("train.layout.tp=3")
    assert "tp = 3: it must divide the model's 4 attention heads; choose one of 1, 2" in message


def test_model_without_config(train: Train, tmp_path: Path) -> None:
    assert "no config.json there" in train(f"model.path={tmp_path}")


def test_model_with_a_broken_config(train: Train, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    assert "cannot read its config.json" in train(f"model.path={tmp_path}")


def test_model_without_tokenizer(train: Train, tmp_path: Path) -> None:
    shutil.copy(TINY / "config.json", tmp_path)
    assert "no tokenizer files there" in train(f"model.path={tmp_path}")


def test_model_without_weights(train: Train) -> None:
    message = train("model.init=weights")
    assert "has no safetensors" in message and 'model.init = "seeded"' in message


def test_model_with_a_missing_tensor(train: Train, tmp_path: Path) -> None:
    """Known from the headers of the files."""
    model = tmp_path / "model"
    write_policy(TINY, model, seed=0)
    tensors = load_file(model / "model.safetensors")
    save_file({name: tensors[name] for name in tensors if name != "model.norm.weight"}, model / "model.safetensors")
    message = train(f"model.path={model}", "model.init=weights")
    assert f"model.path = '{model}' does not hold the model: model.norm.weight is not in {model}" in message


def test_window_above_the_model(train: Train) -> None:
    window = json.loads((TINY / "config.json").read_text())["max_position_embeddings"]
    message = train(f"rollout.context_tokens={window + 1}")
    assert f"rollout.context_tokens = {window + 1} is above the model's window of {window} tokens" in message


def changed_model(folder: Path, **changes: Any) -> Path:
    """The tiny model with another config.json."""
    shutil.copytree(TINY, folder)
    config = json.loads((TINY / "config.json").read_text()) | changes
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dual_chunk_attention_config": {"chunk_size": 64}}, "dual_chunk_attention_config in config.json"),
        ({"architectures": None}, "architectures = None in config.json"),
        ({"head_dim": 31}, "head_dim = 31: it must be even"),
        ({"vocab_size": 300}, "the tokenizer has ids up to 1"),
    ],
)
def test_a_model_that_engines_cannot_serve(train: Train, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in train(f"model.path={changed_model(tmp_path / 'model', **changes)}")


def test_the_window_is_what_the_rope_scaling_says(train: Train, tmp_path: Path) -> None:
    """max_position_embeddings x 4 are taken, one more is not; the next refusal is about the length of steps."""
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}
    model = changed_model(tmp_path / "model", max_position_embeddings=512, rope_parameters=rope)
    settings = (f"model.path={model}", "data.max_prompt_tokens=1000")
    message = train(*settings, "rollout.context_tokens=2049")
    assert "rollout.context_tokens = 2049 is above the model's window of 2048 tokens" in message
    message = train(*settings, "rollout.context_tokens=2048", "eval.num_prompts=9999")
    assert "eval.num_prompts = 9999" in message


def test_a_pool_that_would_cut_completions_short(train: Train) -> None:
    message = train("rollout.kv_cache_tokens=100")
    assert "is above rollout.kv_cache_tokens (100): completions would be cut short" in message


def test_documents_that_cannot_be_generated(train: Train) -> None:
    assert "data.synth: cannot generate" in train("data.synth.doc_tokens=16", "data.synth.num_records=500")


def test_more_test_prompts_than_there_are(train: Train) -> None:
    message = train("eval.num_prompts=9", "data.synth.num_test=8")
    assert "eval.num_prompts = 9, but the test split has 8 prompts" in message


def test_nothing_to_resume(train: Train, runs: Path) -> None:
    message = train(options=("--resume",))
    assert f"nothing to resume: {runs}/quickstart holds no run. Start it without --resume" in message


def test_a_refused_run_leaves_an_earlier_one_alone(train: Train, runs: Path, tmp_path: Path) -> None:
    earlier = runs / "quickstart"
    earlier.mkdir(parents=True)
    (earlier / "summary.json").write_text("precious")
    train(f"data.test_path={tmp_path / 'none.jsonl'}")
    assert [path.name for path in runs.iterdir()] == ["quickstart"]
    assert [path.name for path in earlier.iterdir()] == ["summary.json"]


def test_a_refused_run_makes_no_folder(train: Train, runs: Path, tmp_path: Path) -> None:
    train(f"data.train_path={tmp_path / 'none.jsonl'}", "eval.num_prompts=0")
    assert not runs.exists()


def test_resume_with_other_settings_changes_nothing(train: Train, runs: Path) -> None:
    from hybridflow.recording.run_folder.train_folder import TrainFolder

    config = build_config(runs, train__learning_rate=1e-3)
    folder = TrainFolder(config)
    folder.create(config)
    folder.keep()
    folder.completions.write_text('{"step": 9}\n')
    assert "train.learning_rate: was 0.001" in train(options=("--resume",))
    assert folder.completions.read_text() == '{"step": 9}\n'


def test_the_first_lines_say_which_kernels_and_the_run_is_given_them(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hybridflow.tools import train as launch

    given: list[Any] = []
    monkeypatch.setattr(launch, "run_training", lambda config, *others, **options: given.append(config))
    monkeypatch.setattr(sys, "argv", ["hybridflow", "train", "--config", str(ROOT / "configs/quickstart.toml"),
                                      "--set", f"run.directory={runs}", f"model.path={TINY}"])  # fmt: skip
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    (config,) = given
    told = capsys.readouterr().out
    if torch.cuda.is_available():
        assert config.train.kernels != "auto" and 'kernels (train.kernels = "auto"): Adam: ' in told
    else:
        assert config.train.kernels == "torch"
        assert 'kernels (train.kernels = "auto"): Adam: torch, RMSNorm: torch, gradient accumulation: torch' in told


def test_resume_without_a_checkpoint_changes_nothing(train: Train, runs: Path) -> None:
    from hybridflow.config.load import load_config
    from hybridflow.config.sections import Config
    from hybridflow.recording.run_folder.train_folder import TrainFolder

    settings = [f"run.directory={runs}", f"model.path={TINY}", "data.synth.num_train=16"]
    config = load_config([ROOT / "configs/quickstart.toml"], settings, Config)
    folder = TrainFolder(config)
    folder.create(config)
    folder.keep()
    assert "no checkpoint in" in train(options=("--resume",))
    assert [path.name for path in (runs / "quickstart").iterdir()] == ["resolved.json"]


def test_resume_from_a_checkpoint_of_another_model(train: Train, runs: Path) -> None:
    from hybridflow.config.load import load_config
    from hybridflow.config.sections import Config
    from hybridflow.recording.run_folder.train_folder import TrainFolder

    settings = [f"run.directory={runs}", f"model.path={TINY}", "data.synth.num_train=16"]
    config = load_config([ROOT / "configs/quickstart.toml"], settings, Config)
    folder = TrainFolder(config)
    folder.create(config)
    folder.keep()
    weights = folder.checkpoints / "rl-000001" / "megatron"
    weights.mkdir(parents=True)
    model = describe_model(read_hf_config(TINY)) | {"num_layers": 3}
    commit.write_manifest(weights, files={}, description={"model": model, "dtype": "float32"})
    files = commit.measure_files(weights.parent, ["megatron/manifest.json"])
    commit.write_manifest(weights.parent, files=files, description={})
    assert f"{weights} is a checkpoint of another model: num_layers = 3" in train(options=("--resume",))
    assert sorted(path.name for path in folder.path.iterdir()) == ["checkpoints", "resolved.json"]


def test_the_installed_command() -> None:
    """Once as a user runs it, in a process of its own."""
    command = [sys.executable, "-m", "hybridflow", "train", "--config", "configs/none.toml"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ConfigError\nconfig file configs/none.toml does not exist")
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["train", "--set", "a=1", "b=2"], ["train", "--set", "a=1", "--set", "b=2"]),
        (["train", "-c", "a", "b", "c"], ["train", "-c", "a", "-c", "b", "-c", "c"]),
        (["--config", "a", "b", "--resume", "--set", "x=1", "y=2"],
         ["--config", "a", "--config", "b", "--resume", "--set", "x=1", "--set", "y=2"]),
        (["--set", "a=1", "--set", "b=2"], ["--set", "a=1", "--set", "b=2"]),
        (["data", "show", "file", "--row", "3"], ["data", "show", "file", "--row", "3"]),
        (["--set"], ["--set"]),
    ],
)  # fmt: skip
def test_several_values_of_one_option(typed: list[str], meant: list[str]) -> None:
    assert cli.spread_values(typed, ("--config", "-c", "--set", "-s")) == meant
