"""Measures training speed, beside PyTorch's in the same run, and against what the machine can do.

    python -m experiments.benchmark --against=torch
    python -m experiments.benchmark --models=resnet18 --batch=256 --augment=strong --out=a.json
    python -m experiments.benchmark --models=densenet121 --remat
    python -m experiments.benchmark --models=resnet18 --batch=256 --digest

Each model's training step is compiled and warmed up, then timed in turns with PyTorch's (A B A B…),
so that a slow minute of the machine falls on both; the table has medians and ranges. The step is
the one that training runs. PyTorch's is the plain definition of `experiments/torch_models.py` with
its usual fast settings: both memory formats, in-place activations, and on a GPU fused Adam, cuDNN's
search for the fastest algorithm, TF32 products, autocast where the dtype is bfloat16, and
`torch.compile` as well, without and with CUDA graphs. Neither loads data: images are on the device.
PyTorch does not augment; --augment=none (the default) compares like with like. The memory is what
the compiled step needs besides its arguments and results; with --remat, DenseNets are timed with
`model.remat` on and off, else with its default. With --digest, the digest of the model's state,
which each checkpoint has, is timed as well.
"""

import argparse
import contextlib
import functools
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cost import forward_multiply_adds
from experiments.runs.table import Table
from jaxcifar import augment, checks, data, programs, sharding, task
from jaxcifar.config import base_config
from jaxcifar.errors import UserError, choose
from jaxcifar.files import write_json
from jaxcifar.kernels import compilation, platform_of
from jaxcifar.models import MODELS, can_remat
from jaxcifar.options import Parser, user_path
from jaxcifar.run.digest import digests
from jaxcifar.run.machine import environment, peak_memory
from jaxcifar.signals import exit_code

Timer = Callable[[], float]  # runs some steps, or digests; returns images, or digests, per second


# --- what is timed ----------------------------------------------------------------------------


def jax_timer(
    model: str, batch: int, dtype: str, augmentation: str, steps: int, remat: str = "auto"
) -> tuple[Timer, Timer, dict[str, Any]]:
    """Returns timers of the training step and of its state's digest, and facts.

    The facts are the seconds to start, the bytes of a step, and the dtype.
    """
    config = base_config()
    config.model.name, config.model.dtype, config.model.dropout_rate = model, dtype, 0.0
    config.model.remat = remat
    config.data.name, config.data.augment = "synthetic", augmentation
    config.train.batch_size = config.train.eval_batch_size = batch
    mesh = sharding.make_mesh()
    # As many as CIFAR has where a call makes as many steps as divide an epoch.
    size = max(batch * 4, 1024 if platform_of(mesh) == "cpu" else 50_000)
    images = data.load("synthetic", "train", size=size)
    checks.check_config(config, mesh)
    made = task.build(config, images, mesh)
    began = time.monotonic()
    hyperparams = sharding.replicate(task.hyperparams(config), mesh)
    arrays = programs.on_devices(images, mesh)
    state = programs.init(made)(sharding.replicate(np.uint32(0), mesh), hyperparams, arrays[0])
    jax.block_until_ready(state.params)
    init_seconds = time.monotonic() - began
    order = programs.order(made)(state.key, 1)
    rest = hyperparams, *arrays, order
    began = time.monotonic()
    step: Any = programs.train(made, made.steps_per_call)
    compile_seconds = time.monotonic() - began
    calls = max(1, steps // made.steps_per_call)

    def make(calls: int) -> None:
        nonlocal state
        for _ in range(calls):
            state, _ = step(state, *rest)
        jax.block_until_ready(state.params)

    def digest(calls: int) -> None:
        for _ in range(calls):
            digests({"params": state.params, "stats": state.batch_stats, "opt": state.opt_state})

    facts = {
        "init_seconds": init_seconds,
        "compile_seconds": compile_seconds,
        "step_memory_bytes": step.memory_analysis().temp_size_in_bytes,
        "dtype": made.in_force["dtype"],
        "calls": calls,
        "steps_per_call": made.steps_per_call,
    }
    images_per_call = made.steps_per_call * batch
    return lambda: images_per_call * rate(make, calls), lambda: rate(digest, steps), facts


class TorchSettings(NamedTuple):
    """How PyTorch trains: its memory format, and its mode of `torch.compile`; "": not compiled."""

    channels_last: bool = False
    compiled: str = ""


_TORCH = {"torch": TorchSettings(), "torch channels_last": TorchSettings(True)}
_TORCH_ON_GPU = {
    "torch.compile": TorchSettings(True, "default"),
    "torch.compile, CUDA graphs": TorchSettings(True, "reduce-overhead"),
}


def torch_timer(
    model: str, batch: int, dtype: str, settings: TorchSettings, calls: int, steps_per_call: int
) -> Timer:
    """Returns a timer of PyTorch's training step: forward, backward, Adam; as many as of ours."""
    import torch  # pyright: ignore[reportMissingImports]

    from experiments import torch_models

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = True
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    net: Any = torch_models.create(model).to(device).to(memory_format=layout).train()
    for module in net.modules():
        if hasattr(module, "inplace"):
            module.inplace = True
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=device == "cuda")
    images = torch.randn(batch, 3, 32, 32, device=device).to(memory_format=layout)
    labels = torch.randint(10, (batch,), device=device)

    def cast() -> Any:
        half = dtype == "bfloat16"
        return torch.autocast(device, torch.bfloat16) if half else contextlib.nullcontext()

    forward = torch.compile(net, mode=settings.compiled) if settings.compiled else net

    def make(calls: int) -> None:
        loss = torch.zeros(())
        for _ in range(calls * steps_per_call):
            optimizer.zero_grad(set_to_none=True)
            with cast():
                loss = torch.nn.functional.cross_entropy(forward(images), labels)
            loss.backward()
            optimizer.step()
        loss.item()  # waits

    return lambda: steps_per_call * batch * rate(make, calls)


def rate(make: Callable[[int], None], times: int) -> float:
    """Returns how often per second make(times) does its work."""
    make(1)  # finds cold caches, and memory given back to the system: not timed
    began = time.monotonic()
    make(times)
    return times / (time.monotonic() - began)


def ceilings() -> dict[str, float]:
    """Measures what the device can do: products in GFLOP/s, and a copy in GB/s.

    A float32 product at the default precision is computed in TF32 on GPUs, and in bfloat16 on TPUs.
    """
    n = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((n, n), jnp.float32)
    half = matrix.astype(jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    precise = jax.jit(functools.partial(jnp.matmul, precision="highest"))
    flops = {
        "float32": _fastest(precise, matrix, matrix),
        "float32_default_precision": _fastest(product, matrix, matrix),
        "bfloat16": _fastest(product, half, half),
    }
    array = jnp.ones(2**26, jnp.float32)
    seconds = _fastest(jax.jit(lambda x: x + 1), array)
    found = {f"{name}_product_gflops": 2e-9 * n**3 / t for name, t in flops.items()}
    return found | {"copy_gb_per_second": 2 * 4e-9 * array.size / seconds}


def _fastest(function: Callable[..., Any], *args: jax.Array) -> float:
    jax.block_until_ready(function(*args))
    seconds = []
    for _ in range(7):
        began = time.monotonic()
        jax.block_until_ready(function(*args))
        seconds.append(time.monotonic() - began)
    return min(seconds)


# --- measuring --------------------------------------------------------------------------------


def in_turns(timers: dict[str, Timer], repeats: int) -> dict[str, list[float]]:
    """Runs each timer once to warm up, then all of them in turns."""
    for timer in timers.values():
        timer()
    found: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(repeats):
        for name, timer in timers.items():
            time.sleep(0.3)  # the threads of the one before stop spinning
            found[name].append(timer())
    return found


def measure(model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the measurements of one model, JSON-ready."""
    batch, steps = arguments.batch, arguments.steps
    timers: dict[str, Timer] = {}
    facts: dict[str, dict[str, Any]] = {}
    both = arguments.remat and can_remat(model)
    for remat in ("on", "off") if both else ("auto",):
        name = f"jaxcifar, remat {remat}" if both else "jaxcifar"
        timers[name], digest, facts[name] = jax_timer(
            model, batch, arguments.dtype, arguments.augment, steps, remat
        )
        if arguments.digest:
            timers[f"{name}, digest"] = digest
    if arguments.against == "torch":
        first = next(iter(facts.values()))
        work = first["calls"], first["steps_per_call"]
        on_gpu = platform_of(sharding.make_mesh()) == "gpu"
        for name, settings in (_TORCH | _TORCH_ON_GPU if on_gpu else _TORCH).items():
            timers[name] = torch_timer(model, batch, first["dtype"], settings, *work)
    rates = in_turns(timers, arguments.repeats)
    for name in facts if arguments.digest else ():
        facts[name]["digest_seconds"] = 1 / statistics.median(rates.pop(f"{name}, digest"))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    best = max((rate for name, rate in medians.items() if name not in facts), default=None)
    operations = 6e-9 * forward_multiply_adds(model)  # forward and twice that back, in 10⁹
    timed = {
        name: facts.get(name, {})
        | {"images_per_second": rates[name], "median": rate, "gflops": operations * rate}
        | {"ratio": rate / best if best and name in facts else None}
        for name, rate in medians.items()
    }
    return {"model": model, "timed": timed, "peak_memory_bytes": peak_memory(sharding.make_mesh())}


def table(content: dict[str, Any]) -> Table:
    """Returns the measurements as a table, with the device's own in its title."""
    header = ["model", "what", "images/s, median", "lowest … highest", "of PyTorch's best"]
    header += ["GFLOP/s", "init", "compile", "memory of a step"]
    lines = []
    for result in content["results"]:
        for name, found in result["timed"].items():
            rates = found["images_per_second"]
            cells = [
                result["model"],
                name,
                f"{found['median']:,.1f}",
                f"{min(rates):,.1f} … {max(rates):,.1f}",
                f"{found['ratio']:.2f}×" if found["ratio"] else "",
                f"{found['gflops']:,.0f}",
            ]
            if "init_seconds" in found:  # ours
                cells += [f"{found[fact]:.1f} s" for fact in ("init_seconds", "compile_seconds")]
                cells.append(f"{found['step_memory_bytes'] / 2**20:,.0f} MiB")
            else:
                cells += ["", "", ""]
            lines.append(cells)
    limits = ", ".join(
        f"{name.replace('_', ' ')} {v:,.0f}" for name, v in content["ceilings"].items()
    )
    return Table(f"Training speed; the device's own: {limits}", header, lines)


def digest_costs(content: dict[str, Any]) -> list[str]:
    """Says what the digests took that were measured, one in each epoch of CIFAR's 50,000 images."""
    return [
        f"{result['model']}, {name}: a digest takes {1000 * found['digest_seconds']:,.0f} ms, "
        f"{found['digest_seconds'] * found['median'] / 50_000:.3%} of an epoch of 50,000 images."
        for result in content["results"]
        for name, found in result["timed"].items()
        if "digest_seconds" in found
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("python -m experiments.benchmark", __doc__)
    parser.add_argument("--models", default="resnet18,densenet121,vgg_a_bn")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dtype", default="auto", choices=task.DTYPES)
    parser.add_argument("--augment", default="none", choices=augment.AUGMENTATIONS)
    parser.add_argument("--steps", type=int, default=4, help="in each repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--against", choices=("torch",))
    parser.add_argument("--remat", action="store_true", help="DenseNets with it on and off")
    parser.add_argument("--digest", action="store_true", help="a checkpoint's, too")
    parser.add_argument("--out", type=user_path, help="a JSON file")
    arguments = parser.parse_args(argv)
    models = [choose("A model in --models", name, MODELS) for name in arguments.models.split(",")]
    for name in ("batch", "steps", "repeats"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} is {getattr(arguments, name)}; it must be at least 1.")
    if arguments.out and not arguments.out.parent.is_dir():
        raise UserError(f"There is no folder {arguments.out.parent} to write {arguments.out} in.")
    other: dict[str, Any] = {}
    if arguments.against == "torch":
        try:
            torch: Any = importlib.import_module("torch")
        except ImportError as error:  # before anything is compiled
            raise UserError(
                f"--against=torch needs PyTorch (pip install 'jaxcifar[torch]'): {error}."
            ) from error
        here = platform_of(sharding.make_mesh())
        there = "gpu" if torch.cuda.is_available() else "cpu"
        if here != there:
            raise UserError(
                f"JAX computes on a {here} here, and PyTorch ({torch.__version__}) on a {there}. "
                "Install both for the GPU, or give both the CPU: JAX_PLATFORMS=cpu "
                "CUDA_VISIBLE_DEVICES="
            )
        other = {"torch": torch.__version__, "torch_cuda": torch.version.cuda}
        if (devices := sharding.make_mesh().size) > 1:
            raise UserError(
                f"PyTorch is timed on one device, and JAX has {devices} here. Give it one: set "
                "CUDA_VISIBLE_DEVICES=0."
            )
    compilation.use_cache()
    settings = {name: getattr(arguments, name) for name in ("batch", "augment", "steps", "repeats")}
    results: list[dict[str, Any]] = []
    content = {
        "settings": settings,
        "environment": environment(other) | {"tunables": os.environ.get("GLIBC_TUNABLES")},
        "ceilings": ceilings(),
        "results": results,
    }
    for model in models:
        results.append(measure(model, arguments))
        print(f"{model} done", file=sys.stderr, flush=True)
        if arguments.out:
            write_json(arguments.out, content)
    print(table(content))
    print("", *digest_costs(content), json.dumps(content["environment"]), sep="\n")


if __name__ == "__main__":
    sys.exit(exit_code(main))
