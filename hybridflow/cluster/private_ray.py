"""A Ray session that no other user of this machine may enter, and nobody can reach from another.

    token       made for the session, in a file of mode 0600; every call to a process of Ray must bring it
    files       of the session, its sockets, and what its workers write into the folder for temporary files: below a
                folder of mode 0700, which goes with the session
    listening   on the loopback alone; no metrics

What Ray 2.60 does not let: its ports on the loopback answer whoever is on the machine, if only to refuse; SECURITY.md
says more.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import ray
from ray._private import ray_constants, services
from ray._raylet import AuthenticationTokenLoader  # pyright: ignore[reportAttributeAccessIssue]

from hybridflow.compiled_kernels import kept_in
from hybridflow.errors import ConfigError
from hybridflow.private_folder import LONGEST_RAY_SOCKET, PrivateFolder, write_secret

FORCE = "HYBRIDFLOW_RAY_WITHOUT_TOKEN"
RAY_START_S = 30.0
MOST_PATIENCE = 10.0
"""Times as long, at most."""
_NO_PORT = "99999"
"""There is none of this number: Ray's servers of metrics fail to start, and it goes on without them."""
_LOOPBACK = {
    # Keeps Ray on the loopback, where it does that by default on other systems; there is no other switch for it.
    ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
    "RAY_enable_metrics_collection": "0",
    "AUTOSCALER_METRIC_PORT": _NO_PORT,
    "DASHBOARD_METRIC_PORT": _NO_PORT,
    # Sockets of torch's process groups, of whichever process below.
    "GLOO_SOCKET_IFNAME": "lo",
}


def refuse_without_token() -> None:
    """ConfigError where the environment switches Ray's authentication off, unless that is forced."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled" and os.environ.get(FORCE) != "1":
        raise ConfigError(
            "RAY_AUTH_MODE=disabled in the environment: whoever reaches a port of Ray could run code in this run. "
            f"Remedy: unset it; or set {FORCE}=1 where nobody else can reach this machine"
        )


class PrivateRay:
    """Starts on construction; `close` it when Ray has ended. Takes arguments of `ray.init`, and raises what it does."""

    def __init__(self, **arguments: Any) -> None:
        self._stack = ExitStack()
        try:
            self.path = self._stack.enter_context(PrivateFolder(longest_name=LONGEST_RAY_SOCKET)).path
            self._start(arguments)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """May be called twice."""
        self._stack.close()

    def _start(self, arguments: dict[str, Any]) -> None:
        token = self.path / "token"
        write_secret(token, secrets.token_hex(32))
        (self.path / "tmp").mkdir()
        # Ray itself sets its mode to "token" where it is not set.
        mode = os.environ.get("RAY_AUTH_MODE")
        self._stack.enter_context(_environment({"RAY_AUTH_TOKEN_PATH": str(token), "RAY_AUTH_TOKEN": None}))
        self._stack.enter_context(_environment({"RAY_AUTH_MODE": mode}))
        AuthenticationTokenLoader.instance().reset_cache()
        may_leave, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
        limit_s = start_limit_s(os.getloadavg()[0], os.cpu_count() or 1)
        own = {**_LOOPBACK, "TMPDIR": str(self.path / "tmp"), **kept_in(self.path / "tmp")}
        own["RAY_gcs_server_port_wait_time_s"] = str(int(limit_s))
        try:
            # For what Ray starts, not for this process.
            with _environment(own), patience(limit_s):
                ray.init(
                    address="local",  # never the cluster of somebody else that happens to run on this machine
                    include_dashboard=False,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=str(self.path / "r"),  # Ray opens this one to everybody: mode 0777
                    **arguments,
                )
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = may_leave


def start_limit_s(load: float, num_cores: int) -> float:
    """Seconds that Ray's processes get to start: its own 30 on a machine that has time, more on a loaded one."""
    return RAY_START_S * min(max(1.0, load / num_cores), MOST_PATIENCE)


@contextmanager
def patience(limit_s: float) -> Iterator[None]:
    """Inside, Ray waits so long for its worker pool; it gives up after 30 s, which is a constant in its code."""
    find_node = services.get_node

    def find_node_in_time(*args: Any, **kwargs: Any) -> Any:
        deadline = time.monotonic() + limit_s
        while True:
            try:
                return find_node(*args, **kwargs)
            except RuntimeError:  # not registered yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    services.get_node = find_node_in_time
    try:
        yield
    finally:
        services.get_node = find_node


@contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Sets variables, or removes those without a value, and puts back what was there."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
