"""Meeting the Ray cluster: start or join it, and check that what a run needs is there before waiting for it."""

from __future__ import annotations

import logging
import math
import os
import socket
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# uv's hook copies the project to every worker; here the package is installed on all nodes.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# Ray's coming default (an actor without GPUs sees those that are there), taken now to spare users its notice.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray  # noqa: E402
from ray.exceptions import RayError  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

from actors.faults import one_line  # noqa: E402
from actors.termination import ends_as_interrupted  # noqa: E402

# The publisher decodes on the kind of device that encoded, or its pictures would differ; it asks for a sliver of one.
PUBLISHERS_GPU = 0.1
PATIENCE = 10.0  # seconds for the head of a cluster to answer
HERE_DIED = "the Ray of this machine has died"  # where `here_is_alive` says no


class ClusterError(ValueError):
    """The cluster cannot run what was asked for. One line, with what is missing."""


@dataclass(frozen=True)
class Places:
    """How many editors run, and what each asks Ray for."""

    workers: int
    num_cpus: float
    num_gpus: float

    @property
    def editors(self) -> dict[str, Any]:
        # No retries of Ray's own: the scheduler decides, and it must know of every execution.
        return {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "max_restarts": 0, "max_task_retries": 0}

    # The Librarian and the Publisher ask for no CPU: the first waits for disks, the second is never in a hurry. They
    # stay beside the driver, whose library and output folder they write to, unless pictures are decoded on a GPU.

    @property
    def librarian(self) -> dict[str, Any]:
        return {"num_cpus": 0, "max_restarts": -1, "max_concurrency": 1000, "scheduling_strategy": _here()}

    @property
    def publisher(self) -> dict[str, Any]:
        if self.num_gpus:
            return {"num_cpus": 0, "num_gpus": PUBLISHERS_GPU, "max_restarts": 0}
        return {"num_cpus": 0, "max_restarts": 0, "scheduling_strategy": _here()}


def _here() -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def connect() -> None:
    """Join the cluster at RAY_ADDRESS, or start one on this machine. Never joins a stranger's local cluster. Raises
    ClusterError, or ConnectionError where none is there."""
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS") or "local"
        answers(address)
        local = {"include_dashboard": False} if address == "local" else {}
        with warnings.catch_warnings():
            # Ray forks only to start its own programs at once; the copy of Lance that warns never runs.
            warnings.filterwarnings("ignore", message="lance is not fork-safe")
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
            except RayError as error:  # a token that is missing, or another's
                raise ClusterError(f"the Ray at {address} cannot be joined: {one_line(error)}") from error
            except (ConnectionError, ValueError):
                raise
            except Exception as error:  # of no class of its own where a node does not come up in time
                busy = "the machine may be busy: run the same command again"
                raise ClusterError(f"Ray did not start at {address}: {one_line(error)}; {busy}") from error
            except SystemExit as ended:  # SIGTERM while Ray had it
                raise KeyboardInterrupt from ended
    ends_as_interrupted()  # where Ray would leave without a word


def answers(address: str) -> None:
    """Raise ClusterError where nobody listens at "host:port": Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
        except (OSError, OverflowError) as error:
            raise ClusterError(f"no Ray answers at {address} ({error}); check RAY_ADDRESS, or unset it") from error


def here_is_alive() -> bool:
    """Whether the cluster still has the node that this process is on. What is pinned to it can run nowhere else."""
    here = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == here and node["Alive"] for node in ray.nodes())


def nodes() -> list[dict[str, float]]:
    """Resources of every live node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def places(workers: int, threads: int, nodes: Sequence[Mapping[str, float]]) -> Places:
    """How editors fit on the nodes of a cluster. Pure.

    workers: wanted, 0 for one per GPU or, without GPUs, one per `threads` CPUs. More than that share CPUs in fractions,
    because an editor's speed is set by its thread count and not by Ray's bookkeeping. None asks for more than the
    largest node has.
    Raises ClusterError where not even one fits.
    """
    cpus, gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    largest = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    if cpus < 0.1:
        raise ClusterError(f"the cluster offers {cpus:g} CPUs, an editor needs at least 0.1: add a node with CPUs")
    if not workers:
        workers = int(gpus) if gpus >= 1 else max(1, int(cpus // threads))
    # Some room is left for the publisher and whatever else the cluster runs.
    num_cpus = min(float(threads), 0.9 * largest, int(cpus * 0.9 / workers * 100) / 100)
    if num_cpus < 0.01:
        raise ClusterError(f"{workers} editors on {cpus:g} CPUs is more than 90 to a CPU: ask for fewer with workers=N")
    # An editor's share lies on one GPU: of three on two GPUs, two share one.
    num_gpus = 0.0 if gpus < 1 else int((1 - PUBLISHERS_GPU) / math.ceil(workers / int(gpus)) * 100) / 100
    return Places(workers, num_cpus, num_gpus)


def training_device(workers: int, nodes: Sequence[Mapping[str, float]]) -> str:
    """Of a training on Ray: "cuda" where the cluster has GPUs, of which every process takes a whole one, else "cpu".
    Pure. Raises ClusterError where there are too few: Ray would wait for them without a word."""
    gpus = sum(int(node.get("GPU", 0.0)) for node in nodes)
    if 0 < gpus < workers:
        raise ClusterError(f"--workers is {workers} and the cluster has {gpus} GPUs, expected at most one process each")
    return "cuda" if gpus else "cpu"
