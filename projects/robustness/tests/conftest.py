"""Fixtures that the tests of this project share."""

import sys
from pathlib import Path

# So that the tests import its scripts from a source tree.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
