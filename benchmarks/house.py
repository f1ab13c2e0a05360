"""How large the house is: `python benchmarks/house.py`. Lines are those of `wc -l`; imports are read from the code."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "poweropd_lite"
SCORING = ("poweropd_lite.grade", "poweropd_lite.evaluate")  # grading and scoring, told apart


def lines(*files: Path) -> int:
    """Returns the lines of some files."""
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def file_of(module: str) -> Path | None:
    """Returns the file of a module of ours; a package is its __init__."""
    path = ROOT / module.replace(".", "/")
    return next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()), None)


def own_imports(file: Path) -> list[tuple[str, bool]]:
    """Returns the modules of ours that a file imports, and whether inside a function; those for type checkers are left out."""
    tree, found = ast.parse(file.read_text(encoding="utf-8")), []
    for_types = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    skipped = {id(n) for block in for_types for n in ast.walk(block)}
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    inside = {id(n) for function in functions for n in ast.walk(function)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or id(node) in skipped:
            continue
        if node.module == "poweropd_lite" or (node.module or "").startswith("poweropd_lite."):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(name if file_of(name) else node.module, id(node) in inside) for name in names]
    return list(dict.fromkeys(found))


def needs(start: str) -> set[str]:
    """Returns all modules that `start` needs, what is imported inside functions included."""
    seen, todo = set(), [start]
    while todo:
        module = todo.pop()
        if module not in seen and (file := file_of(module)):
            seen.add(module)
            todo += [name for name, _ in own_imports(file)]
    return seen


def main() -> None:
    """Prints the table."""
    files = sorted(PACKAGE.rglob("*.py"))
    print(f"package       {lines(*files):6,} lines in {len(files)} files; longest {max(map(lines, files))}")
    print(f"root          {len(list(PACKAGE.glob('*.py'))):6} files")
    method = list((PACKAGE / "method").glob("*.py"))
    print(f"method        {lines(*method):6} lines in {len(method)} files (at most 800)")
    print(f"the loop      {lines(PACKAGE / 'train' / 'loop.py'):6} lines (at most 120)")
    print(f"the example   {lines(ROOT / 'examples' / 'loop.py'):6} lines (at most 100)")
    wanted = {m for m in needs("poweropd_lite.train.__main__") | needs("poweropd_lite.train.start")}
    core = {m for m in wanted if not m.startswith(SCORING) and file_of(m).name != "__init__.py"}
    print(f"train needs   {len(core):6} modules, {lines(*map(file_of, core)):,} lines, grading and scoring apart")
    inner = sum(inside for file in files for _, inside in own_imports(file))
    print(f"own imports inside functions {inner} (under 40)")
    for room in sorted(p for p in PACKAGE.iterdir() if p.is_dir() and list(p.glob("*.py"))):
        print(f"  {room.name:11} {lines(*room.glob('*.py')):6,}")


if __name__ == "__main__":
    main()
