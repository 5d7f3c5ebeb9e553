"""Weight files of a Hugging Face directory: the rule of transformers 5, for trainer and engines alike.

`model.safetensors`, where it is there; else the files that `model.safetensors.index.json` names. Any other safetensors
file in the directory is not read by anybody.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_ROWS_AT_A_TIME = 4096


class WeightsError(ValueError):
    """A Hugging Face checkpoint lacks a tensor, has one of another shape, or has one that the model would not use.

    The message names it and the directory."""


def weight_map(hf_dir: Path) -> dict[str, str]:
    """File name by tensor name, of an index, or of the single file that makes an index beside it void.

    Raises FileNotFoundError where there is neither, WeightsError for one that cannot be read.
    """
    if (hf_dir / SINGLE_NAME).exists():
        return dict.fromkeys(tensor_names(hf_dir / SINGLE_NAME), SINGLE_NAME)
    if (hf_dir / INDEX_NAME).exists():
        return _read_index(hf_dir / INDEX_NAME)
    raise FileNotFoundError(f"{hf_dir} has neither {SINGLE_NAME} nor {INDEX_NAME}")


def weight_files(hf_dir: Path) -> list[str]:
    """Names of the files that hold the model, in order; none where there are no weights."""
    try:
        return sorted(set(weight_map(hf_dir).values()))
    except FileNotFoundError:
        return []


def tensor_names(path: Path) -> list[str]:
    """Tensor names in the header. WeightsError for a file that is missing or damaged."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return list(file.keys())
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist, but {INDEX_NAME} names it; copy it there") from error
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read ({error.strerror or error}); let it be a file that you can read"
        ) from error
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged or cut short ({error}); copy it again") from error


def saved_dtype(hf_dir: Path) -> str | None:
    """torch's name of the dtype in which the embedding is stored; None where there are no weights, or quantised."""
    try:
        place = weight_map(hf_dir).get(EMBEDDING)
    except FileNotFoundError:
        return None
    if place is None:
        return None
    with safe_open(str(hf_dir / place), framework="pt") as file:
        return TORCH_NAMES.get(file.get_slice(EMBEDDING).get_dtype())


def has_own_head(hf_dir: Path) -> bool:
    """Whether the files hold an output projection that is not the embedding, though the config may tie the two.

    transformers then leaves them untied, with a warning. The rows are compared, some at a time.
    """
    try:
        places = weight_map(hf_dir)
    except FileNotFoundError:
        return False
    if HEAD not in places or EMBEDDING not in places:
        return False
    with (
        safe_open(str(hf_dir / places[HEAD]), framework="pt") as head_file,
        safe_open(str(hf_dir / places[EMBEDDING]), framework="pt") as embedding_file,
    ):
        head, embedding = head_file.get_slice(HEAD), embedding_file.get_slice(EMBEDDING)
        if head.get_shape() != embedding.get_shape():
            return True
        starts = range(0, head.get_shape()[0], _ROWS_AT_A_TIME)
        parts = (slice(start, start + _ROWS_AT_A_TIME) for start in starts)
        return any(not head[part].float().equal(embedding[part].float()) for part in parts)


def _read_index(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged ({error!r}): it must have a weight_map; copy it again") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise WeightsError(f"{path} is damaged: weight_map must name a file for each tensor; copy it again")
    outside = next((name for name in found.values() if Path(name).name != name), None)
    if outside is not None:
        raise WeightsError(f"{path} names {outside!r}: weights must be files of the same directory; copy them there")
    return found
