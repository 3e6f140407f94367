"""python -m jaxcifar is the command jaxcifar."""

import sys

from jaxcifar.cli import main

sys.exit(main())
