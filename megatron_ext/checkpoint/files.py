"""Files of checkpoints and models that come from others: links never followed out of a folder, JSON read within bounds.

A symbolic link that led out of its folder would let a checkpoint or model name a file that only the reader may read,
and an export would copy it to where others may. The folder itself may be a link: the user named it. A Hugging Face
cache keeps its files as links of its own,
`models--<owner>--<name>/snapshots/<revision>/<file>` to `../../blobs/<hash>`: these stay in the model's folder.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

MAX_BYTES = 256 * 2**20
"""An index of 100,000 tensors has about 10 MiB."""
MAX_DIGITS = 1000


def read_json(path: Path) -> Any:
    """The value. ValueError, saying what is wrong, for what is broken, too large, too deep, or has too long a number.

    OSError when the file system refuses.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    try:
        return json.loads(content.decode("utf-8-sig"), parse_int=_whole_number)
    except RecursionError:
        raise ValueError("its lists and objects are too deep within one another") from None


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)


class LinkError(ValueError):
    """A link leads out of its folder. The message names link and target."""


def refuse_links(folder: str | Path) -> None:
    """Raises LinkError for the first link, at any depth, that leads out of `folder`. Reads no file."""
    root = Path(folder).resolve()
    home = home_of(root)
    for directory, names, files in os.walk(root):
        for name in sorted([*names, *files]):
            path = Path(directory) / name
            if path.is_symlink():
                _refuse(path, home, Path(folder))


def copy_file(source: Path, target: Path) -> None:
    """The content of a file; LinkError if that lies outside the folder that `source` is in."""
    if source.is_symlink():
        _refuse(source, home_of(source.parent.resolve()), source.parent)
    shutil.copyfile(source, target)


def home_of(root: Path) -> Path:
    """The folder that links in the resolved `root` may lead into: itself, or of a Hugging Face cache the model's."""
    for parent in root.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            return parent.parent
    return root


def _refuse(link: Path, home: Path, folder: Path) -> None:
    try:
        target = link.resolve()
    except (RuntimeError, OSError) as error:  # the first from Python 3.11 and 3.12
        raise LinkError(f"{link} is a link that leads back to itself: remove it") from error
    if not target.is_relative_to(home):
        raise LinkError(
            f"{link} is a link to {target}, which is outside {folder}: it is not followed, as the folder may come from "
            "somebody who wants to see that file. Put the file itself there, or name the folder that it is in"
        )
