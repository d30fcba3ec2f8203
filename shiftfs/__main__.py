"""`python -m shiftfs` is `shiftfs`."""

import sys

from .cli import main

sys.exit(main(sys.argv[1:]))
