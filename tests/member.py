"""One process of a run that test_processes.py starts: `python -m tests.member JSON`.

It trains `tests.tiny.tiny(**fields)`, and may be told to misbehave: {"place": [address, count,
index], "workdir", "fields", "wait", "kill": step, "term": step, "raise": step, "where": the method
of the hook that does so, "who": the process that is killed, stopped or fails, "spoil": step,
"slow": whether it waits before each step, "closes": how many seconds the first takes to close,
"images": whether they are others, "code": the digest of the package's, "jax": settings of JAX,
"term_loading", "term_compiling": whether a signal comes then}.
Without a place it has the one that its launcher gave it.
"""

import hashlib
import json
import os
import signal
import sys
import threading
import time

import jax

from jaxcifar import data, launch, processes, programs, train
from jaxcifar.hooks import Hook
from jaxcifar.run import machine
from jaxcifar.signals import exit_code
from tests import tiny


class Misbehave(Hook):
    def __init__(self, told):
        self.told = told

    def before_call(self, run):
        self.do("before_call", run.step)

    def before_evaluation(self, run):
        self.do("before_evaluation", run.step)

    def do(self, where, step):
        me = processes.index()
        if (where, me) != (self.told.get("where", "before_call"), self.told.get("who", me)):
            return
        if self.told.get("kill") == step:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.told.get("term") == step:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.told.get("raise") == step:
            raise ZeroDivisionError("on purpose")


class CloseSlowly(Hook):
    """Takes long at the end, as a trace does that is written; in the first process."""

    def __init__(self, seconds):
        self.seconds = seconds

    def close(self, run):
        if processes.is_first():
            time.sleep(self.seconds)
            print("closed", flush=True)


def compile_until_stopped(*_):
    """Gets a signal while Python's handlers have to wait, as they do for XLA."""
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)


def main(told):
    for name, value in told.get("jax", {}).items():
        jax.config.update(name, value)
    if told.get("code"):
        machine.code = lambda: told["code"]
    if told.get("images"):
        of_all = data.load

        def load_others(*arguments, **options):
            found = of_all(*arguments, **options)
            return found.take(slice(1, None), "all but the first")

        data.load = load_others
    if told.get("term_loading"):
        data.load = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(60)
    if told.get("term_compiling"):
        programs.train = compile_until_stopped
    hooks = [Misbehave(told), *([tiny.Spoil(told["spoil"])] if "spoil" in told else [])]
    hooks += [tiny.Slow()] if told.get("slow") else []
    hooks += [CloseSlowly(told["closes"])] if "closes" in told else []

    def command():
        place = launch.Place(*told["place"]) if "place" in told else launch.place(os.environ)
        with processes.together(place, told.get("wait", 60)):
            config = tiny.tiny(**told.get("fields", {}))
            train.train_and_evaluate(config, told["workdir"], hooks=hooks)

    return exit_code(command, processes.leave)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
