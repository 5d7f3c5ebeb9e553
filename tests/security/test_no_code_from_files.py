"""Places that can run what they read are few, and each has its reason here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUNS_WHAT_IT_READS = {
    *("pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "joblib", "runpy", "imp", "code"),
    *("eval", "exec", "__import__", "import_module", "exec_module", "spec_from_file_location"),
    *("torch.load", "torch.jit.load", "torch.package", "torch.hub", "yaml.load", "yaml.unsafe_load", "numpy.load"),
    *("np.load", "pandas.read_pickle", "pd.read_pickle", "read_pickle"),
}
ALLOWED = {
    "megatron_ext/checkpoint/reader.py": {
        "pickle": "the name of torch's error",
        "torch.load": "with weights_only=True, torch's own restricted reader",
    },
    "megatron_ext/checkpoint/foreign_code.py": {
        "pickle": "reads `.metadata` with a list of the classes it may ask for",
    },
    "megatron_ext/checkpoint/writer_processes.py": {
        "pickle": "an anonymous memory file between a trainer and the writers that it forks; it has no name",
    },
    "megatron_ext/kernels/upstream.py": {
        "import_module": "installed libraries, whose names stand in the code; the configuration chooses among them",
    },
    "hybridflow/rollout/engine/signed_broadcast.py": {
        "pickle": "what SGLang's ranks of one engine send each other, read only with the signature of that engine",
    },
    "hybridflow/algorithms/registry.py": {
        "import_module": "parts of an algorithm, whose modules stand in the tables there",
    },
    "hybridflow/find_function.py": {
        "import_module": "a verifier of the user's own, named by module or file in the user's configuration",
        "exec_module": "the same, of a file; never named by a data file, model or checkpoint",
    },
    "hybridflow/reward_service/sandbox/scoring_process.py": {
        "import_module": "the builder of the rules, named by our own worker over the pipe to the process it started",
    },
}
"""Verifiers of one's own and plug-ins are installed packages, or named in the configuration: the user's own code."""


def found_in(path: Path) -> Iterator[str]:
    """Names of the set above that a module imports or calls. Texts and comments do not count."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.Call):
            dotted = ast.unparse(node.func)
            names = [dotted, dotted.rpartition(".")[2]] if not dotted.startswith("re.") else []
            if any(keyword.arg == "allow_pickle" for keyword in node.keywords):
                names.append("allow_pickle")
        yield from (name for name in names if name in RUNS_WHAT_IT_READS | {"allow_pickle"})


def test_what_can_run_a_file_is_used_in_few_places_each_with_a_reason() -> None:
    used: dict[str, set[str]] = {}
    for package in ("hybridflow", "megatron_ext"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for name in found_in(path):
                used.setdefault(path.relative_to(ROOT).as_posix(), set()).add(name)
    assert used == {path: set(reasons) for path, reasons in ALLOWED.items()}


def test_torch_loads_with_its_restricted_reader_only() -> None:
    tree = ast.parse((ROOT / "megatron_ext/checkpoint/reader.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
    assert calls
    for call in calls:
        assert {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}["weights_only"] == "True"


def test_code_beside_a_model_is_never_asked_for() -> None:
    for package in ("hybridflow", "megatron_ext"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                    assert ast.unparse(node.value) == "False", path


def test_the_search_finds_each_form(tmp_path: Path) -> None:
    forms = {
        "import pickle": "pickle",
        "from torch import load\nimport numpy as np\nnp.load('a', allow_pickle=True)": "np.load",
        "from importlib import import_module": "import_module",
        "import importlib\nimportlib.import_module('a')": "import_module",
        "eval('1')": "eval",
        "import torch\ntorch.load('a')": "torch.load",
        "from yaml import load\nimport yaml\nyaml.load('a')": "yaml.load",
        "from torch import load as read": "torch.load",
    }
    for number, (text, name) in enumerate(forms.items()):
        path = tmp_path / f"{number}.py"
        path.write_text(text)
        assert name in set(found_in(path))
