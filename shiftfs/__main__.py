"""The command `shiftfs`, as `python -m shiftfs` too.

Owns nothing but the time until cli is imported, when an interrupt is to be as quiet as later, and no garbage is looked
for.
"""

import gc
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """As cli.main."""
    gc.disable()  # until a mount is served (interpreter.py): a tenth of the time that imports take
    try:
        from .cli import main as run

        return run(argv)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
