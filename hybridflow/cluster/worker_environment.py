"""The environment that workers find: they inherit Ray's, and Ray the driver's of the moment in which it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager

from hybridflow.environment import needed, only


def given_to_workers(variables: Mapping[str, str]) -> AbstractContextManager[None]:
    """`os.environ` inside is what workers need, with Ray's own variables and `variables` on top."""
    of_ray = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    return only(needed(os.environ, of_ray | dict(variables)))
