"""Files that somebody reads who follows one completion, or one prompt, through a training run.

    python tests/architecture/walks.py            # the counts, and the files with what each names
    python tests/architecture/walks.py --brief    # the counts alone
    python tests/architecture/walks.py --root ..  # of another checkout

A file is on a walk if it defines or imports one of the records that carry what is followed. Commands beside the loop,
`hybridflow check`, configuration and the conversion of files are not on the way of a run and are left out.

- The completion's walk goes from the engine that decodes it, over the stream and its verdict, to the training row.
- The prompt's walk goes from the row of a file, over its tokens, to the request that an engine gets.
- Modules that name a record and are not on its way are beside the walk, each with its reason in BESIDE_THE_COMPLETION
  and BESIDE_THE_PROMPT. What another checkout called them is in EARLIER, and counts with `--root` alone.

  Files on the walk (with those beside it)    commit 9516533    modules regrouped    with algorithms and phases
  completion                                  34 (44)           28 (45)              28 (53)
  prompt                                      23 (38)           23 (32)              28 (39)

- A register of who is outstanding is a file in which an entry is taken off a container by the id or index of a
  completion or the id of a group: somebody keeps book there of what is still to come.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterable, Iterator
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
    "convert",
    "commands",
    "demonstrations",
    "synth",
    "invariances",
)
"""Names of packages and modules that no training run goes through, or only before it has prompts."""
BESIDE_THE_COMPLETION = {
    "recording": "writes it down",
    "curriculum": "learns from its group which prompts to give next",
    "protocols": "declares what modules on the way offer, and lets nothing through",
    "verdict_guard": "counts unknown verdicts, to stop a run",
    "evaluation": "ends in an accuracy, not in a row",
    "gate": "makes up completions, to try the parts before a run",
    "conversation": "makes rows of demonstrations, which nobody decoded",
    "kept_groups": "keeps groups from one step, and one process, to the next",
    "filters": "entries of a registry, as the rules are: say why a group is left out",
    "masks": "entries of a registry: say which tokens of a row are left out",
    "own": "entries of a registry: advantages and filters of a user's own",
    "own_function": "a verifier as the rules are, at which a request ends, and which are not counted",
    "open_engines": "engines of `hybridflow generate`",
    "completion_receiver": "takes completions without verdicts, for `hybridflow generate`",
}
"""Last names beside the completion's walk, with the reason."""
BESIDE_THE_PROMPT = {
    "records": "writes it down",
    "protocols": "declares what modules on the way offer, and lets nothing through",
    "verdict_guard": "names the kind of row whose verdict is unknown",
    "evaluation": "a side branch: prompts of the evaluation set",
    "gate": "makes up prompts, to try the parts before a run",
    "warmup": "trains on demonstrations",
    "task_balance": "a source of prompts as `source` has one; a prompt comes out of one of them",
    "retrospective_source": "a source that gives what others hand it",
    "conversation": "cuts demonstrations into turns",
    "row_reference": "writes down what a user's own verifier wants of a row, and which row a record is of",
    "open_engines": "engines of `hybridflow generate`",
}
"""Last names beside the prompt's walk, with the reason."""
EARLIER = {
    *("records", "step_metrics", "judge_totals", "unknowns", "evaluate", "convert_command"),
    *("problems", "gold_check", "row_source", "prepare", "row_text", "turns"),
}
"""Last names at commit 9516533 of what is beside a walk for one of the reasons above."""
WALKS = {"completion": (COMPLETION, BESIDE_THE_COMPLETION), "prompt": (PROMPT, BESIDE_THE_PROMPT)}
MAX_WALK = 28
"""Files of each."""
IDS = {"completion_id", "group_id", "index"}
TAKING = {"pop", "discard", "remove"}


def walk(modules: dict[str, Module], records: set[str], beside: Iterable[str] = ()) -> dict[str, set[str]]:
    """By module on the walk: the records that it defines or imports. `beside`: further names that are not on it."""
    on_the_way = [module for module in modules.values() if is_on_the_way(module, beside)]
    named = {module.name: names_in(module) & records for module in on_the_way}
    return {name: records for name, records in named.items() if records}


def is_on_the_way(module: Module, beside: Iterable[str] = ()) -> bool:
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
    for what, (records, beside) in WALKS.items():
        files = walk(modules, records, {*beside, *(EARLIER if options.root.resolve() != ROOT else ())})
        everything = walk(modules, records)
        if not options.brief:
            print("\n".join(f"{what}: {name}: {', '.join(sorted(named))}" for name, named in files.items()))
            print("\n".join(f"beside the {what}'s walk: {name}" for name in everything if name not in files))
        print(f"the {what}'s walk: {len(files)} files; with those beside it {len(everything)}")
    kept = registers(modules)
    if not options.brief:
        print("\n".join(f"register: {name}: {line}" for name, lines in kept.items() for line in lines))
    print(f"registers of who is outstanding: {len(kept)}")


if __name__ == "__main__":
    main()
