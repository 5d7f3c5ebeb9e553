"""The Ray session of a run: a private one on this machine, or the cluster that RAY_ADDRESS names.

Workers inherit their environment from Ray, and Ray that of the driver in the moment in which it starts; so the
variables of workers are set in the driver for that moment.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._raylet import (
    AuthenticationMode,  # pyright: ignore[reportAttributeAccessIssue]
    get_authentication_mode,  # pyright: ignore[reportAttributeAccessIssue]
)
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from hybridflow.cluster.addresses import own_address
from hybridflow.cluster.bundles import Place, ask_nodes, order_bundles
from hybridflow.cluster.limits import refuse_limits
from hybridflow.cluster.private_ray import PrivateRay, refuse_without_token
from hybridflow.environment import joined_cluster, named, needed, only
from hybridflow.errors import HybridFlowError, PlacementError


def given_to_workers(variables: Mapping[str, str]) -> AbstractContextManager[None]:
    """`os.environ` inside is what workers need, with Ray's own variables and `variables` on top."""
    of_ray = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    return only(needed(os.environ, of_ray | dict(variables)))


logger = logging.getLogger(__name__)

LOCAL_OBJECT_STORE_BYTES = 512 * 2**20
WAIT_NOTICE_S = 30.0
PLACEMENT_TIMEOUT_S = 300.0
SHUTDOWN_S = 5.0
"""Time that Ray's own processes get to end; it takes one or two seconds where all go on."""

_private: PrivateRay | None = None


def start_session(num_slots: int, environment: Mapping[str, str | bool] | None = None) -> None:
    """Starts or joins Ray, whose workers find in their environment what they need, and this of `cluster.environment`.

    Raises ConfigError for one with no value that is not set, for RAY_AUTH_MODE=disabled and for a long TMPDIR;
    PlacementError where the system grants too little (see `limits`), and where Ray does not start.
    """
    refuse_without_token()
    refuse_limits()
    variables = named(environment or {}, "cluster.environment")
    with given_to_workers(variables):
        _start_ray(num_slots, variables)


def _start_ray(num_slots: int, variables: Mapping[str, str]) -> None:
    """Joins the cluster of RAY_ADDRESS if set, else starts Ray here with `num_slots` logical CPUs.

    The logical CPUs are slots for placement, not threads: a train worker and an engine share one in time.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's own notes (token authentication, a worker's exit code) break the display; our errors say what is wrong.
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    # Ray prints its own account of each worker that was killed to the driver's output; there is no public switch.
    ray._private.worker._worker_logs_enabled = False  # pyright: ignore[reportAttributeAccessIssue]
    global _private
    address = joined_cluster()
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            # Workers of a cluster that was there before have its environment: what is named comes on top.
            on_top = {"env_vars": dict(variables)} if variables else None
            ray.init(address="auto", log_to_driver=False, logging_level=logging.CRITICAL, runtime_env=on_top)
            _warn_without_token(address)
            return
        _private = PrivateRay(
            num_cpus=num_slots,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            configure_logging=False,
        )
    except HybridFlowError:
        raise
    except Exception as error:  # Ray raises the class itself when its processes take more than 30 s to start
        where = f"join the Ray cluster at RAY_ADDRESS={address}" if address else "start Ray on this machine"
        load = f"{os.getloadavg()[0]:.0f} running processes on {os.cpu_count()} cores"
        remedy = "check that it is reachable and speaks this version" if address else "wait for other work to end"
        raise PlacementError(f"cannot {where} ({load}): {error}. Remedy: {remedy}, and try again") from error
    finally:
        # Ray puts its own in the place of it, which prints a stack of addresses and ends the driver with code 15.
        signal.signal(signal.SIGTERM, on_terminate)


class Slots:
    """One placement-group bundle per train worker; the engine's rank that shares its device sits in the same bundle.

    A bundle is one logical CPU and, where the cluster has GPUs, one GPU. Slots are in order of nodes and of their GPUs;
    `has_cuda` is what the nodes answered, once: whether workers compute on GPUs. The driver may have none.
    Raises PlacementError if the cluster cannot hold them within `PLACEMENT_TIMEOUT_S`; says each 30 s what is missing.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.gpus_per_slot = 1 if ray.cluster_resources().get("GPU", 0) else 0
        bundle = {"CPU": 1.0} | ({"GPU": 1.0} if self.gpus_per_slot else {})
        self._group: PlacementGroup = placement_group([bundle] * num_slots, strategy="PACK")
        waited = 0.0
        while not self._group.wait(timeout_seconds=WAIT_NOTICE_S):
            waited += WAIT_NOTICE_S
            have = {name: ray.cluster_resources().get(name, 0) for name in bundle}
            if waited >= PLACEMENT_TIMEOUT_S:
                raise PlacementError(
                    f"no room for {num_slots} slots of {bundle} after {waited:.0f} s; the cluster has {have}: "
                    f"add nodes or choose a smaller train.layout"
                )
            logger.warning("waiting for %d slots of %s; the cluster has %s", num_slots, bundle, have)
        by_bundle = placement_group_table(self._group)["bundles_to_node_id"]
        nodes: list[str] = [by_bundle[index] for index in range(num_slots)]
        gpus, self.has_cuda = ask_nodes(nodes, self._in_bundle) if self.gpus_per_slot else ([0] * num_slots, False)
        known = {node["NodeID"]: (node["NodeManagerAddress"], _store_bytes(node)) for node in ray.nodes()}
        places = [Place(node, known[node][0], gpu, known[node][1]) for node, gpu in zip(nodes, gpus, strict=True)]
        self._bundles = order_bundles(places)
        self.places = [places[bundle] for bundle in self._bundles]

    def nodes(self) -> list[str]:
        """The node of each slot."""
        return [place.node for place in self.places]

    @property
    def on_one_node(self) -> bool:
        """Whether all processes in slots see each other's memory."""
        return len(set(self.nodes())) == 1

    def strategy(self, index: int) -> PlacementGroupSchedulingStrategy:
        """Scheduling strategy that puts an actor into slot `index`."""
        return self._in_bundle(self._bundles[index])

    def _in_bundle(self, bundle: int) -> PlacementGroupSchedulingStrategy:
        return PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)


def _store_bytes(node: Mapping[str, Any]) -> int:
    """Size of the object store of a node that `ray.nodes` describes."""
    return int(node["Resources"].get("object_store_memory", 0))


def node_address(network: str = "") -> str | None:
    """Address by which other nodes reach this one, see `own_address`; None where Ray runs on this machine alone."""
    return own_address(network) if _private is None else None


def private_folder() -> Path | None:
    """Folder of the session that no other user of this machine may enter; None in a cluster."""
    return _private.path if _private is not None else None


def own_processes() -> dict[str, subprocess.Popen[bytes]]:
    """Ray's processes that this one started, by Ray's names of them; none on a cluster that was there before."""
    node = ray._private.worker._global_node  # pyright: ignore[reportAttributeAccessIssue]
    return {kind: info.process for kind, infos in (node.all_processes if node else {}).items() for info in infos}


def stop_session() -> None:
    """Ends the private Ray session, whatever state its processes are in, or leaves the cluster."""
    global _private
    with killed_after(SHUTDOWN_S, own_processes().values()):
        ray.shutdown()
    if _private is not None:
        _private.close()
        _private = None


@contextmanager
def killed_after(limit_s: float, processes: Iterable[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Inside, these are killed once the time has passed: Ray waits for ever for one of its own that stands still."""

    def kill() -> None:
        for process in processes:
            process.kill()

    timer = threading.Timer(limit_s, kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _warn_without_token(address: str) -> None:
    if get_authentication_mode() != AuthenticationMode.TOKEN:
        logger.warning(
            "the Ray cluster at %s has no token authentication: whoever reaches its ports can run code in this run. "
            "Start it, and this, with RAY_AUTH_MODE=token",
            address,
        )
