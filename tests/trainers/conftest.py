"""These tests run verl and TRL themselves, which tests/engines/install.sh puts into a folder of their own.

verl wants other versions than vLLM and Unsloth do, and Unsloth an older TRL: the folder stands first on this process's path
alone, and so these are a pytest run of their own.
"""

import importlib.metadata
import os
import sys
from pathlib import Path

FOLDER = str(Path(sys.prefix) / "trainers")
sys.path.insert(0, FOLDER)
os.environ["PYTHONPATH"] = os.pathsep.join([FOLDER, *filter(None, [os.environ.get("PYTHONPATH")])])
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
for _name in ("verl", "trl"):
    importlib.metadata.version(_name)  # missing is a failure, no skip
