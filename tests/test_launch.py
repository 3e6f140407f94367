"""Which process of how many this is, by what launchers put into the environment."""

import http.server
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from jaxcifar.errors import UserError
from jaxcifar.launch import Place, place

ROOT = pathlib.Path(__file__).parent.parent
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "node[003-005,9]",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}


def test_alone():
    assert place({}) is None
    assert place({"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4"}) is None  # no step: a batch script
    assert place(SLURM, "off") is None
    assert place(SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node[003-005,9]", "node003"),
        ("node1", "node1"),
        ("node1,other[2-3]", "node1"),
        ("rack[1-2]node[3-4]", "rack1node3"),
        ("gpu-a[07,09]", "gpu-a07"),
    ],
)
def test_steps_of_slurm(nodes, host):
    found = place(SLURM | {"SLURM_STEP_NODELIST": nodes, "JAX_COORDINATOR_PORT": "4321"})
    assert found == Place(f"{host}:4321", 4, 2, None)


def test_an_interactive_shell_of_slurm_is_no_step_but_what_srun_starts_from_it_is():
    """`srun -n 4 --pty bash`: the other three have no shell, and never come."""
    shell = SLURM | {"SLURM_PTY_PORT": "40123", "SLURM_PROCID": "0"}
    code = f"from jaxcifar.launch import place; print(place({shell}))"

    def found(before="", **more):
        """In a session of its own, as Slurm starts a task; its input is not the terminal's."""
        command = [sys.executable, "-c", before + code]
        how = {"start_new_session": True, "stdin": subprocess.DEVNULL, "cwd": ROOT} | more
        return subprocess.run(command, check=True, capture_output=True, text=True, **how).stdout

    master, terminal = os.openpty()
    try:
        take = f"import fcntl, termios; fcntl.ioctl({terminal}, termios.TIOCSCTTY, 0); "
        assert found(take, pass_fds=[terminal]) == "None\n"
    finally:
        os.close(master)
        os.close(terminal)
    # A step from there has inherited the variable, and no terminal.
    assert "count=4, index=0" in found()


def test_all_tasks_of_a_step_find_the_same_port_and_other_steps_another():
    ports = {
        place(SLURM | {"SLURM_STEP_ID": step, "SLURM_PROCID": process}).address
        for step in "01"
        for process in "0123"
    }
    assert len(ports) == 2
    assert all(61_440 <= int(address.rpartition(":")[2]) <= 65_535 for address in ports)


def test_tasks_of_a_node_share_its_gpus():
    tasks = SLURM | {
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
        "SLURM_NODEID": "1",
        "SLURM_LOCALID": "1",
    }
    assert place(tasks | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}).local_devices == (2, 3)
    assert place(tasks | {"CUDA_VISIBLE_DEVICES": "3"}).local_devices is None
    uneven = tasks | {"SLURM_STEP_TASKS_PER_NODE": "4,2"}  # this is the second node
    assert place(uneven | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}).local_devices == (2, 3)
    with pytest.raises(UserError, match="see 3 GPUs, which they cannot share"):
        place(tasks | {"CUDA_VISIBLE_DEVICES": "0,1,2"})
    # By --gpus-per-task each has its own; without it, all of the node's are seen by all.
    for on_node, local_devices in (("8", None), ("4", (2, 3))):
        of_node = {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_ON_NODE": on_node}
        assert place(tasks | of_node).local_devices == local_devices
    on_cpus = {"CUDA_VISIBLE_DEVICES": "0,1,2", "JAX_PLATFORMS": "cpu"}
    assert place(tasks | on_cpus).local_devices is None


def test_mpirun_gives_no_process_its_own_gpus():
    """So what it names in a job of eight, the four of this host share, rank 1 being this one."""
    some = {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_ON_NODE": "16"}
    assert place(OPEN_MPI | some).local_devices == (1,)


def test_open_mpi_4():
    found = place(OPEN_MPI | {"JAX_COORDINATOR_PORT": "4321"})
    assert found == Place("10.96.0.1:4321", 8, 5, (1,))


def test_mpirun_within_a_slurm_job():
    # mpirun starts what it needs on other nodes by srun, and so does `srun --pty bash` here.
    assert place(SLURM | OPEN_MPI).count == 8
    interactive = SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
    assert place(interactive | OPEN_MPI).index == 5


def test_open_mpi_5_must_be_told_the_first_host():
    newer = {k: v for k, v in OPEN_MPI.items() if "MCA" not in k} | {"PMIX_NAMESPACE": "prte-7@1"}
    with pytest.raises(UserError, match="needs --coordinator_address=HOST:PORT"):
        place(newer)
    found = place(newer | {"JAX_COORDINATOR_ADDRESS": "node1:4321"})
    assert (found.address, found.count, found.index) == ("node1:4321", 8, 5)
    on_one = newer | {"OMPI_COMM_WORLD_LOCAL_SIZE": "8", "JAX_COORDINATOR_PORT": "4321"}
    assert place(on_one).address == "127.0.0.1:4321"


@pytest.mark.parametrize("hosts", ["10.0.0.2,10.0.0.3", "10.0.0.2:8471, 10.0.0.3:8471"])
def test_a_tpu_slice(hosts):
    slice_ = {"TPU_WORKER_HOSTNAMES": hosts, "TPU_WORKER_ID": "1"}
    assert place(slice_) == Place("10.0.0.2:8476", 2, 1, None)
    assert place(slice_ | {"JAX_PLATFORMS": "tpu,cpu"}) == place(slice_)
    on_cpu = slice_ | {"JAX_PLATFORMS": "cpu"}
    assert place(on_cpu) is None  # an evaluation on one host
    assert place(on_cpu, "on") == place(slice_)
    assert place(slice_ | {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}) is None


@pytest.fixture
def metadata():
    """Answers as Google Cloud's metadata server does: (what it knows, what the environment has)."""
    known = {}

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = known.get(self.path.removeprefix("/computeMetadata/v1/instance/attributes/"))
            allowed = found is not None and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if allowed else 404)
            self.end_headers()
            self.wfile.write((found if allowed else "no such attribute").encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        yield known, {"TPU_ML_PLATFORM": "JAX", "GCE_METADATA_IP": address}
        server.shutdown()


@pytest.mark.parametrize(
    "endpoints",
    [
        "10.0.0.2,10.0.0.3",
        "unknown:0:10.0.0.2,unknown:1:10.0.0.3",
        "unknown:unknown:10.0.0.2,unknown:unknown:10.0.0.3",
    ],
)
def test_a_tpu_slice_that_only_the_metadata_server_knows(metadata, endpoints):
    known, environment = metadata
    known |= {"worker-network-endpoints": endpoints, "agent-worker-number": "1"}
    assert place(environment) == Place("10.0.0.2:8476", 2, 1, None)
    assert place(environment, "off") is None
    assert place(environment | {"TPU_SKIP_MDS_QUERY": "1"}) is None
    # It is only asked where JAX has found TPUs.
    assert place({name: environment[name] for name in ("GCE_METADATA_IP",)}) is None


def test_a_tpu_machine_that_is_no_slice(metadata):
    known, environment = metadata
    assert place(environment) is None  # it knows nothing
    known |= {"worker-network-endpoints": "10.0.0.2", "agent-worker-number": "0"}
    assert place(environment) is None
    assert place(environment | {"GCE_METADATA_IP": "127.0.0.1:9"}) is None  # nobody answers


def test_flags_come_first():
    assert place({}, "auto", "node1:4321", 2, 1) == Place("node1:4321", 2, 1, None)
    assert place(SLURM, "auto", "node1:4321").address == "node1:4321"
    assert place({}, "auto", "[fd00::1]:4321", 2, 1).address == "[fd00::1]:4321"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("maybe",), "--distributed"),
        (("on",), "needs --coordinator_address=HOST:PORT, --num_processes, --process_id"),
        (("auto", "node1:4321"), "needs --num_processes, --process_id"),
        (("off", "node1:4321", 2, 0), "excludes --coordinator_address"),
        (("on", "node1", 2, 0), "--coordinator_address is 'node1'"),
        (("on", "node1:99999", 2, 0), "--coordinator_address is 'node1:99999'"),
        (("on", "fd00::1:4321", 2, 0), r"in brackets: \[fd00::1\]:4321"),
        (("on", "node1:4321", 2, 2), "--process_id is 2"),
        (("on", "node1:4321", 0, 0), "--num_processes is 0"),
    ],
)
def test_wrong_flags(arguments, message):
    with pytest.raises(UserError, match=message):
        place({}, *arguments)
