"""Files that somebody reads who follows one completion, or one prompt, through a training run.

    python tests/architecture/walks.py            # the counts, and the files with what each names
    python tests/architecture/walks.py --brief    # the counts alone
    python tests/architecture/walks.py --root ..  # of another checkout

A file is on a walk if it defines or imports one of the records that carry what is followed. Commands beside the loop,
`hybridflow check`, configuration and the conversion of files are not on the way of a run and are left out.

- The completion's walk goes from the engine that decodes it, over the stream and its verdict, to the training row. What
  only writes it down (`recording`), or learns from its group which prompts to give next (`curriculum`), is beside it.
- The prompt's walk goes from the row of a file, over its tokens, to the request that an engine gets.
- A register of who is outstanding is a file in which an entry is taken off a container by the id or index of a
  completion or the id of a group: somebody keeps book there of what is still to come.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.architecture.modules import ROOT, Module, read_modules

COMPLETION = {
    *("Completion", "PackedCompletion", "ScoredCompletion", "ScoredPacked", "Packer"),
    *("Finished", "Task", "Work", "ScoreRequest", "ScoreReply", "Group", "TokenColumns", "TrainSequence"),
}
PROMPT = {"Row", "PromptDataset", "Prompt", "StepPlan", "GroupRequest", "Partial", "Lease", "Message"}
BESIDE = (
    "tools",
    "preflight",
    "config",
    "policy",
    "cli",
    "convert",
    "convert_command",
    "commands",
    "demonstrations",
    "synth",
)
"""Names of packages and modules that no training run goes through, or only before it has prompts."""
NOT_ON_THE_COMPLETIONS_WAY = ("recording", "curriculum", "records", "step_metrics", "judge_totals")
"""Further names beside the completion's walk; the last three stood outside of `recording` once."""
IDS = {"completion_id", "group_id", "index"}
TAKING = {"pop", "discard", "remove"}


def walk(modules: dict[str, Module], records: set[str], beside: tuple[str, ...] = ()) -> dict[str, set[str]]:
    """By module on the walk: the records that it defines or imports. `beside`: further names that are not on it."""
    on_the_way = [module for module in modules.values() if is_on_the_way(module, beside)]
    named = {module.name: names_in(module) & records for module in on_the_way}
    return {name: records for name, records in named.items() if records}


def is_on_the_way(module: Module, beside: tuple[str, ...] = ()) -> bool:
    names = set(module.name.split("."))
    return module.has_code and "hybridflow" in names and not names & {*BESIDE, *beside}


def names_in(module: Module) -> set[str]:
    """Classes that are defined here or imported from a module of ours; `Message` counts where it is that of `data`."""
    found: set[str] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef):
            found |= {node.name} - {"Message"} if ".data." not in module.name else {node.name}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hybridflow"):
            names = {alias.name for alias in node.names}
            found |= names if ".data" in (node.module or "") else names - {"Message"}
    return found


def registers(modules: dict[str, Module]) -> dict[str, list[str]]:
    """By module: the lines in which something that was outstanding is taken off."""
    found = {name: list(_lines_taking(module)) for name, module in modules.items() if is_on_the_way(module)}
    return {name: lines for name, lines in found.items() if lines}


def _lines_taking(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in TAKING:
            keys: list[ast.expr] = node.args[:1]
        elif isinstance(node, ast.Delete):
            keys = [target.slice for target in node.targets if isinstance(target, ast.Subscript)]
        elif isinstance(node, ast.Assign) and ast.unparse(node.value).endswith(".popleft()"):
            keys = node.targets
        else:
            continue
        if any(_names_an_id(key) for key in keys):
            yield f"{node.lineno}: {ast.unparse(node)}"


def _names_an_id(expression: ast.expr) -> bool:
    """Whether it names the id of a completion or a group; an engine says `["id"]`."""
    return any(
        (isinstance(node, ast.Name) and node.id in IDS)
        or (isinstance(node, ast.Attribute) and node.attr in IDS)
        or (isinstance(node, ast.Constant) and node.value == "id")
        for node in ast.walk(expression)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brief", action="store_true")
    parser.add_argument("--root", type=Path, default=ROOT)
    options = parser.parse_args()
    modules = read_modules(options.root)
    walks = (("completion", COMPLETION, NOT_ON_THE_COMPLETIONS_WAY), ("prompt", PROMPT, ()))
    for what, records, beside in walks:
        files = walk(modules, records, beside)
        if not options.brief:
            print("\n".join(f"{what}: {name}: {', '.join(sorted(named))}" for name, named in files.items()))
        print(f"the {what}'s walk: {len(files)} files")
    kept = registers(modules)
    if not options.brief:
        print("\n".join(f"register: {name}: {line}" for name, lines in kept.items() for line in lines))
    print(f"registers of who is outstanding: {len(kept)}")


if __name__ == "__main__":
    main()
