"""Where a verifier named as "module:function" is looked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hybridflow.config.reward_sections import RewardSection


def add_module_folders(section: RewardSection, files: Sequence[Path]) -> RewardSection:
    """The section with the folders of the configuration `files`, last first, and the working folder in
    `module_folders`, as absolute paths behind those that it names; as it is where no verifier is a "module:function".
    """
    if not section.names_module:
        return section
    folders = [*section.module_folders, *(path.parent for path in reversed(files)), Path.cwd()]
    found = dict.fromkeys(str(Path(folder).resolve()) for folder in folders)
    return section.model_copy(update={"module_folders": list(found)})
