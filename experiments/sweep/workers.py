"""Several processes on one machine share a command's work: one per GPU, or per set of cores."""

import contextlib
import glob
import importlib.util
import itertools
import os
import pathlib
import pkgutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import rich.live
import rich.text

from jaxcifar.errors import Interrupted, UserError
from jaxcifar.run.machine import available_cores
from jaxcifar.run.progress import console, is_live
from jaxcifar.signals import interruptible

_RESTARTS = 3  # of each worker
_CORES = 4  # of each worker, by default
TPU_FILES = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")  # other devices have such files as well
AMD_FILE = pathlib.Path("/dev/kfd")  # where GPUs are AMD's, JAX calls them "rocm"
NVIDIA_FILES = "/dev/nvidia[0-9]*"


class Place(NamedTuple):
    """Where a worker runs: on a GPU, or on some cores."""

    gpu: str = ""
    cores: frozenset[int] = frozenset()

    def __str__(self) -> str:
        return f"GPU {self.gpu}" if self.gpu else f"cores {','.join(map(str, sorted(self.cores)))}"


def parse(text: str) -> int:
    """Returns the number of workers that --workers asks for; 0 for "auto".

    Raises:
      UserError: it is neither a number nor "auto".
    """
    if text == "auto":
        return 0
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise UserError(f"--workers is {text!r}; give a number, or auto.")


def places(text: str) -> list[Place]:
    """Returns a place for each of the workers that --workers asks for.

    Args:
      text: a number, or "auto" for one per GPU, one for all TPUs or, without either, one per four
        cores.

    Raises:
      UserError: it is neither, there are fewer GPUs or cores, more than one for TPUs, or more than
        one where GPUs cannot be listed.
    """
    gpus, cores = _gpus(), available_cores()
    tpus = not gpus and _has_tpus()
    count = parse(text) or (1 if tpus else len(gpus) or max(1, len(cores) // _CORES))
    if tpus and count > 1:
        raise UserError(
            f"--workers is {count}, but only one process can use the TPUs of this machine. Leave "
            "--workers out, or set JAX_PLATFORMS=cpu to train on the cores."
        )
    if not gpus and count > 1 and _has_other_gpus():
        raise UserError(
            f"Each of {count} workers would use all GPUs here: nvidia-smi does not list them. Set "
            "CUDA_VISIBLE_DEVICES to those to use (0,1,…), one for each worker, or "
            "JAX_PLATFORMS=cpu to train on the cores."
        )
    units, what = (gpus, "GPU") if gpus else (cores, "core")
    if count > len(units):
        there = f"{len(units)} {what}{'s' * (len(units) != 1)}"
        raise UserError(f"--workers is {count}, but this machine has only {there}.")
    if gpus:
        return [Place(gpu=gpu) for gpu in gpus[:count]]
    shares = [cores[i * len(cores) // count : (i + 1) * len(cores) // count] for i in range(count)]
    return [Place(cores=frozenset(share)) for share in shares]


def _gpus() -> list[str]:
    """The GPUs that JAX would use, as CUDA_VISIBLE_DEVICES names them, without initialising any."""
    if "cpu" in os.environ.get("JAX_PLATFORMS", "").split(",")[:1]:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        # As CUDA reads it, which ends at the first that is no device. Slurm writes the last one.
        names = map(str.strip, visible.split(","))
        return list(itertools.takewhile(lambda name: name not in ("", "-1", "NoDevFiles"), names))
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(index) for index in range(len(lines))]


def _has_tpus() -> bool:
    """Whether JAX would use TPUs, found out without initialising any."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    wanted = not platforms or "tpu" in platforms.split(",")
    there = any(glob.glob(files) for files in TPU_FILES)
    return wanted and there and importlib.util.find_spec("libtpu") is not None


def _has_other_gpus() -> bool:
    """Whether JAX would use GPUs that `_gpus` did not find, without initialising any."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:  # it has none of them
        return False
    platforms = set(filter(None, os.environ.get("JAX_PLATFORMS", "").split(",")))
    plugins = [module.name for module in pkgutil.iter_modules()]
    return any(
        there
        and (not platforms or bool({name, "gpu"} & platforms))
        and any(plugin.startswith(f"jax_{name}") for plugin in plugins)
        for name, there in (("rocm", AMD_FILE.exists()), ("cuda", bool(glob.glob(NVIDIA_FILES))))
    )


class Worker:
    """A process that is restarted when it dies.

    Args:
      command: the command to run.
      place: where to run it.
      log: the file that receives its output.
    """

    def __init__(self, command: Sequence[str], place: Place, log: pathlib.Path):
        self.log, self.restarts = log, 0
        self._given_up = False
        self._command, self._place = command, place
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {"PYTHONUNBUFFERED": "1"}
        if self._place.gpu:
            environment["CUDA_VISIBLE_DEVICES"] = self._place.gpu
            if not (os.environ.get("JAX_PLATFORMS") or AMD_FILE.exists()):
                # Without it, JAX would go on with the CPU if the GPU's driver is out of order.
                environment["JAX_PLATFORMS"] = "cuda"
        self.log.parent.mkdir(parents=True, exist_ok=True)  # somebody may have tidied up
        # In a session of its own, so that Ctrl-C in the terminal reaches only the parent, which
        # passes it on once.
        with self.log.open("a") as log, on_cores(self._place.cores):
            return subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | environment,
            )

    @property
    def said(self) -> str:
        """The last lines of its log; "" if it cannot be read."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])
        except OSError:
            return ""

    def revive(self) -> str:
        """Restarts the process if it died; returns what to tell the user, once."""
        code = self.process.returncode  # as of the last poll
        if code in (None, 0) or self._given_up:
            return ""
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if code == 2 or self.restarts == _RESTARTS:
            self._given_up = True
            return (
                f"The worker on {self._place} ended ({how}) and is not started again; the end of "
                f"{self.log}:\n{self.said}"
            )
        self.restarts += 1
        try:
            self.process = self._start()
        except OSError as error:
            self._given_up = True
            return f"The worker on {self._place} died ({how}) and cannot be started again: {error}"
        return f"The worker on {self._place} died ({how}); started again. Its log: {self.log}"


@contextlib.contextmanager
def on_cores(cores: frozenset[int]) -> Generator[None]:
    """Restricts processes that are started inside to these cores, from the very beginning."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)  # of this thread; other threads keep theirs
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def end_with(parent: int) -> None:
    """Lets this worker save and end, as after SIGTERM, once its parent is another than `parent`.

    Where that was killed, nobody else would tell it.
    """

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


class Stopped(Interrupted):
    """A signal ended all workers.

    Attributes:
      codes: their exit codes.
    """

    def __init__(self, signum: int, message: str, codes: Sequence[int | None]):
        super().__init__(signum, message)
        self.codes = codes


def supervise(
    commands: Sequence[Sequence[str]],
    where: Sequence[Place],
    logs: pathlib.Path,
    table: Callable[[int | None], str],
) -> list[Worker]:
    """Runs a command at each place until all have ended; returns the workers.

    Args:
      commands: one for each place.
      where: the places.
      logs: the folder for their output, worker-i.log.
      table: returns what to show, in at most so many lines if a number is given: a terminal shows
        all of it, other outputs the lines that changed.

    Raises:
      Stopped: a signal came; it was passed on, and all workers have ended.
    """
    logs.mkdir(parents=True, exist_ok=True)
    workers: list[Worker] = []
    told: list[subprocess.Popen[bytes]] = []

    def pass_on() -> None:
        for worker in workers:
            if worker.process not in told:
                told.append(worker.process)
                worker.process.send_signal(stop.signum)

    with interruptible() as stop, _Display(table) as display:
        try:
            for index, (command, place) in enumerate(zip(commands, where, strict=True)):
                workers.append(Worker(command, place, logs / f"worker-{index}.log"))
            # Within the signal's handler, as whoever reads the table may keep it waiting.
            stop.requested = pass_on
            while True:
                ended = [worker.process.poll() is not None for worker in workers]
                said = [] if stop else list(filter(None, map(Worker.revive, workers)))
                if all(ended) and not said:
                    break
                if stop:  # also one that was being started just then
                    pass_on()
                display.say(said)
                display.update()
                time.sleep(0.2)
        except BaseException as error:
            for worker in workers:
                if isinstance(error, KeyboardInterrupt):  # the second Ctrl-C
                    worker.process.kill()
                else:  # an error here: they save and end
                    worker.process.terminate()
            try:
                for worker in workers:
                    worker.process.wait()
            except KeyboardInterrupt:
                for worker in workers:
                    worker.process.kill()
                raise
            raise
        display.update(now=True)
    codes = [worker.process.returncode for worker in workers]
    if stop and any(codes):
        message = f"All workers were stopped {stop.reason}. The same command resumes them."
        raise Stopped(stop.signum, message, codes)
    return workers


class _Display:
    """Shows a table: live in a terminal, otherwise each line when it changes."""

    _EVERY = 2.0  # seconds

    def __init__(self, table: Callable[[int | None], str]):
        self._table, self._shown, self._lines = table, 0.0, [""]
        self._console = console()
        self._live = rich.live.Live(console=self._console, auto_refresh=False)

    def __enter__(self) -> "_Display":
        if is_live(self._console):
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()  # does nothing unless it was started; the terminal may be gone by now

    def say(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._console.print(line, markup=False)

    def update(self, *, now: bool = False) -> None:
        if not now and time.monotonic() - self._shown < self._EVERY:
            return
        live = is_live(self._console)
        # The last one stays, and a terminal can scroll back to its beginning.
        most = self._console.height - 2 if live and not now else None
        self._shown, text = time.monotonic(), self._table(most)
        if live:
            shown = rich.text.Text(text, no_wrap=True, overflow="ellipsis")
            self._live.update(shown, refresh=True)
            return
        before, self._lines = self._lines, text.split("\n")
        self.say([line for line in self._lines if line not in before])
