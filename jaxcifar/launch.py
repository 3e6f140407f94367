"""Finds out from flags and the environment whether this process is one of several of a run."""

import dataclasses
import os
import re
import urllib.error
import urllib.request
import zlib
from collections.abc import Mapping

from jaxcifar.errors import UserError, choose

MODES = ("auto", "on", "off")
_PORTS = 61_440, 4_096  # the first and how many: beyond the range of ephemeral ports


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of a process among those of its run.

    Attributes:
      address: HOST:PORT at which the first process listens.
      count: how many processes there are.
      index: the number of this process, from 0.
      local_devices: the GPUs that the process uses, as indices into those that it sees; None means
        all of them.
    """

    address: str
    count: int
    index: int
    local_devices: tuple[int, ...] | None = None


def place(
    environment: Mapping[str, str],
    mode: str = "auto",
    address: str | None = None,
    count: int | None = None,
    index: int | None = None,
) -> Place | None:
    """Returns the place of this process; None if it is alone.

    Args:
      environment: the process's environment, by which steps of Slurm, runs of Open MPI and TPU
        slices are detected.
      mode: "off" means that the process is alone, whatever is detected; "on" that it is not; "auto"
        that it is alone unless `address`, `count` or `index` is given, or the environment has more
        than one process.
      address: HOST:PORT of the first process; None means as detected.
      count: the number of processes; None means as detected.
      index: the number of this process; None means as detected.

    Raises:
      UserError: the information is incomplete or impossible.
    """
    choose("--distributed", mode, MODES)
    given = (address, count, index) != (None, None, None)
    if mode == "off":
        if given:
            raise UserError(
                "--distributed=off excludes --coordinator_address, --num_processes and "
                "--process_id. Leave out one or the other."
            )
        return None
    # Open MPI first: in a Slurm job, mpirun and what it starts are part of a Slurm step too.
    found = _open_mpi(environment) or _slurm(environment)
    # On CPUs, each host of a TPU slice runs by itself, unless --distributed=on.
    if mode == "on" or not _on_cpus(environment):
        found = found or _tpu_slice(environment)
    if mode == "auto" and not given and (found is None or found.count == 1):
        return None
    address = address or environment.get("JAX_COORDINATOR_ADDRESS") or (found and found.address)
    if found:
        count = found.count if count is None else count
        index = found.index if index is None else index
    needed = {
        "--coordinator_address=HOST:PORT": address or None,
        "--num_processes": count,
        "--process_id": index,
    }
    missing = [option for option, value in needed.items() if value is None]
    if not address or count is None or index is None:
        raise UserError(
            f"One run over several processes needs {', '.join(missing)}: no launcher (srun, mpirun "
            "or a TPU slice) provides it. --distributed=off runs this process alone."
        )
    host_and_port = re.fullmatch(r"(?:\[.+\]|[^:]+):(\d{1,5})", address)
    if not host_and_port or int(host_and_port[1]) > 65_535:
        raise UserError(
            f"--coordinator_address is {address!r}. Give the host of the first process and a free "
            "port on it, such as node1:4321; an IPv6 address in brackets: [fd00::1]:4321."
        )
    if count < 1 or not 0 <= index < count:
        raise UserError(
            f"--num_processes is {count} and --process_id is {index}. Ids count from 0: of two "
            "processes, one is 0 and one is 1."
        )
    return Place(address, count, index, found and found.local_devices)


def _slurm(environment: Mapping[str, str]) -> Place | None:
    """Detects a Slurm step, as started by srun; an allocation, or a login to its node, is none.

    Nor is an interactive shell (`srun --pty bash`): only the first of its tasks has one. What srun
    starts from there has its variable too, but no terminal.
    """
    if "SLURM_PTY_PORT" in environment and _has_terminal():
        return None
    try:
        nodes = environment["SLURM_STEP_NODELIST"]
        count = int(environment["SLURM_STEP_NUM_TASKS"])
        index, local = int(environment["SLURM_PROCID"]), int(environment["SLURM_LOCALID"])
        job, step = environment["SLURM_JOB_ID"], environment.get("SLURM_STEP_ID", "0")
    except (KeyError, ValueError):
        return None
    # node1 · node1,other2 · node[001-015,020],other2 · a range within a name: rack[1-2]node[3-4]
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    host = re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0] if first else nodes)
    on_node = environment.get("SLURM_GPUS_ON_NODE", "")
    gpus = _gpus(
        environment,
        _tasks_on_node(environment),
        local,
        of_host=int(on_node) if on_node.isdigit() else 0,
    )
    return Place(f"{host}:{_port(environment, f'{job}.{step}')}", count, index, gpus)


def _has_terminal() -> bool:
    """Whether this process belongs to a terminal, wherever its input comes from."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY))
    except OSError:
        return False
    return True


def _tasks_on_node(environment: Mapping[str, str]) -> int:
    """This node's entry in SLURM_STEP_TASKS_PER_NODE, such as "2(x3),1" for four nodes."""
    counts: list[int] = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        number, _, times = part.rstrip(")").partition("(x")
        counts += [int(number)] * int(times or 1)
    node = int(environment.get("SLURM_NODEID", 0))
    return counts[node] if node < len(counts) else counts[0]


def _open_mpi(environment: Mapping[str, str]) -> Place | None:
    try:
        count, index, local = (
            int(environment[f"OMPI_COMM_WORLD_{name}"]) for name in ("SIZE", "RANK", "LOCAL_RANK")
        )
    except (KeyError, ValueError):
        return None
    here = int(environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1))
    # Open MPI 4 says where mpirun runs, which is usually the host of the first process.
    mpirun = environment.get("OMPI_MCA_orte_hnp_uri", "")
    job = mpirun.partition(".")[0] or environment.get("PMIX_NAMESPACE", "")
    launcher = re.search(r"tcp://([^,:]+)|tcp6://(\[[^,\]]+)", mpirun)
    if here == count:
        host = "127.0.0.1"
    elif launcher:
        host = launcher[1] or f"{launcher[2]}]"
    else:  # under Open MPI 5 each host knows only itself
        return Place("", count, index, _gpus(environment, here, local))
    return Place(f"{host}:{_port(environment, job)}", count, index, _gpus(environment, here, local))


def _tpu_slice(environment: Mapping[str, str]) -> Place | None:
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    index = environment.get("TPU_WORKER_ID")
    # JAX sets the first if it finds TPUs, the second if there is no metadata server.
    asks = environment.get("TPU_ML_PLATFORM") == "JAX" and "TPU_SKIP_MDS_QUERY" not in environment
    if asks and not (hosts and index):
        hosts = _metadata(environment, "worker-network-endpoints")
        index = _metadata(environment, "agent-worker-number")
    if not (hosts and index):
        return None
    # host · host:port · [IPv6]:port · name:number:host, with "unknown" for what is not known
    names = [re.sub(r"^[^:\[]*:\w*:|:\d+$", "", name.strip()) for name in hosts.split(",")]
    port = environment.get("JAX_COORDINATOR_PORT", "8476")
    return Place(f"{names[0]}:{port}", len(names), int(index))


def _metadata(environment: Mapping[str, str], key: str) -> str:
    """An attribute of this virtual machine in Google Cloud; "" if the server does not answer."""
    server = environment.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{server}/computeMetadata/v1/instance/attributes/{key}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=10) as answer:
            return answer.read().decode().strip()
    except OSError as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is the answer, too
        return ""


def _on_cpus(environment: Mapping[str, str]) -> bool:
    return environment.get("JAX_PLATFORMS", "").split(",")[0] == "cpu"


def _gpus(
    environment: Mapping[str, str], processes: int, local: int, of_host: int = 0
) -> tuple[int, ...] | None:
    """Which of the GPUs that it sees a process uses; None means all of them.

    Args:
      environment: of the process.
      processes: how many run on this host.
      local: the number of this one among them.
      of_host: how many GPUs they have together, if the launcher may have given each its own (as
        Slurm does under --gpus-per-task); 0 if it gives none.

    Raises:
      UserError: the processes of a host see the same GPUs and cannot share them equally.
    """
    if _on_cpus(environment):
        return None
    visible = environment.get("CUDA_VISIBLE_DEVICES", environment.get("ROCR_VISIBLE_DEVICES"))
    if visible is None:  # no GPUs, or all of the host's: one for each process, or all for one
        return (local,) if processes > 1 else None
    gpus = len([name for name in visible.split(",") if name])
    if gpus <= 1 or gpus * processes <= of_host:  # its own, which it sees as number 0 and so on
        return None
    if gpus % processes:
        raise UserError(
            f"The {processes} processes of this host see {gpus} GPUs, which they cannot share "
            "equally. Start one process for each GPU, or one for each host."
        )
    each = gpus // processes
    return tuple(range(local * each, (local + 1) * each))


def _port(environment: Mapping[str, str], job: str) -> str:
    first, ports = _PORTS
    return environment.get("JAX_COORDINATOR_PORT") or str(first + zlib.crc32(job.encode()) % ports)
