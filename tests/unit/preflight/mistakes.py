"""Mistakes of a first hour with one's own things: what is broken, what `hybridflow check` says, and its remedy.

Each works on a folder in which everything is right (test_preflight.py), and names what a message must hold.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[3]
TINY = ROOT / "configs/models/tiny"
CONTENT = (
    "Please read the following text and answer the question below.\n\n<text>\nThe rent is 40 yen. It is paid monthly.\n"
    '</text>\n\nWhat is the rent?\n\nFormat your response as follows: "Therefore, the answer is (insert answer here)".'
)
SCORING = """
import time
def right(answer, ground_truth):
    return float(ground_truth in answer)
def needs(response, tokens, device):
    return 1.0
def raises(response):
    return {}["gold"]
def two(response):
    return 2.0
def true(answer, ground_truth):
    return ground_truth in answer
def hangs(response):
    time.sleep(3600)
def hangs_too(response):
    time.sleep(3600)
async def later(response):
    return 1.0
"""


@dataclass
class Folder:
    """Configuration, rows, verifier and model of a run; a judge where a mistake needs one."""

    path: Path
    judge_url: str
    judge: dict[str, Any]
    """How the judge behaves (test_preflight.BEHAVIOUR)."""
    set: list[str] = field(default_factory=list)
    """Overrides of the command line."""

    @property
    def train(self) -> Path:
        return self.path / "train.jsonl"

    def write(self) -> None:
        (self.path / "mine.toml").write_text(
            '[run]\ndirectory = "runs"\n[model]\npath = "model"\ninit = "seeded"\n'
            '[data]\ntrain_path = "train.jsonl"\ntest_path = "test.jsonl"\nmax_prompt_tokens = 400\n'
            "[rollout]\nmax_new_tokens = 16\ncontext_tokens = 1024\n[eval]\nnum_prompts = 2\n"
        )
        (self.path / "scoring.py").write_text(SCORING)
        shutil.copytree(TINY, self.path / "model", dirs_exist_ok=True)
        for name in ("train", "test"):
            self.write_rows(name)

    def write_rows(self, name: str = "train", **changes: Any) -> None:
        """Three rows; those of `changes` that are not columns of a row are of its `reward_model`."""
        row: dict[str, Any] = {
            "data_source": "own",
            "prompt": [{"role": "user", "content": CONTENT}],
            "ability": "doc-qa",
            "reward_model": {"style": "rule", "ground_truth": "40 yen"},
        }
        gold = {"ground_truth": changes.pop("gold")} if "gold" in changes else {}
        changed = row | changes | ({"reward_model": {"style": "rule"} | gold} if gold else {})
        lines = [json.dumps(value) + "\n" for value in (row, changed, row)]
        (self.path / f"{name}.jsonl").write_text("".join(lines))

    def rewrite(self, change: Callable[[dict[str, Any]], object]) -> None:
        """All training rows, each changed."""
        rows = [json.loads(line) for line in self.train.read_text().splitlines()]
        for row in rows:
            change(row)
        self.train.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def use(self, call: str) -> None:
        self.set = [f'reward.functions=[{{call="{call}"}}]']

    def ask_judge(self, **behaviour: Any) -> None:
        self.judge |= behaviour
        self.set = [f'reward.judge.endpoints=["{self.judge_url}"]']


class Mistake(NamedTuple):
    """`said` is what an error holds; a warning where `level` says so, nothing where it is empty (accepted)."""

    name: str
    make: Callable[[Folder], object]
    said: list[str]
    mend: Callable[[Folder], object] | None = None
    """Follows the remedy."""
    level: str = "error"


def _with_experts(*overrides: str) -> Callable[[Folder], None]:
    """The model as a mixture of four layers with two experts of four per token."""

    def make(folder: Folder) -> None:
        path = folder.path / "model/config.json"
        config = json.loads(path.read_text()) | {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
        }
        path.write_text(json.dumps(config))
        folder.set = ["algorithm.routing_replay=engine", "train.max_tokens_per_micro_batch=17100000", *overrides]

    return make


def _no_lines(folder: Folder) -> None:
    rows = [json.loads(line) for line in folder.train.read_text().splitlines()]
    folder.train.write_text(json.dumps(rows))


def _rename(folder: Folder, name: str) -> None:
    folder.train.rename(folder.path / name)
    folder.set = [f"data.train_path={folder.path / name}"]


def _without(folder: Folder, *names: str) -> None:
    for name in names:
        (folder.path / "model" / name).unlink(missing_ok=True)


def _no_template(folder: Folder) -> None:
    _without(folder, "chat_template.jinja")
    path = folder.path / "model/tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("chat_template", None)
    path.write_text(json.dumps(config))


def _two_that_hang(folder: Folder) -> None:
    folder.write_rows(data_source="other")
    folder.set = ['reward.rules.verifiers={own="scoring:hangs", other="scoring:hangs_too"}']


def _phase_file(folder: Folder, gold: Any = "") -> None:
    """The second phase reads rows of its own, of which one has this gold."""
    folder.write_rows("long", gold=gold)
    folder.set = [f'curriculum.phases=[{{name="a",steps=2}},{{name="b",train_path="{folder.path}/long.jsonl"}}]']


def _set(*settings: str) -> Callable[[Folder], object]:
    def change(folder: Folder) -> None:
        folder.set = [setting.replace("{folder}", str(folder.path)) for setting in settings]

    return change


def _add(*settings: str) -> Callable[[Folder], object]:
    return lambda folder: folder.set.extend(settings)


ROWS = [
    Mistake(
        "wrong column",
        lambda f: f.rewrite(lambda row: row.update(promt=row.pop("prompt"))),
        ["train.jsonl", "column 'prompt' is missing", "Remedy: rename 'promt' to 'prompt'"],
        lambda f: f.rewrite(lambda row: row.update(prompt=row.pop("promt"))),
    ),
    Mistake(
        "rows of another schema",
        lambda f: f.train.write_text('{"q": "Which?", "a": "yen"}\n'),
        ["columns 'data_source', 'prompt', 'ability', 'reward_model' are missing", "hybridflow data convert"],
    ),
    Mistake(
        "empty gold",
        lambda f: f.write_rows(gold=""),
        ["row 1", "ground_truth", "Remedy"],
        lambda f: f.write_rows(gold="50 yen"),
    ),
    Mistake(
        "a choice that is none",
        lambda f: f.write_rows(ability="doc-mc", gold="It depends."),
        ["train.jsonl: 1 of 3 golds cannot be used by their verifier, row 1", "'It depends.'", "Remedy: correct"],
        lambda f: f.write_rows(ability="doc-mc", gold="B"),
    ),
    Mistake(
        "a gold that says nothing",
        lambda f: f.write_rows(gold="?!"),
        ["row 1", "'?!'", "Remedy: correct or remove these rows"],
        lambda f: f.write_rows(gold="rent"),
    ),
    Mistake(
        "unknown ability",
        lambda f: f.write_rows(ability="doc-quiz"),
        ["row 1", "'doc-quiz'", "Remedy: use one of doc-qa, doc-math, doc-mc"],
        lambda f: f.write_rows(ability="doc-qa"),
    ),
    Mistake("a list instead of lines", _no_lines, []),
    Mistake("a byte order mark", lambda f: f.train.write_bytes(b"\xef\xbb\xbf" + f.train.read_bytes()), []),
    Mistake("an upper-case suffix", lambda f: _rename(f, "train.JSONL"), []),
    Mistake(
        "wrong suffix",
        lambda f: _rename(f, "train.csv"),
        ["train.csv", "unknown suffix", "Remedy: use one of"],
        lambda f: (
            Path(f.path / "train.csv").rename(f.path / "new.jsonl"),
            _set("data.train_path={folder}/new.jsonl")(f),
        ),
    ),
    Mistake(
        "missing file",
        _set("data.train_path={folder}/trian.jsonl"),
        ["trian.jsonl", "Remedy: check the path; did you mean", "train.jsonl?"],
        _set("data.train_path={folder}/train.jsonl"),
    ),
    Mistake(
        "fewer test rows than are evaluated",
        _set("eval.num_prompts=9"),
        ["eval.num_prompts = 9, but the test split has 3 prompts", "Remedy: --set eval.num_prompts=3"],
        _set("eval.num_prompts=3"),
    ),
    Mistake(
        "prompts that are too long",
        _set("data.max_prompt_tokens=20"),
        ["row 0: the prompt has", "the limit data.max_prompt_tokens is 20; 3 rows are longer", "Remedy: raise"],
        _set("data.max_prompt_tokens=200"),
    ),
    Mistake(
        "prompts too long to be cut",
        _set("data.max_prompt_tokens=6", "data.overlong=truncate_middle"),
        ["3 rows are longer. data.overlong = 'truncate_middle': the prompt has", "Remedy: raise the limit"],
        _set("data.max_prompt_tokens=200", "data.overlong=truncate_middle"),
    ),
]
KEYS = [
    Mistake(
        "unknown key",
        _set("train.num_stps=5"),
        ["train.num_stps = 5", "rule:   unknown key", "remedy: did you mean 'num_steps'?"],
        _set("train.num_steps=5"),
    ),
    Mistake("value of another kind", _set("train.num_steps=five"), ["train.num_steps", "give a whole number"]),
    Mistake(
        "values that do not go together",
        _set("data.max_prompt_tokens=2000"),
        ["data.max_prompt_tokens (2000) + rollout.max_new_tokens (16) = 2016", "remedy: lower one"],
        _set("data.max_prompt_tokens=1000"),
    ),
    Mistake(
        "window of a phase without rows",
        _set('curriculum.phases=[{name="a",steps=2,window=[0,390]},{name="b",window=[390,400]}]'),
        ["rows per window: a (0, 390]: 3, b (390, 400]: 0", "Remedy: move the windows"],
        _set('curriculum.phases=[{name="a",steps=2},{name="b"}]'),
    ),
    Mistake(
        "bad row in the file of a phase",
        _phase_file,
        ["curriculum.phases.1.train_path of phase 'b': ", "long.jsonl, line 2, row 1", "give the gold answer"],
        lambda folder: _phase_file(folder, gold="40 yen"),
    ),
    Mistake(
        "layout of a phase that does not divide",
        _set('curriculum.phases=[{name="a",steps=2},{name="b",layout={tp=3}}]'),
        ["curriculum.phases.1 ('b'): curriculum.phases.1.layout does not fit", "divide the model's 4 attention heads"],
        _set('curriculum.phases=[{name="a",steps=2},{name="b",layout={tp=2}}]'),
    ),
    Mistake(
        "layout that does not divide",
        _set("train.layout.tp=3"),
        ["tp = 3: it must divide the model's 4 attention heads; choose one of 1, 2"],
        _set("train.layout.tp=2"),
    ),
    Mistake(
        "kernels that are not installed",
        _set("train.kernels=apex"),
        ['train.kernels = "apex": NVIDIA apex is not installed here', "Remedy: build it from"],
        _set("train.kernels=torch"),
    ),
    Mistake(
        "engine that does not divide",
        _set("rollout.tp_size=3"),
        ["rollout.tp_size = 3: it must divide", "choose one of 1, 2, 4"],
        _set("rollout.tp_size=2"),
    ),
    Mistake(
        "routing replay of a dense model",
        _set("algorithm.routing_replay=engine"),
        [
            'algorithm.routing_replay = "engine": the model in model.path',
            "(model_type = 'qwen3') is dense",
            "Remedy: set",
        ],
        _set("algorithm.routing_replay=off"),
    ),
    Mistake(
        "experts that no message holds",
        _with_experts("data.max_prompt_tokens=17000000", "rollout.context_tokens=17100000"),
        ["make a completion of data.max_prompt_tokens (17000000)", "tokens 66 MiB, and a message has at most 64"],
    ),
    Mistake(
        "window above the model's",
        _set("rollout.context_tokens=40000"),
        ["rollout.context_tokens = 40000 is above the model's window of 32768", "lower it"],
        _set("rollout.context_tokens=32768"),
    ),
    Mistake(
        "a folder that cannot be made",
        _set("run.directory={folder}/scoring.py"),
        ["scoring.py is no folder", "Remedy: --set run.directory="],
        _set("run.directory={folder}/other"),
    ),
    Mistake(
        "a verifier's variable that is not set",
        _set("reward.environment=['HYBRIDFLOW_NOT_SET']"),
        ["reward.environment names HYBRIDFLOW_NOT_SET, which is not set", "Remedy: export it, or remove it"],
        _set("reward.environment=['PATH']"),
    ),
    Mistake(
        "a worker's variable that is not set",
        _set("cluster.environment=['HYBRIDFLOW_NOT_SET']"),
        ["cluster.environment names HYBRIDFLOW_NOT_SET, which is not set"],
        _set("cluster.environment=[]"),
    ),
]
MODELS = [
    Mistake("model without a template", _no_template, ["no chat template", "Remedy"], level="warning"),
    Mistake(
        "a name on the Hub",
        _set("model.path=Qwen/Qwen3-0.6B"),
        ["no config.json there, and no such folder; nothing is downloaded", "hf download Qwen/Qwen3-0.6B --local-dir"],
    ),
    Mistake(
        "the folder above the model",
        _set("model.path={folder}"),
        ["no config.json there. Remedy: set model.path to", "/model"],
        _set("model.path={folder}/model"),
    ),
    Mistake(
        "model without weights",
        _set("model.init=weights"),
        ["has no safetensors", 'model.init = "seeded"'],
        _set("model.init=seeded"),
    ),
    Mistake(
        "model without tokenizer",
        lambda f: _without(f, "tokenizer.json", "tokenizer_config.json"),
        ["no tokenizer files there. Add tokenizer.json"],
        lambda f: f.write(),
    ),
]
VERIFIERS = [
    Mistake(
        "verifier that is not there",
        lambda f: f.use("scorng:right"),
        ["'scorng' does not load: ModuleNotFoundError", "looked in {folder}", "did you mean 'scoring'?"],
        lambda f: f.use("scoring:right"),
    ),
    Mistake(
        "function that is not there",
        lambda f: f.use("scoring:rigth"),
        ["scoring.py has no 'rigth'. Remedy: did you mean 'right'?"],
        lambda f: f.use("scoring:right"),
    ),
    Mistake(
        "verifier that takes other arguments",
        lambda f: f.use("scoring:needs"),
        ["scoring:needs", "needs 'tokens', 'device', which nobody gives. Remedy: let it take some of response, answer"],
    ),
    Mistake(
        "verifier that raises",
        lambda f: f.use("scoring:raises"),
        ["train.jsonl, row 0", "raised KeyError: 'gold' ({folder}/scoring.py, line 8, in raises)", "Remedy: mend"],
    ),
    Mistake(
        "verifier that returns 2.0",
        lambda f: f.use("scoring:two"),
        ["row 0", "scoring:two gave 2.0", "Remedy: let it return a number from 0 to 1"],
    ),
    Mistake(
        "verifier that is awaited",
        lambda f: f.use("scoring:later"),
        ["it is a coroutine (async def). Remedy: name a plain function (def)"],
        lambda f: f.use("scoring:right"),
    ),
    Mistake(
        "two verifiers that hang are waited for once",
        _two_that_hang,
        ["row 0: the verifier scoring:hangs has no verdict", "row 1: the verifier scoring:hangs_too was not tried"],
    ),
    Mistake("verifier that returns True", lambda f: f.use("scoring:true"), ["gave True", "write float(...)"]),
    Mistake(
        "verifier that hangs",
        lambda f: f.use("scoring:hangs"),
        ["row 0", "longer than 0.3 s", "set reward.item_timeout_s"],
    ),
    Mistake(
        "two functions of one name",
        _set('reward.functions=[{call="scoring:right"}, {call="other:right"}]'),
        ["two functions of the name 'right'", 'name = "right_2"'],
        _set('reward.functions=[{call="scoring:right"}, {call="scoring:right", name="right_2"}]'),
    ),
    Mistake(
        "weights that sum to 0",
        _set('reward.functions=[{call="scoring:right", weight=0}]'),
        ["sum to 0", "weight above 0"],
        _set('reward.functions=[{call="scoring:right", weight=1}]'),
    ),
]
JUDGES = [
    Mistake(
        "dead judge",
        _set('reward.judge.endpoints=["http://127.0.0.1:9/v1"]'),
        ["http://127.0.0.1:9/v1", "Remedy: start it (hybridflow judge serve"],
        lambda f: f.ask_judge(),
    ),
    Mistake(
        "judge that answers YES",
        lambda f: f.ask_judge(text="YES"),
        ["answered 'YES', which is no verdict. Remedy: use a model that follows the instruction to end with a line"],
        lambda f: f.ask_judge(text="Same.\n[[YES]]"),
    ),
    Mistake(
        "judge that says NO to equal answers",
        lambda f: f.ask_judge(text="[[NO]]"),
        ["NO, where both answers were 'Paris'. Remedy: use a model that can"],
        level="warning",
    ),
    Mistake(
        "judge that wants a key",
        lambda f: f.ask_judge(key="abc"),
        ["HTTP 401", "Remedy: export MY_JUDGE_KEY=<its key>"],
        lambda f: f.judge.update(key="the key"),
    ),
    Mistake(
        "judge whose key has a line break",
        lambda f: f.ask_judge(environment_key="the\nkey"),
        ["MY_JUDGE_KEY, reward.judge.api_key_env, holds a line break", "Remedy: export MY_JUDGE_KEY=<the key alone>"],
        lambda f: f.ask_judge(environment_key="the key"),
    ),
    Mistake(
        "judge that allows only its own temperature",
        lambda f: f.ask_judge(refuses="temperature"),
        ["HTTP 400", "Remedy: --set reward.judge.temperature=unset"],
        _add("reward.judge.temperature=unset"),
    ),
    Mistake(
        "judge that names its limit otherwise",
        lambda f: f.ask_judge(refuses="max_tokens", advice="Use 'max_completion_tokens' instead."),
        ["HTTP 400", "Remedy: --set reward.judge.length_field=max_completion_tokens"],
        _add("reward.judge.length_field=max_completion_tokens"),
    ),
    Mistake(
        "judge that is of another network",
        _set('reward.judge.endpoints=["http://no-such-host.invalid:8000/v1"]'),
        ["no-such-host.invalid", "Remedy: correct the name of the host"],
        lambda f: f.ask_judge(),
    ),
    Mistake("judge that fails once", lambda f: f.ask_judge(fails=[503]), []),
    Mistake(
        "judge that gives no verdict and hangs up",
        lambda f: f.ask_judge(text="Perhaps.", fails=[200, 0]),
        ["answered 'Perhaps.', which is no verdict"],
    ),
    Mistake(
        "judge of another model",
        lambda f: f.ask_judge(model="served"),
        ["HTTP 404", "name a model that it serves (served) in reward.judge.model"],
        _add("reward.judge.model=served"),
    ),
    Mistake(
        "no question for the judge",
        lambda f: (f.rewrite(lambda row: row["prompt"][0].update(content="Alpha. Beta. " * 30)), f.ask_judge()),
        ["3 of 3 rows, row 0, 1, 2: the row has no question for the judge", "Remedy: put the question into"],
        lambda f: f.rewrite(lambda row: row.update(extra_info={"question": "Which?"})),
    ),
]
MISTAKES = [*ROWS, *KEYS, *MODELS, *VERIFIERS, *JUDGES]
