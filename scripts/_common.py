"""Imported first by every script: the repository on the path, and its .venv when another Python was called."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv" / "bin" / "python"
if PYTHON.exists() and sys.prefix == sys.base_prefix:  # not in a virtual environment yet
    os.execv(PYTHON, [str(PYTHON), *sys.argv])
sys.path.insert(0, str(ROOT))
