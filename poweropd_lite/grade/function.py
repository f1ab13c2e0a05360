"""A user's function that scores completions, `module:function(completion, row) -> float`: found, and called.

Both happen in the judges' processes (judges.py) alone: what it imports, prints or breaks is no part of the program.
"""

import hashlib
import importlib
import inspect
import json
import math
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

LONGEST_FAULT = 300  # characters
_IMPORTED: dict[str, str] = {}  # SHA-256 of files, as they were imported
LARGEST = 1e100  # a score whose sums are numbers still


def find_function(name: str, anew: bool = False) -> tuple[dict[str, str], Callable[..., Any] | None]:
    """Returns the file of module:function and its SHA-256, and the function; or the `fault`, and None.

    The current folder comes first, then what is installed. `anew` reads a file of the user's own again where it is not as it
    was when it was imported, as in a notebook's life.
    """
    module_name, _, function_name = name.partition(":")
    there = module_name in sys.modules
    if sys.path[:1] != [os.getcwd()]:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
        file = getattr(module, "__file__", None)
        if file is None:
            raise TypeError(f"{module_name} is a folder or a part of Python, and no file of yours")
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        mine = Path(file).resolve().is_relative_to(Path.cwd()) and "site-packages" not in file
        if anew and there and mine and _IMPORTED.get(file) != digest:
            module = importlib.reload(module)
        _IMPORTED[file] = digest
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            return {"fault": f"there is no module {error.name} in {os.getcwd()}, nor one that is installed"}, None
        return {"fault": f"importing {module_name} fails: {_fault(error)}"}, None
    except BaseException as error:  # sys.exit() too
        return {"fault": f"importing {module_name} fails: {_fault(error)}"}, None
    function = getattr(module, function_name, None)
    if not callable(function):
        own = [key for key, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module_name]
        return {"fault": f"{file} has no function {function_name}; it has {', '.join(own) or 'none'}"}, None
    return {"file": file, "sha256": digest}, function


def load_function(name: str) -> tuple[dict[str, str], Callable[[dict], bytes] | None]:
    """Returns what find_function does of a function that scores, and what scores by it in place of itself."""
    about, function = find_function(name)
    if function is None:
        return about, None
    short = name.partition(":")[2]
    try:
        inspect.signature(function).bind("", {})
    except TypeError as error:
        return {"fault": f"{short} of {about['file']} can't be called as {short}(completion, row): {error}"}, None
    except ValueError:  # what is written in C has no signature
        pass
    return about, lambda asked: _called(function, asked)


def _called(function: Callable[[str, dict], Any], asked: dict) -> bytes:
    """Returns the score as JSON, or as a text why there is none."""
    try:
        value = function(asked["completion"], json.loads(asked["row"]))
        if not hasattr(type(value), "__float__"):
            raise TypeError(f"it returned {value!r:.100}, which is no number")
        if not math.isfinite(score := float(value)):
            raise ValueError(f"it returned {score}, which is no finite number")
        if abs(score) > LARGEST:
            raise ValueError(f"it returned {score}, and a score is of {LARGEST:g} at most")
        return json.dumps(score).encode()
    except BaseException as error:  # counted, and reported
        return json.dumps(_fault(error)).encode()


def _fault(error: BaseException) -> str:
    """Returns what went wrong, and in which line of whose file."""
    places = [
        at
        for at in traceback.extract_tb(error.__traceback__)
        if at.filename != __file__ and "<frozen" not in at.filename
    ]
    where = f" ({Path(places[-1].filename).name}, line {places[-1].lineno})" if places else ""
    try:
        text = " ".join(f"{type(error).__name__}: {error}".split())
    except Exception:  # its own __str__ fails
        text = type(error).__name__
    return text[:LONGEST_FAULT].encode("utf-8", "backslashreplace").decode() + where
