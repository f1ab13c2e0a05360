"""Bad inputs of the second kind: files of problems, for training and for evaluation."""

import json
from pathlib import Path

from refusing import EVALUATE, TRAIN, Case, files

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"
HTML = "<!DOCTYPE html>\n<html><body>404</body></html>\n"
# A file's name, its text, and words of the message.
TEXTS: dict[str, tuple[str, str | bytes, tuple[str, ...]]] = {
    "nothing": ("a.jsonl", "", ("no rows",)),
    "white space": ("a.jsonl", "\n \n\t\n", ("no rows",)),
    "nothing as JSON": ("a.json", "", ("is not JSON",)),
    "an empty list": ("a.json", "[]", ("no rows",)),
    "an object": ("a.json", '{"problem": "x"}', ("must hold a list",)),
    "null": ("a.json", "null", ("must hold a list",)),
    "a number": ("a.json", "5", ("must hold a list",)),
    "broken": ("a.json", "[{oops", ("is not JSON",)),
    "broken lines": ("a.jsonl", "{oops\n" * 3, ("not JSON",)),
    "cut": ("a.json", '[{"problem": "x"}, {"pro', ("is not JSON",)),
    "lines named JSON": ("a.json", '{"problem": "x"}\n{"problem": "y"}\n', (".jsonl",)),
    "texts": ("a.jsonl", '"x"\n"y"\n', ("not an object",)),
    "lists": ("a.jsonl", "[]\n[1]\n", ("not an object",)),
    "other columns": ("a.jsonl", '{"q": "x", "a": "y"}\n', ("it has q, a",)),
    "3,000 columns": ("a.jsonl", json.dumps({f"c{i}": i for i in range(3000)}), ("it has c0",)),
    "a column of 50,000 letters": ("a.jsonl", json.dumps({"c" * 50_000: 1}), ("no column",)),
    "no columns": ("a.jsonl", "{}\n", ("no column",)),
    "empty problems": ("a.jsonl", '{"problem": " "}\n', ("is empty",)),
    "numbers": ("a.jsonl", '{"problem": 5}\n', ("neither a text",)),
    "objects": ("a.jsonl", '{"problem": {"a": "b"}}\n', ("neither a text",)),
    "booleans": ("a.jsonl", '{"problem": true}\n', ("neither a text",)),
    "messages without content": ("a.jsonl", '{"problem": [{"role": "user"}]}\n', ("neither a text",)),
    "no messages": ("a.jsonl", '{"messages": []}\n', ("neither a text",)),
    "the assistant alone": ("a.jsonl", '{"problem": [{"role": "assistant", "content": "x"}]}', ("must end with",)),
    "a picture": ("a.jsonl", '{"problem": [{"role": "user", "content": [{"type": "image"}]}]}', ("neither a text",)),
    "tool calls": ("a.jsonl", '{"problem": [{"role": "user", "content": "x", "tool_calls": [1]}]}', ("tool calls",)),
    "an unknown role": ("a.jsonl", '{"problem": [{"role": "x", "content": "y"}]}', ("must end with",)),
    "long": ("a.jsonl", json.dumps({"problem": "word " * 3000}), ("max_prompt_tokens",)),
    "a million characters": ("a.jsonl", json.dumps({"problem": "x" * 1_000_000}), ("max_prompt_tokens",)),
    "half a character": ("a.jsonl", '{"problem": "\\ud800"}', ("lone surrogate",)),
    "digits": ("a.jsonl", '{"problem": ' + "9" * 5000 + "}", ("not JSON",)),
    "brackets": ("a.json", "[" * 100_000, ("is not JSON",)),
    "brackets in a line": ("a.jsonl", '{"problem": ' + "[" * 100_000, ("not JSON",)),
    "nested problems": ("a.jsonl", '{"problem": ' + "[" * 900 + "]" * 900 + "}", ("neither a text",)),
    "not UTF-8": ("a.jsonl", b'{"problem": "\xff\xfe"}', ("not UTF-8",)),
    "UTF-16": ("a.jsonl", '{"problem": "x"}'.encode("utf-16"), ("not UTF-8",)),
    "null bytes": ("a.jsonl", b"\0" * 1000, ("not JSON",)),
    "a pointer": ("a.jsonl", POINTER, ("git-lfs", "git lfs pull")),
    "a pointer as JSON": ("a.json", POINTER, ("git-lfs",)),
    "a pointer as Parquet": ("a.parquet", POINTER, ("git-lfs",)),
    "HTML": ("a.jsonl", HTML, ("HTML",)),
    "HTML as JSON": ("a.json", HTML, ("HTML",)),
    "HTML as Parquet": ("a.parquet", HTML, ("HTML",)),
    "HTML without a head": ("a.jsonl", "\n<html lang=en>x", ("HTML",)),
    "words as Parquet": ("a.parquet", "not parquet", ("not a Parquet file",)),
    "nothing as Parquet": ("a.parquet", "", ("not a Parquet file",)),
    "magic bytes alone": ("a.parquet", b"PAR1" + b"\0" * 50 + b"PAR1", ("not a Parquet file",)),
    "a table": ("a.csv", "question,answer\n1+1?,2\n", ("to_json(",)),
    "a large table": ("a.TSV", "question\tanswer\n", ("to_json(",)),
    "a pickle": ("a.pkl", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00.", ("a.pkl",)),
    "an archive": ("a.jsonl.gz", b"\x1f\x8b\x08\x00" + b"\0" * 20, ("a.jsonl.gz",)),
    "a zip": ("a.zip", b"PK\x03\x04" + b"\0" * 30, ("a.zip",)),
    "an arrow file": ("a.arrow", b"ARROW1\0\0", ("a.arrow",)),
    "a script": ("a.py", "raise SystemExit('it ran')", ("a.py",)),
    "100,000 bad lines": ("a.jsonl", "{oops\n" * 100_000, ("99,999 more",)),
    "100,000 reasons": ("a.jsonl", "".join(json.dumps({f"c{i}": 1}) + "\n" for i in range(20_000)), ("no column",)),
}


def parquet(folder: Path, **columns: list) -> None:
    """Writes a.parquet."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "a.parquet")


def cut_parquet(folder: Path) -> None:
    parquet(folder, problem=["x" * 100] * 100, answer=["1"] * 100)
    path = folder / "a.parquet"
    path.write_bytes(path.read_bytes()[:-30])


def twice_parquet(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_arrays([pyarrow.array(["x"])] * 2, names=["problem", "problem"])
    pyarrow.parquet.write_table(table, folder / "a.parquet")


def bad_utf8(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    text = pyarrow.array([b"\xff\xfe", b"\xff"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"problem": text}), folder / "a.parquet")


def cases() -> list[Case]:
    """Returns the files of problems that are refused."""
    found = []
    for name, (file, text, says) in TEXTS.items():
        make = files(**{file.replace(".", "__"): text})
        found.append(Case(f"data: {name}", TRAIN.replace("problems.jsonl", file), says, make))
    for name in ("nothing", "broken lines", "other columns", "a pointer", "HTML", "words as Parquet"):
        file, text, says = TEXTS[name]
        make = files(**{file.replace(".", "__"): text})
        command = f"{EVALUATE.replace('problems.jsonl', file)} --model bundled-student"
        found.append(Case(f"benchmark: {name}", command, says, make))
    train = TRAIN.replace("problems.jsonl", "a.parquet")
    found += [
        Case("Parquet: other columns", train, ("it has q",), lambda f: parquet(f, q=["x"])),
        Case("Parquet: no rows", train, ("no rows",), lambda f: parquet(f, problem=[])),
        Case("Parquet: numbers", train, ("neither a text",), lambda f: parquet(f, problem=[1, 2])),
        Case("Parquet: cut", train, ("not a Parquet file",), cut_parquet),
        Case("Parquet: a column twice", train, ("problem", "twice"), twice_parquet),
        Case("Parquet: no UTF-8", train, ("UTF-8",), bad_utf8),
        Case("data: an empty folder", TRAIN.replace("problems.jsonl", "a"), ("a",), lambda f: (f / "a").mkdir()),
        Case("data: a folder of other things", TRAIN.replace("problems.jsonl", "a"), ("a",), files(**{"a/b__txt": "x"})),
        Case("data: a folder of two kinds", TRAIN.replace("problems.jsonl", "a"), ("a",),
             files(**{"a/b__jsonl": '{"problem": "x"}', "a/c__json": "[]"})),
        Case("data: a name of 300 letters", TRAIN.replace("problems", "x" * 300), ("x",)),
        Case("data: a link to itself", TRAIN.replace("problems", "a"), ("a.jsonl",),
             lambda f: (f / "a.jsonl").symlink_to(f / "a.jsonl")),
        Case("data: the null device", TRAIN.replace("problems.jsonl", "/dev/null"), ("/dev/null",)),
        Case("data: a folder named .jsonl", TRAIN.replace("problems", "a"), ("a.jsonl",), lambda f: (f / "a.jsonl").mkdir()),
        Case("data: a hub id without a network", TRAIN.replace("problems.jsonl", "no/such-data"), ("no/such-data", "--data")),
        Case("data: a subset of a file", f"{TRAIN} --prompt-column ''", ()),
        Case("benchmark: a hub id", f"{EVALUATE.replace('problems.jsonl', 'no/such')} --model bundled-student", ("no/such",)),
        Case("benchmark: math500 without a network", f"{EVALUATE.replace('problems.jsonl', 'math500')} --model bundled-student",
             ("MATH-500", "--benchmark")),
    ]  # fmt: skip
    return found
