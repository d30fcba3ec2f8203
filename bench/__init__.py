"""Benchmarks: ratios of medians in one run, never absolute promises. `python -m bench --help` tells how."""

import sys
from pathlib import Path

# For `import harness`, as pytest has it from its settings.
sys.path.append(str(Path(__file__).parent.parent / "tests"))
