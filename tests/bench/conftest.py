"""The suite is no installed package: it is found in the checkout, after all that is installed."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent.parent))
