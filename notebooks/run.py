"""Runs notebooks from top to bottom, as CI does, and with --write keeps their outputs: `python notebooks/run.py --write`.

Each runs in a fresh folder of its own. What changes from run to run for no reason (times of execution, versions in the
metadata) is left out of the file, so that a difference means something.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NAMES = ("01_quickstart", "02_reward_by_hand", "03_train_qwen3", "04_evaluate_and_export", "05_reward_lab")
SECONDS = 3600  # the longest that a cell may take


def execute(path: Path, folder: Path, parameters: dict[str, Any] | None = None, then: Sequence[str] = ()) -> Any:
    """Runs a notebook in `folder` and returns it with its outputs; raises nbclient's CellExecutionError where a cell fails.

    `parameters` are set right behind the cell tagged "parameters", and the cells `then` run at the end; neither stays in what
    is returned but for the outputs of `then`, which are the last cells.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbformat.v4 import new_code_cell

    notebook = nbformat.read(path, as_version=4)
    tagged = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(f"{path.name} has {len(tagged)} cells tagged parameters; it should have one")
    unknown = [name for name in parameters or {} if f"\n{name} = " not in "\n" + notebook.cells[tagged[0]].source]
    if unknown:
        raise ValueError(f"{path.name} has no parameter {', '.join(unknown)}")
    if parameters:
        text = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
        notebook.cells.insert(tagged[0] + 1, new_code_cell(text))
    notebook.cells += [new_code_cell(source) for source in then]
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), *([inherited] if inherited else [])])
    try:
        client = NotebookClient(
            notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
        )
        client.execute()
    finally:
        if inherited is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = inherited
    if parameters:
        del notebook.cells[tagged[0] + 1]
    return notebook


def settled(notebook: Any) -> Any:
    """Returns the notebook without what differs between two runs for no reason."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    count = 0
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            cell.outputs = _joined(cell.outputs)
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = count
    return notebook


def _joined(outputs: list[Any]) -> list[Any]:
    """What is printed comes in pieces, as it was flushed: pieces that follow one another are one. A shell's lines end as others."""
    joined: list[Any] = []
    for output in outputs:
        if output.output_type == "stream":
            output.text = output.text.replace("\r\n", "\n")
        before = joined[-1] if joined else None
        if before is not None and output.output_type == before.output_type == "stream" and output.name == before.name:
            before.text += output.text
        else:
            joined.append(output)
    return joined


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 every notebook ran to its end, 1 a cell failed."""
    import nbformat
    from nbclient.exceptions import CellExecutionError

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which ones; all if none is given: {', '.join(NAMES)}"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=JSON", help="a parameter, such as --set STEPS=4"
    )
    parser.add_argument("--write", action="store_true", help="keep the outputs in the notebook's file")
    args = parser.parse_args(argv)
    names = [name.removesuffix(".ipynb").rsplit("/", 1)[-1] for name in args.names] or list(NAMES)
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"no notebook {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if args.write and args.set:
        parser.error("--write keeps the outputs of the parameters that stand in the file; leave out --set")
    parameters = {}
    for text in args.set:
        name, _, value = text.partition("=")
        try:
            parameters[name] = json.loads(value)
        except ValueError:
            parser.error(f"--set {text}: {value!r} is not JSON; a text needs quotes, as in --set 'CONFIG=\"bundled\"'")
    for name in names:
        path = HERE / f"{name}.ipynb"
        print(f"{name} ...", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            try:
                notebook = execute(path, Path(folder), parameters)
            except CellExecutionError as error:
                print(f"{name} failed:\n{error}", file=sys.stderr)
                return 1
        if args.write:
            nbformat.write(settled(notebook), path)
        print(f"{name} ran to its end", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
