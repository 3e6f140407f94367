"""Measures how smooth the loss is: along the gradient while training, and around a trained network.

    jaxcifar landscape smoothness --rows=vgg2,vgg6 --out=results/landscape
    jaxcifar landscape smoothness --configs=mine.py --out=results/landscape
    jaxcifar landscape slice results/table4/vgg6/seed0 --out=results/landscape

`smoothness` trains each row or config and, at regular intervals, measures along the gradient of the
step's batch (Santurkar et al. 2018, "How Does Batch Normalization Help Optimization?"): the range
of the loss and of the gradient's change over a range of step sizes, and the largest ratio of the
gradient's change to the distance. `slice` evaluates the loss around a run's checkpoint along random
filter-normalised directions (Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets"). Both
resume where they were stopped, and save their numbers (JSON lines, NPZ) beside plots (PNG, PDF).
"""

import argparse
import math
import pathlib
import sys

from experiments.landscape import gradient, slices
from experiments.runs.configs import named
from jaxcifar.errors import UserError
from jaxcifar.kernels import compilation
from jaxcifar.options import Parser, config_file, user_path, with_options
from jaxcifar.signals import exit_code


def _smoothness_command(arguments: argparse.Namespace, options: list[str]) -> None:
    rows = "vgg2,vgg6" if arguments.rows is arguments.configs is None else arguments.rows
    sources = named(rows, arguments.configs)
    sizes = _step_sizes(arguments.step_sizes)
    for name, value in (("--steps", arguments.steps), ("--every", arguments.every)):
        if value < 0:
            raise UserError(f"{name} is {value}; it must be positive, or 0 to choose.")
    if any(option.startswith("--config.seed") for option in options):
        raise UserError("--config.seed is not an option of smoothness. Give --seed instead.")
    configs = [with_options(source.config, options) for source in sources]
    folder = arguments.out / "smoothness"
    how = {"steps": arguments.steps, "every": arguments.every, "step_sizes": sizes}
    plans = []  # of all configs, before hours with the first
    for source, config in zip(sources, configs, strict=True):
        config.seed = arguments.seed
        plans.append(gradient.plan(config, folder / f"{source.name}_seed{config.seed}", **how))
    for source, plan in zip(sources, plans, strict=True):
        model, optim = plan.config.model, plan.config.optim
        print(f"{source.name}: {model.name} at learning rate {optim.learning_rate:g}")
        original = source.file or config_file(source.name), source.config
        gradient.smoothness(plan, original)
    print("\n".join(f"wrote {path}" for path in gradient.draw(folder)))


def _step_sizes(text: str) -> tuple[float, ...]:
    try:
        sizes = tuple(sorted(float(part) for part in text.split(",")))
    except ValueError:
        sizes = ()
    if not sizes or not all(0 < size < math.inf for size in sizes):
        raise UserError(f"--step-sizes is {text!r}; give positive numbers, such as 0.05,0.1,0.4.")
    return sizes


_MOST_POINTS = 1_000_000


def _slice_command(arguments: argparse.Namespace, options: list[str]) -> None:
    if options:
        raise UserError(f"{options[0]!r} is not an option of slice. --help lists them all.")
    if arguments.points < 3 or arguments.points % 2 == 0:
        raise UserError(
            f"--points is {arguments.points}; give an odd number, at least 3, so that the "
            "network itself is one of them."
        )
    for name, least in (("extent", 0.0), ("images", 1)):
        if not least <= getattr(arguments, name) < math.inf or not getattr(arguments, name):
            raise UserError(f"--{name} is {getattr(arguments, name)}; it must be positive.")
    if arguments.points**arguments.dimensions > _MOST_POINTS:
        raise UserError(
            f"--points is {arguments.points:,} along each of {arguments.dimensions} directions; a "
            f"grid has at most {_MOST_POINTS:,} points."
        )
    if not 0 <= arguments.seed < 2**32:
        raise UserError(f"--seed is {arguments.seed}; it must be 0 to {2**32 - 1}.")
    name = slices.run_name(arguments.run)
    path = arguments.out / "slices" / f"{name}_{arguments.dimensions}d_kept.npz"
    what = slices.Slice(*(getattr(arguments, name) for name in slices.Slice._fields))
    found = slices.slice_around(arguments.run, path, what, str(arguments.data_dir or ""))
    paths = slices.draw(found, path, slices.title_of(found, arguments.run))
    print("\n".join(f"wrote {p}" for p in (path, *paths)))


def main(argv: list[str] | None = None) -> None:
    parser = Parser("jaxcifar landscape", __doc__)
    out = pathlib.Path("results/landscape")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser(
        "smoothness",
        help="along the gradient, while training",
        epilog="Fields of the config (--optim.l2=1e-4): docs/config.md or jaxcifar train --help",
    )
    command.set_defaults(run_command=_smoothness_command)
    command.add_argument("--rows", help="the rows to train (default vgg2,vgg6)")
    command.add_argument("--configs", help="config files to train: mine.py,others/*.py")
    command.add_argument("--steps", type=int, default=0, help="training steps (0: the row's)")
    every = "steps between measurements (0: a fiftieth of the training)"
    command.add_argument("--every", type=int, default=0, help=every)
    step_sizes = ",".join(map(str, gradient.STEP_SIZES))
    command.add_argument("--step-sizes", default=step_sizes, help="default %(default)s")
    command.add_argument("--seed", type=int, default=0, help="the run's seed (default %(default)s)")
    command.add_argument("--out", type=user_path, default=out, help="default %(default)s")
    command = commands.add_parser("slice", help="around a trained network")
    command.set_defaults(run_command=_slice_command)
    command.add_argument("run", type=user_path, help="the run's folder")
    dimensions = "1: along a line, 2: over a plane (default %(default)s)"
    command.add_argument("--dimensions", type=int, default=2, choices=(1, 2), help=dimensions)
    command.add_argument("--points", type=int, default=21, help="along each direction, odd")
    command.add_argument("--extent", type=float, default=1.0, help="in units of filter norms")
    command.add_argument("--images", type=int, default=1024, help="of the training set")
    command.add_argument("--checkpoint", default="best", choices=("best", "last"))
    command.add_argument("--seed", type=int, default=0, help="of the directions")
    folder = "the folder of CIFAR, if it has moved"
    command.add_argument("--data-dir", "--config.data.dir", type=user_path, help=folder)
    command.add_argument("--out", type=user_path, default=out, help="default %(default)s")
    arguments, options = parser.parse_known_args(argv)
    compilation.use_cache()
    arguments.run_command(arguments, options)


if __name__ == "__main__":
    sys.exit(exit_code(main))
