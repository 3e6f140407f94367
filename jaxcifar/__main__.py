"""python -m jaxcifar is the command jaxcifar."""

import signal
import sys

from jaxcifar.cli import main

code = main()
signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # a time limit no longer matters
sys.exit(code)
