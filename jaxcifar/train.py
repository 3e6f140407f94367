"""The training loop: a config and a folder in, a trained network and its history out.

The only module that sees a whole config. A run is the same run however often it is stopped and
resumed, and on however many devices: everything random follows from the seed and the step.
"""

import dataclasses
import math
import pathlib
import platform
import resource
import signal
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxcifar import augment, data, metrics, optim, sharding, workdirs
from jaxcifar.checkpoint import Checkpointer
from jaxcifar.config import Config, validate
from jaxcifar.errors import Interrupted, UserError, choose
from jaxcifar.plots import plot_history
from jaxcifar.programs import Programs, compiled_programs, create_model, hyperparams_of, static_part
from jaxcifar.state import TrainState
from jaxcifar.workdirs import interruptible

PROTOCOLS = ("test", "holdout")


def train_and_evaluate(
    config: Config, workdir: str | pathlib.Path, *, quiet: bool = False
) -> dict[str, Any]:
    """Trains by `config` in `workdir`, from the start or from where it was stopped.

    Args:
      config: from `jaxcifar.config.base_config()`.
      workdir: is made where it does not exist. Afterwards it holds config.json, metrics.jsonl (a
        line an epoch), steps.jsonl (the metrics of each step), result.json, history.png,
        tensorboard/ and checkpoints/.
      quiet: show no progress.

    Returns:
      The content of result.json.

    Raises:
      UserError: the config, the data or the workdir cannot be used, or the loss is not finite.
      Interrupted: SIGINT or SIGTERM came; everything so far is saved.
    """
    check_config(config)
    workdir = pathlib.Path(workdir)
    with workdirs.lock(workdir):
        if result := workdirs.finished(config, workdir):
            return result
        return _Run(config, workdir, quiet).train()


def evaluate_workdir(
    workdir: str | pathlib.Path, which: str = "best", config: Config = None
) -> dict[str, Any]:
    """Evaluates a run's checkpoint on the test set.

    Args:
      workdir: of a run.
      which: "best" (highest validation accuracy) or "last".
      config: None is the run's own; else it must be the same but for how it is carried out.

    Returns:
      {"checkpoint", "step", "loss", "accuracy", "images", "data"}.

    Raises:
      UserError: no run or no checkpoint there, or one of another config.
    """
    run_config, step, variables = load_variables(workdir, which)
    if config is None:
        config = run_config
    check_config(config, training=False)
    workdirs.check_same(run_config.to_dict(), config, pathlib.Path(workdir))
    test = data.load(config.data.name, "test", data_dir=config.data.dir)
    mesh = sharding.make_mesh()
    programs = _evaluation_programs(config, (test.mean, test.std), mesh)
    arrays = sharding.replicate((variables, test.images, test.labels), mesh)
    return {
        "checkpoint": which,
        "step": step,
        **programs.evaluate(*arrays),
        "data": test.provenance,
    }


def load_variables(
    workdir: str | pathlib.Path, which: str = "best"
) -> tuple[Config, int, dict[str, Any]]:
    """Returns a run's config, the step of a checkpoint, and its variables for `model.apply`.

    Args:
      workdir: of a run, which may still be training.
      which: "best" (highest validation accuracy) or "last".

    Raises:
      UserError: no run or no such checkpoint there.
    """
    choose("checkpoint", which, ("best", "last"))
    workdir = pathlib.Path(workdir)
    saved = workdirs.saved_config(workdir)
    if saved is None:
        raise UserError(f"{workdir} holds no run (no config.json). Train first, with --mode=train.")
    config: Config = ConfigDict(saved)
    check_config(config, training=False)
    checkpoints = Checkpointer(workdir / "checkpoints", read_only=True)
    number = checkpoints.best() if which == "best" else checkpoints.last()
    if number is None:
        raise UserError(f"{workdir} holds no {which} checkpoint yet. Train it for an epoch first.")
    programs = _evaluation_programs(config, ((0.0,) * 3, (1.0,) * 3), sharding.make_mesh())
    state, _ = checkpoints.restore(programs.abstract_state, number)
    checkpoints.close()
    return config, int(state.step), state.variables


def start_from(config: Config, workdir: str | pathlib.Path, variables: dict[str, Any]) -> None:
    """Makes a workdir whose run starts from given variables, at step 0 and epoch 0.

    It can be evaluated as it is, or trained on from there.

    Args:
      config: of the run.
      workdir: is made; must hold no run.
      variables: {"params", "batch_stats"} of the config's model.

    Raises:
      UserError: the config cannot be used, or the workdir holds a run.
    """
    check_config(config)
    workdir = pathlib.Path(workdir)
    with workdirs.lock(workdir):
        if workdirs.saved_config(workdir) is not None:
            raise UserError(f"{workdir} holds a run already. Choose another --workdir.")
        mesh = sharding.make_mesh()
        programs = _evaluation_programs(config, ((0.0,) * 3, (1.0,) * 3), mesh)
        seed = sharding.replicate(np.uint32(config.seed), mesh)
        state = programs.init(seed, sharding.replicate(hyperparams_of(config), mesh))
        for name, given in variables.items():
            wanted = jax.tree.map(lambda x: x.shape, getattr(programs.abstract_state, name))
            if jax.tree.map(lambda x: x.shape, given) != wanted:
                raise UserError(
                    f"The {name} given are not of {config.model.name} with 10 classes and width "
                    f"{config.model.width:g}: names or shapes differ."
                )
        state = state.replace(**sharding.replicate(variables, mesh))
        workdirs.write_config(config, workdir, {}, programs.in_force)
        checkpoints = Checkpointer(workdir / "checkpoints")
        checkpoints.save(0, state, _Epoch().progress(0), val_accuracy=None)
        checkpoints.close()


def _evaluation_programs(config: Config, normalization: tuple, mesh: jax.sharding.Mesh) -> Programs:
    """Programs of a run that does not train here, so that its number of images is of no matter."""
    config = ConfigDict(config.to_dict())
    config.train.steps_per_call = 0
    return Programs(static_part(config), config.train.batch_size, normalization, mesh)


def check_config(config: Config, *, training: bool = True) -> None:
    """Checks everything that can be checked of a config without data.

    Args:
      config: of a run.
      training: whether it is to train here; a run may be evaluated on devices that could not.

    Raises:
      UserError: an unknown field or name, or an impossible value.
    """
    validate(config)
    create_model(config)
    choose("data.name", config.data.name, data.DATASETS)
    choose("data.augment", config.data.augment, augment.AUGMENTATIONS)
    choose("data.protocol", config.data.protocol, PROTOCOLS)
    choose("optim.name", config.optim.name, optim.OPTIMIZERS)
    choose("optim.schedule", config.optim.schedule, optim.SCHEDULES)
    choose("optim.penalize", config.optim.penalize, optim.MASKS)
    if config.optim.momentum and config.optim.name != "sgd":
        raise UserError(
            f"config.optim.momentum is {config.optim.momentum}, but optim.name is "
            f"{config.optim.name!r}: only 'sgd' has a momentum to set. Set it to 0."
        )
    devices = jax.device_count()
    for field in ("batch_size", "eval_batch_size") if training else ("eval_batch_size",):
        if config.train[field] % devices:
            raise UserError(
                f"config.train.{field} is {config.train[field]}, which {devices} devices cannot "
                f"share equally. Choose a multiple of {devices}."
            )


# --- one run ----------------------------------------------------------------------------------


@dataclasses.dataclass
class _Epoch:
    """What is known of the epoch in progress; `steps` are the metrics of its finished steps."""

    steps: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    def progress(self, epochs_done: int) -> dict[str, Any]:
        """What a checkpoint holds beside the state."""
        # Copies: Orbax writes them in the background, while these lists grow.
        steps = {name: list(values) for name, values in self.steps.items()}
        return {"epochs_done": epochs_done, "steps": steps, "seconds": self.seconds}


class _Run:
    """One training run from start or checkpoint to result."""

    def __init__(self, config: Config, workdir: pathlib.Path, quiet: bool):
        self.config, self.workdir = config, workdir
        train, val, self.test = load_data(config)
        self.mesh = sharding.make_mesh()
        self.programs = compiled_programs(
            static_part(config), len(train), (train.mean, train.std), self.mesh
        )
        self.compiled_before = self.programs.compile_seconds
        self.provenance = {"train": train.provenance, "validation": val.provenance}
        workdirs.write_config(config, workdir, self.provenance, self.programs.in_force)
        self.arrays = sharding.replicate(
            {"train": (train.images, train.labels), "val": (val.images, val.labels)}, self.mesh
        )
        self.hyperparams = sharding.replicate(hyperparams_of(config), self.mesh)
        self.checkpoints = Checkpointer(workdir / "checkpoints")
        self.state, self.epochs_done, self.epoch = self._start()
        self.log = metrics.RunLog(workdir, self.epochs_done)
        self.progress = metrics.Progress(
            config.train.epochs, self.programs.steps_per_epoch, self.epochs_done, quiet
        )
        self.stop_signal = 0
        self.saved_at = time.monotonic()

    @property
    def step(self) -> int:
        """Training steps done, known without asking the device."""
        within = len(self.epoch.steps.get("loss", ()))
        return self.epochs_done * self.programs.steps_per_epoch + within

    def _start(self) -> tuple[TrainState, int, _Epoch]:
        number = self.checkpoints.last()
        if number is None:
            seed = sharding.replicate(np.uint32(self.config.seed), self.mesh)
            return self.programs.init(seed, self.hyperparams), 0, _Epoch()
        state, progress = self.checkpoints.restore(self.programs.abstract_state, number)
        return state, progress["epochs_done"], _Epoch(progress["steps"], progress["seconds"])

    def train(self) -> dict[str, Any]:
        try:
            with self.progress, interruptible(self._on_signal):
                self._announce()
                for epoch in range(self.epochs_done + 1, self.config.train.epochs + 1):
                    self._train_epoch(epoch)
                    self._finish_epoch(epoch)
            return self._result()
        finally:
            self.checkpoints.close()
            self.log.close()

    def _on_signal(self, signum: int) -> None:
        self.stop_signal = signum

    def _announce(self) -> None:
        devices = jax.devices()
        config, data = self.config, self.provenance["train"]
        parameters = _parameter_count(self.state)
        self.progress.say(
            f"{config.model.name} ({parameters:,} parameters) on {data['name']} "
            f"({data['images']:,} images), {len(devices)} × {devices[0].device_kind}, "
            f"in {self.workdir}"
        )
        if not all(part["official"] is not False for part in self.provenance.values()):
            self.progress.say(
                f"{data['source']}: not verified as the official files (no checksum matches); "
                "accuracies may not compare with published ones. result.json says so too."
            )
        if self.step:
            self.progress.say(f"resumed after epoch {self.epochs_done}, step {self.step}")
        order = self._order(self.epochs_done + 1)
        args = (self.state, self.hyperparams, *self.arrays["train"], order)
        self.programs.compiled_train(self.programs.steps_per_call, *args)
        seconds = self.programs.compile_seconds - self.compiled_before
        self.progress.say(f"compiled in {seconds:.1f}s")
        self.progress.started(self.step)

    def _order(self, epoch: int) -> jax.Array:
        return self.programs.order(self.state.key, sharding.replicate(np.int32(epoch), self.mesh))

    def _train_epoch(self, epoch: int) -> None:
        programs, order = self.programs, self._order(epoch)
        position = self.step - (epoch - 1) * programs.steps_per_epoch
        pending: list[dict[str, jax.Array]] = []  # metrics of calls not yet fetched
        began = time.monotonic()

        def fetch(calls: int) -> None:
            """Moves the metrics of the first `calls` pending calls to the host."""
            nonlocal began
            for call in jax.device_get(pending[:calls]):
                for name, values in call.items():
                    self.epoch.steps.setdefault(name, []).extend(values.tolist())
            del pending[:calls]
            now = time.monotonic()
            self.epoch.seconds += now - began
            began = now
            self._check_finite()

        while position < programs.steps_per_epoch:
            steps = programs.steps_from(position)
            with jax.transfer_guard("disallow"):  # a hidden copy to or from the host is an error
                self.state, step_metrics = programs.train(
                    steps, self.state, self.hyperparams, *self.arrays["train"], order
                )
            position += steps
            pending.append(step_metrics)
            if len(pending) > 1:
                # The device works on this call while the host waits for the one before: it
                # never idles, and a signal never waits for a long queue.
                jax.block_until_ready(pending[-2])
            if self.progress.due() and len(pending) > 1:
                fetch(len(pending) - 1)  # those that are done: nothing waits
                self._show_step()
            if self.stop_signal or self._checkpoint_due():
                fetch(len(pending))
                self._save(val_accuracy=None)
                if self.stop_signal:
                    self._stop()
        fetch(len(pending))

    def _show_step(self) -> None:
        steps = self.epoch.steps
        rate = len(steps["loss"]) * self.programs.batch_size / self.epoch.seconds
        self.progress.step(self.step, steps["loss"][-1], float(np.mean(steps["accuracy"])), rate)

    def _finish_epoch(self, epoch: int) -> None:
        images_per_epoch = self.programs.steps_per_epoch * self.programs.batch_size
        validation = self.programs.evaluate(
            self.state.variables, *self.arrays["val"], stop=lambda: bool(self.stop_signal)
        )
        if not validation:  # stopped: the resumed run evaluates
            self._save(val_accuracy=None)
            self._stop()
        if not math.isfinite(validation["loss"]):
            self._diverged(f"the validation loss after epoch {epoch}", self.step)
        schedule = optim.make_schedule(
            self.config.optim.schedule,
            self.config.optim.learning_rate,
            self.config.train.epochs,
            self.programs.steps_per_epoch,
        )
        record = {
            "epoch": epoch,
            "step": self.step,
            "train_loss": float(np.mean(self.epoch.steps["loss"])),
            "train_ce": float(np.mean(self.epoch.steps["ce"])),
            "train_accuracy": float(np.mean(self.epoch.steps["accuracy"])),
            "val_loss": validation["loss"],
            "val_accuracy": validation["accuracy"],
            "learning_rate": float(schedule(self.step - 1)),  # of the epoch's last step
            "images_per_second": images_per_epoch / self.epoch.seconds,
            "seconds": self.epoch.seconds,  # of training alone
        }
        self.log.write(record, self.epoch.steps)
        self.epochs_done, self.epoch = epoch, _Epoch()
        self._save(record["val_accuracy"])
        self.progress.epoch(record)
        if self.stop_signal and epoch < self.config.train.epochs:
            self._stop()

    def _check_finite(self) -> None:
        bad = np.flatnonzero(~np.isfinite(self.epoch.steps.get("loss", [])))
        if bad.size:
            step = self.epochs_done * self.programs.steps_per_epoch + int(bad[0]) + 1
            self._diverged(f"the training loss of step {step}", step)

    def _diverged(self, what: str, step: int) -> None:
        self.checkpoints.wait()
        last = self.checkpoints.last()
        kept = (
            f"The last good checkpoint is of step {last // 2}, in {self.workdir / 'checkpoints'}."
            if last
            else "There is no checkpoint from before it."
        )
        raise UserError(
            f"{what[0].upper()}{what[1:]} is not finite (epoch "
            f"{(step - 1) // self.programs.steps_per_epoch + 1}). {kept} A smaller "
            f"optim.learning_rate than {self.config.optim.learning_rate:g} may help, in another "
            "workdir."
        )

    # --- saving ---

    def _checkpoint_due(self) -> bool:
        return time.monotonic() - self.saved_at > 60 * self.config.train.checkpoint_minutes

    def _save(self, val_accuracy: float | None) -> None:
        progress = self.epoch.progress(self.epochs_done)
        self.checkpoints.save(self.step, self.state, progress, val_accuracy)
        self.saved_at = time.monotonic()

    def _stop(self) -> None:
        self.checkpoints.wait()
        raise Interrupted(
            self.stop_signal,
            f"Stopped by {signal.Signals(self.stop_signal).name} and saved at step {self.step} "
            f"in {self.workdir}. The same command resumes it.",
        )

    def _result(self) -> dict[str, Any]:
        records = self.log.records
        train = self.provenance["train"]
        result = {
            "best": metrics.best_record(records),
            "last": records[-1],
            "parameters": _parameter_count(self.state),
            "protocol": self.config.data.protocol,
            "data": self.provenance,
            "compile_seconds": self.programs.compile_seconds - self.compiled_before,
            "train_seconds": sum(record["seconds"] for record in records),
            "peak_memory_bytes": peak_memory(),
        }
        if self.test is not None:
            self.checkpoints.wait()
            best = self.checkpoints.best()
            assert best is not None
            state, _ = self.checkpoints.restore(self.programs.abstract_state, best)
            arrays = sharding.replicate((self.test.images, self.test.labels), self.mesh)
            result["test"] = self.programs.evaluate(state.variables, *arrays)
            result["data"]["test"] = self.test.provenance
        title = f"{self.config.model.name} on {train['name']}, seed {self.config.seed}"
        plot_history(records, title, self.workdir / "history.png")
        metrics.write_json(self.workdir / "result.json", result)
        return result


def load_data(config: Config) -> tuple[data.Dataset, data.Dataset, data.Dataset | None]:
    """Returns (training, validation, test or None) by the config's protocol.

    Raises:
      UserError: the data are missing or damaged, or fewer than the config asks for.
    """
    train = data.load(config.data.name, "train", data_dir=config.data.dir)
    test = data.load(config.data.name, "test", data_dir=config.data.dir)
    val = test
    if config.data.protocol == "holdout":
        train, val = data.split_holdout(train)
    limit = config.train.limit_train_images
    if limit > len(train):
        raise UserError(
            f"config.train.limit_train_images is {limit:,}; there are {len(train):,} training "
            "images. Set it to 0 for all of them."
        )
    if limit:
        train = train.take(slice(limit), f"the first {limit}")
    if config.train.batch_size > len(train):
        raise UserError(
            f"config.train.batch_size is {config.train.batch_size}, more than the {len(train):,} "
            "training images. Choose a smaller one."
        )
    return train, val, test if config.data.protocol == "holdout" else None


def _parameter_count(state: TrainState) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(state.params))


def peak_memory() -> int:
    """Bytes: of the fullest device where it tells, else of the process."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    device_peak = max(stat.get("peak_bytes_in_use", 0) for stat in stats)
    unit = 1 if platform.system() == "Darwin" else 1024
    return device_peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def summary(result: dict[str, Any], config: Config, workdir: str | pathlib.Path) -> str:
    """The lines that end a run."""
    best, last = result["best"], result["last"]
    lines = [
        f"best epoch {best['epoch']}: validation accuracy {best['val_accuracy']:.2%}, "
        f"loss {best['val_loss']:.4f}",
        f"last epoch {last['epoch']}: validation accuracy {last['val_accuracy']:.2%}, "
        f"loss {last['val_loss']:.4f}",
    ]
    if "test" in result:
        test = result["test"]
        lines.append(
            f"test set, once, at the best epoch: accuracy {test['accuracy']:.2%}, "
            f"loss {test['loss']:.4f} ({test['images']:,} images)"
        )
    elif config.data.protocol == "test":
        lines.append("(validated on the test set, as in the report: it chose the best epoch too)")
    lines.append(
        f"training {metrics.duration(result['train_seconds'])}, "
        f"compiling {metrics.duration(result['compile_seconds'])}, "
        f"peak memory {result['peak_memory_bytes'] / 2**30:.1f} GiB"
    )
    lines.append(f"everything is in {workdir}: result.json, metrics.jsonl, history.png, …")
    return "\n".join(lines)
