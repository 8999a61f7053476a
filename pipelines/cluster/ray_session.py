"""Opens Ray for a command: joins the cluster that was named, or starts a quiet one on this machine only."""

import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psutil  # type: ignore[import-untyped]
import yaml

from reducible.pipelines.cluster.upload import PACKAGE, code_files, pack, registered_files
from reducible.tasks.environment import environment
from reducible.tasks.errors import UserError

# Ray reads these from the environment, some of them while it is imported. A value that the user has set wins.
SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # A task that asked for no GPU sees none. Otherwise torch would use one that Ray gave to another task.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    # Threads that spin on a busy core make torch far slower. A task that needs more threads asks torch for them.
    "OMP_NUM_THREADS": "1",
}
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # without it Ray turns 127.0.0.1 into the interface's address
SET_BY_RAY = ("PYTHONBREAKPOINT",)  # ray.init points it at Ray's debugger, and ray.shutdown leaves it there
OBJECT_STORE_BYTES = 256 * 2**20  # small: paths travel between tasks, not objects
NODE_TIMED_OUT = "The current node timed out during startup"  # Ray raises a bare Exception after 30 s, hard-coded
TOKEN_HELP = "copy the cluster's to ~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH"
AUTOSCALER = Path("~/ray_bootstrap_config.yaml")  # written by `ray up` on the head, where the drivers of jobs run


@dataclass(frozen=True)
class Machine:
    """A kind of node: what one node gives, and how many there are (or can be, if it scales)."""

    name: str
    cpus: float
    gpus: float
    count: int = 1
    scales: bool = False

    def holds(self, cpus: float, gpus: float) -> int:
        """How many workers of this size one such node can hold."""
        shares = [have / ask for have, ask in ((self.cpus, cpus), (self.gpus, gpus)) if ask > 0]
        return int(min(shares) + 1e-6) if shares else sys.maxsize

    def __str__(self) -> str:
        count = f"up to {self.count} x " if self.scales else f"{self.count} x " if self.count > 1 else ""
        return f"{count}{self.name} ({self.cpus:g} CPU + {self.gpus:g} GPU)"


@dataclass(frozen=True)
class Cluster:
    """Where the tasks run. `machines` is None if an autoscaler decides and its limits are not known here."""

    local: bool
    machines: tuple[Machine, ...] | None
    scales_to: int = 0

    @property
    def grows(self) -> bool:
        """Whether nodes may start for tasks that wait."""
        return self.machines is None or any(machine.scales for machine in self.machines)

    def require(self, what: str, cpus: float = 1, gpus: float = 0, workers: int = 1) -> None:
        """Refuses a task that no node can hold, before anything starts. Ray would wait for ever without a word.

        Raises:
            UserError: saying what was asked for and what there is.
        """
        if self.machines is None:
            return
        room = capacity(self.machines, self.scales_to, cpus, gpus)
        if room < workers:
            asked = "1 worker" if workers == 1 else f"{workers} workers"
            raise UserError(
                f"{what}: asks for {asked} of {cpus:g} CPU + {gpus:g} GPU, and there is room for {room}: "
                f"{'; '.join(map(str, self.machines)) or 'no node'}. Lower compute.workers, cpus_per_worker or "
                "gpus_per_worker, or " + ("submit to a cluster" if self.local else "give the cluster more nodes")
            )


def capacity(machines: tuple[Machine, ...], scales_to: int, cpus: float, gpus: float) -> int:
    """How many workers of this size an empty cluster holds, with at most `scales_to` nodes started on demand."""
    held = sum(machine.count * machine.holds(cpus, gpus) for machine in machines if not machine.scales)
    for machine in sorted((m for m in machines if m.scales), key=lambda m: -m.holds(cpus, gpus)):
        nodes = min(machine.count, scales_to)
        held += nodes * machine.holds(cpus, gpus)
        scales_to -= nodes
    return held


@contextmanager
def session(address: str | None = None, cpus: int | None = None, gpus: int | None = None) -> Iterator[Cluster]:
    """Opens Ray for the length of a `with`, and closes it at the end, also after an error or Ctrl-C.

    Joins `address` (host:port of a head), else RAY_ADDRESS, which Ray sets inside a job. Without either it
    starts Ray on this machine, on loopback only, with `cpus` and `gpus` (default: all). If Ray is open already, it is
    used and left open.

    Raises:
        UserError: nothing answers at the address, or it refuses this token or this version of Ray.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    settings = SETTINGS | (LOOPBACK if not address or _host(address) in ("127.0.0.1", "localhost") else {})
    settings = {key: os.environ.get(key, value) for key, value in settings.items()}
    if address:
        settings["RAY_AUTH_MODE"] = auth_mode()
    else:
        # This session's own secret: nothing is written under HOME, and no cluster's secret is used.
        settings["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        from reducible.models.families.outside import FOLDER  # torch, which `reducible jobs` does not need

        settings[FOLDER] = os.getcwd()
    with environment(settings, SET_BY_RAY):
        import ray

        if ray.is_initialized():
            yield _cluster(local=False)
            return
        reread_environment()
        scratch = Path(tempfile.mkdtemp(prefix="reducible-ray-"))
        keep_logs = False
        try:
            with _sigterm_kept():
                if address:
                    _join(address, scratch)
                else:
                    _start(cpus, gpus, scratch)
            yield _cluster(local=not address)
        except Exception as error:
            keep_logs = not isinstance(error, UserError)  # for the rest, Ray's logs may say why
            raise
        finally:
            ray.shutdown()
            if not keep_logs:
                shutil.rmtree(scratch, ignore_errors=True)


def auth_mode() -> str:
    """The settings for a cluster: with a token if this machine has one. Without one the cluster says if it wants one.

    Raises:
        UserError: RAY_AUTH_TOKEN_PATH names a file that cannot be read or is empty.
    """
    return os.environ.get("RAY_AUTH_MODE", SETTINGS["RAY_AUTH_MODE"]) if has_token() else "disabled"


def has_token() -> bool:
    """Whether this machine has a token for a cluster, in any place where Ray looks for one."""
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
    from ray.exceptions import AuthenticationError

    loader = AuthenticationTokenLoader.instance()
    loader.reset_cache()
    try:
        return bool(loader.has_token(ignore_auth_mode=True))
    except AuthenticationError:
        named = os.environ.get("RAY_AUTH_TOKEN_PATH")
        if named and not os.environ.get("RAY_AUTH_TOKEN"):
            raise UserError(f"RAY_AUTH_TOKEN_PATH={named}: cannot be read or is empty") from None
        return False


def refused_token() -> str:
    """Why a cluster refused this machine, and what to do about it."""
    if has_token():
        return f"does not know this token; {TOKEN_HELP}"
    return f"wants a token, and there is none here; {TOKEN_HELP}"


def reread_environment() -> None:
    """Makes Ray read the environment again, which it reads once per process. Call it after each change."""
    from ray import _raylet
    from ray._private import ray_constants

    _raylet.Config.initialize("")  # type: ignore[attr-defined]
    _raylet.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]
    # Otherwise a session would listen on every interface if other code had imported Ray before.
    ray_constants.ENABLE_RAY_CLUSTER = ray_constants.env_bool(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, True)


def _start(cpus: int | None, gpus: int | None, scratch: Path) -> None:
    """Starts Ray, a second time if its node was not up in the half minute that Ray gives it, as on a busy machine."""
    try:
        _init(cpus, gpus, scratch)
    except Exception as error:
        if NODE_TIMED_OUT not in str(error):
            raise
        _end_processes(error)
        click.echo("Ray was not up after 30 s, as happens on a busy machine: starting it once more", err=True)
        _init(cpus, gpus, scratch)


def _init(cpus: int | None, gpus: int | None, scratch: Path) -> None:
    import ray

    # Ray puts the current folder first on the path of workers.
    with chdir(scratch), environment({"PYTHONPATH": _python_path(scratch)}, SET_BY_RAY):
        ray.init(
            "local",  # without it Ray would join any head that runs on this machine
            num_cpus=cpus,
            num_gpus=gpus,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            logging_level="ERROR",
            log_to_driver=False,
            _temp_dir=str(scratch),
        )


def _python_path(scratch: Path) -> str:
    """PYTHONPATH for Ray's processes: this package alone, then what the user has set.

    PYTHONPATH comes before Python's own library. So the current folder must not be on it, where a types.py may lie, nor
    the folder that holds this package, where other packages lie.
    """
    alone = scratch / "path"
    alone.mkdir(exist_ok=True)
    if not (alone / PACKAGE.name).exists():
        (alone / PACKAGE.name).symlink_to(PACKAGE, target_is_directory=True)
    return os.pathsep.join(filter(None, (str(alone), os.environ.get("PYTHONPATH"))))


def _end_processes(error: Exception) -> None:
    """Ends what a start of Ray that failed left running. Only the error's traceback still holds Ray's node."""
    from ray._private.node import Node

    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get("self")
        if isinstance(node, Node):
            started = [info.process.pid for infos in node.all_processes.values() for info in infos]
            agents = [agent for pid in started for agent in _children(pid)]  # of the raylet: they outlive it by a while
            node.kill_all_processes(check_alive=False, wait=True)
            for agent in agents:
                with suppress(psutil.NoSuchProcess):
                    agent.kill()
            psutil.wait_procs(agents, timeout=5)
            return


def _children(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def _join(address: str, scratch: Path) -> None:
    """Raises UserError if Ray cannot be joined at the address."""
    import ray

    if address.startswith(("http://", "https://")):
        raise UserError(
            f"RAY_ADDRESS={address}: is the address for submitting jobs (`reducible submit ... --address {address}`); "
            "a command on this machine joins a cluster by host:port, such as 10.0.0.5:6379"
        )
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise UserError(f"RAY_ADDRESS={address}: give the head's host:port, such as 10.0.0.5:6379, or submit a job")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        raise UserError(f"RAY_ADDRESS={address}: nothing answers there; is the head running?") from None
    _check_token(address)
    try:
        ray.init(address, runtime_env=_runtime_env(scratch), logging_level="ERROR", log_to_driver=False)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"RAY_ADDRESS={address}: cannot be joined: {reason}") from None


def _check_token(address: str) -> None:
    """Checks the token first: ray.init tries a wrong one for 20 s and then does not say that it was wrong."""
    import grpc  # type: ignore[import-untyped]
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    with init_grpc_channel(address) as channel:
        try:
            NodeInfoGcsServiceStub(channel).GetClusterId(GetClusterIdRequest(), timeout=10)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise UserError(f"RAY_ADDRESS={address}: {refused_token()}") from None
            raise UserError(
                f"RAY_ADDRESS={address}: is not a Ray head, or not of this version ({error.code().name})"
            ) from None


def _runtime_env(scratch: Path) -> dict[str, Any]:
    """What the workers of a cluster need from this machine. Inside a job Ray has brought it with the job."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return {}
    archive = scratch / "code.zip"
    pack(archive, [*code_files(), *registered_files()])
    return {"working_dir": str(archive), "env_vars": worker_settings()}


def worker_settings() -> dict[str, str]:
    """The settings that a cluster's workers need, no matter who started them."""
    names = ("RAY_TRAIN_ENABLE_PRINT_PATCH", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "OMP_NUM_THREADS")
    return {name: os.environ.get(name, SETTINGS[name]) for name in names}


def _cluster(local: bool) -> Cluster:
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if local:
        return Cluster(True, (_machine("this machine", nodes[0]),))
    try:
        declared = yaml.safe_load(AUTOSCALER.expanduser().read_text())
    except OSError:
        # On Kubernetes the autoscaler is KubeRay's, and its limits are written where this process cannot read them.
        return Cluster(False, None if "KUBERAY_GEN_RAY_START_CMD" in os.environ else _grouped(nodes))
    return autoscaled(nodes, declared)


def autoscaled(nodes: list[dict[str, float]], declared: Mapping[str, Any]) -> Cluster:
    """The head as it is, and the workers that the configuration of `ray up` lets the autoscaler start."""
    kinds = {
        name: kind for name, kind in declared["available_node_types"].items() if name != declared["head_node_type"]
    }
    if any("CPU" not in kind.get("resources", {}) for kind in kinds.values()):
        return Cluster(False, None)  # an instance type that Ray could not look up
    head = [node for node in nodes if "node:__internal_head__" in node]
    workers = [_machine(name, kind["resources"], kind.get("max_workers", 0), True) for name, kind in kinds.items()]
    return Cluster(False, (*_grouped(head), *workers), declared["max_workers"])


def _machine(name: str, resources: Mapping[str, float], count: int = 1, scales: bool = False) -> Machine:
    return Machine(name, resources.get("CPU", 0), resources.get("GPU", 0), count, scales)


def _grouped(nodes: list[dict[str, float]]) -> tuple[Machine, ...]:
    sizes = [(node.get("CPU", 0), node.get("GPU", 0)) for node in nodes]
    return tuple(Machine("node", *size, count=sizes.count(size)) for size in sorted(set(sizes), reverse=True))


def _host(address: str) -> str:
    return address.rpartition(":")[0]


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keeps the command's own handler of SIGTERM, which ray.init would replace."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler not in (signal.SIG_DFL, None):
            signal.signal(signal.SIGTERM, handler)
