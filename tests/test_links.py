"""The texts: links that lead somewhere, files and commands that exist, lines that a narrow window shows whole."""

import importlib.util
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("benchmarks/**/README.md")),
]
LONGEST = 120

LINK = re.compile(r'\]\(([^()\s]+)\)|(?:src|href)="([^"]+)"')
FOLDERS = "benchmarks|configs|docs|examples|notebooks|poweropd_lite|tests"
FILE = re.compile(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]*\w")
COMMAND = re.compile(r"python -m (poweropd_lite[.\w]*\w)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text_of(page: Path) -> str:
    """A page's Markdown; of a notebook its cells of text, and line numbers count those."""
    if page.suffix != ".ipynb":
        return page.read_text(encoding="utf-8")
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines that do not belong to a block of code."""
    code = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            code = not code
        elif not code:
            yield number, line


def anchors(text: str) -> set[str]:
    """Headings as GitHub anchors: small letters, no punctuation, hyphens for spaces, a number where one returns."""
    seen: Counter[str] = Counter()
    found = set()
    for _, line in prose(text):
        if heading := re.match(r"#{1,6} +(.+?) *#* *$", line):
            shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
            found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
    return found


def dead_links(page: Path) -> list[str]:
    dead = []
    for number, line in prose(text_of(page)):
        for link in (a or b for a, b in LINK.findall(line)):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists():
                dead.append(f"{name(page)}, line {number}: {link} names no file")
            elif anchor and anchor not in anchors(text_of(target)):
                dead.append(f"{name(page)}, line {number}: {link}: no heading makes #{anchor}")
    return dead


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=name)
def test_links_pictures_and_anchors_lead_somewhere(page):
    assert not (dead := dead_links(page)), "\n".join(dead)


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=name)
def test_files_and_commands_that_are_named_exist(page):
    wrong = []
    for number, line in enumerate(text_of(page).splitlines(), 1):
        wrong += [
            f"{name(page)}, line {number}: no {file}" for file in FILE.findall(line) if not (ROOT / file).exists()
        ]
        for module in COMMAND.findall(line):
            spec = importlib.util.find_spec(module)
            if spec is None or spec.submodule_search_locations and not importlib.util.find_spec(f"{module}.__main__"):
                wrong.append(f"{name(page)}, line {number}: no command python -m {module}")
    assert not wrong, "\n".join(wrong)


def test_every_room_of_the_package_is_on_the_readmes_map():
    rooms = {folder.parent.name for folder in (ROOT / "poweropd_lite").glob("*/__init__.py")}
    named = set(re.findall(r"\]\(poweropd_lite/(\w+)/?\)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert named == rooms


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name)
def test_lines_of_prose_have_120_letters_at_most(page):
    """Tables, blocks of code and the targets of links may be longer: they can't be broken."""
    long = []
    for number, line in prose(text_of(page)):
        shown = len(re.sub(r"https?://\S+", "", re.sub(r"\]\([^()\s]+\)", "]", line)))
        if shown > LONGEST and not line.lstrip().startswith("|"):
            long.append(f"{name(page)}, line {number}: {shown} letters, at most {LONGEST}: {line[:60]}...")
    assert not long, "\n".join(long)


def test_a_dead_link_an_unknown_heading_and_a_repeated_one_are_told(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "b.md").write_text("# What `b` is\n## Twice\n## Twice\n```\n# no heading\n```\n")
    page = tmp_path / "a.md"
    page.write_text(
        "[1](b.md) [2](b.md#what-b-is) [3](b.md#twice-1) [4](https://x.org/c.md)\n[5](c.md)\n[6](b.md#no-heading)\n"
    )
    assert dead_links(page) == [
        "a.md, line 2: c.md names no file",
        "a.md, line 3: b.md#no-heading: no heading makes #no-heading",
    ]
