"""The command `shiftfs`, as `python -m shiftfs` too.

Owns nothing but the time until cli is imported, when an interrupt is to be as quiet as later.
"""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """As cli.main."""
    try:
        from .cli import main as run

        return run(argv)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
