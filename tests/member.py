"""One process of a run that test_processes.py starts: `python -m tests.member JSON`.

It trains `tests.tiny.tiny(**fields)`, and may be told to misbehave: {"place": [address, count,
index], "workdir", "fields", "wait", "kill": step, "term": step, "raise": step, "who": the process
that is killed, stopped or fails, "spoil": step, "images": whether they are others, "term_early":
before the first step}. Without a place it has the one that its launcher gave it.
"""

import json
import os
import signal
import sys
import time

from jaxcifar import data, launch, processes, train
from jaxcifar.hooks import Hook
from jaxcifar.signals import exit_code
from tests import tiny


class Misbehave(Hook):
    def __init__(self, told):
        self.told = told

    def at(self, what, step):
        me = processes.index()
        return self.told.get(what) == step and self.told.get("who", me) == me

    def before_step(self, run):
        if self.at("kill", run.step):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.at("term", run.step):
            os.kill(os.getpid(), signal.SIGTERM)
        if self.at("raise", run.step):
            raise ZeroDivisionError("on purpose")


def main(told):
    if told.get("images"):
        of_all = data.load

        def load_others(*arguments, **options):
            found = of_all(*arguments, **options)
            return found.take(slice(1, None), "all but the first")

        data.load = load_others
    if told.get("term_early"):
        data.load = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(60)
    hooks = [Misbehave(told), *([tiny.Spoil(told["spoil"])] if "spoil" in told else [])]

    def command():
        place = launch.Place(*told["place"]) if "place" in told else launch.place(os.environ)
        with processes.together(place, told.get("wait", 60)):
            config = tiny.tiny(**told.get("fields", {}))
            train.train_and_evaluate(config, told["workdir"], hooks=hooks)

    return exit_code(command, processes.leave)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
