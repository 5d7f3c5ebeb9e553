"""What workers find in their environment: they inherit Ray's, and Ray the driver's of the moment in which it starts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager

from hybridflow.environment import named, needed, only


def given_to_workers(names: Iterable[str]) -> AbstractContextManager[None]:
    """`os.environ` inside is what workers need, with Ray's own variables and those of `cluster.environment`.

    Raises ConfigError for one of `names` that is not set.
    """
    of_ray = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    return only(needed(os.environ, of_ray | named(names, "cluster.environment")))
