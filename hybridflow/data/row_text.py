"""The part of a row that a user's own verifier may want, as text that travels with its prompt."""

from __future__ import annotations

import json
from collections.abc import Set

from hybridflow.data.schema import Row


def dump_row(row: Row, wanted: Set[str]) -> str:
    """JSON {"prompt": [...], "extra_info": {...}} with the keys of `wanted`; "" where that is none of them.

    Values that JSON does not have, such as dates in a Parquet file, become their text.
    """
    values = {"prompt": row.prompt, "extra_info": row.extra_info}
    chosen = {key: value for key, value in values.items() if key in wanted}
    return json.dumps(chosen, ensure_ascii=False, default=str) if chosen else ""
