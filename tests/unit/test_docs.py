"""README.md and docs/: links and anchors lead somewhere; tree, flags and messages are those of the code."""

import ast
import re
from pathlib import Path

import pytest

from conftest import PROJECT

PAGES = [
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tests/faults/README.md")),
    *sorted((PROJECT / "docs").glob("*.md")),
]
SHORT = 220  # lines of the README at most
# Profiles, and flags of scripts and other programs.
OTHER_FLAGS = {"quick-test", "h100", "help", "slow", "faults", "gpu", "multi_gpu", "logdir"}


def name_of(page: Path) -> str:
    return str(page.relative_to(PROJECT))


def without_code(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def anchors(page: Path) -> list[str]:
    """Of the page's headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", without_code(page), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def product_files() -> list[Path]:
    files = [*PROJECT.glob("*.py"), *PROJECT.glob("tryon/**/*.py"), *PROJECT.glob("deepfashion_training/*.py")]
    return [*files, *PROJECT.glob("*.sh")]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_anchors_and_functions(page: Path) -> None:
    for words, target in re.findall(r"\[([^\]]*)\]\(([^)]*)\)", without_code(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} is not there"
        if anchor:
            assert anchor in anchors(file), f"{target} is no heading of {file.name}"
        if file.suffix == ".py" and words.strip("`").isidentifier():
            named = {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}
            assert words.strip("`") in named, f"{path} has no function {words}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent == PROJECT / "docs"], ids=name_of)
def test_a_page_begins_with_its_contents(page: Path) -> None:
    text = page.read_text()
    listed = re.findall(r"^- \[.*?\]\(#(.*?)\)$", text[: text.index("\n## ")], re.MULTILINE)
    assert listed == anchors(page)[1:]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tables_are_whole(page: Path) -> None:
    table: list[int] = []
    for line in [*without_code(page).splitlines(), ""]:
        cells = len(re.findall(r"(?<!\\)\|", line)) - 1 if line.startswith("|") else 0
        if cells:
            table.append(cells)
        elif table:
            assert len(table) > 2 and len(set(table)) == 1, f"the table before {line!r} has rows of {table} cells"
            table = []


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    text = PAGES[0].read_text()
    assert len(text.splitlines()) <= SHORT
    for page in (PROJECT / "docs").glob("*.md"):
        assert f"(docs/{page.name}" in text, page.name


def tree() -> set[str]:
    """Paths of the README's tree: the first column, and other files of the folder that a line names in its text."""
    (block,) = re.findall(r"```\n(train_deepfashion_lora\.sh .*?)```", PAGES[0].read_text(), re.DOTALL)
    folders: list[str] = []
    paths = set()
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 4
        names, *text = re.split(r"\s{2,}", line.strip(), maxsplit=1)
        folders = [*folders[:depth], names] if names.endswith("/") else folders[:depth]
        inside = "".join(folders)
        if names.endswith("/"):
            paths.add(inside)
            continue
        paths |= {f"{inside}{name}" for name in names.split()}
        others = re.findall(r"(?<![\w/.])(\w+\.(?:py|sh))(?!\w)", " ".join(text))
        paths |= {f"{inside}{name}" for name in others}
    return paths


def test_the_tree_is_that_of_the_files() -> None:
    assert not sorted(path for path in tree() if not (PROJECT / path).exists()), "in the README's tree only"


def test_every_module_has_its_place_in_the_tree() -> None:
    listed = tree()
    for file in product_files():
        path = name_of(file)
        known = path in listed or path.startswith("tryon/toy/") or file.name == "__init__.py"
        assert known, f"{path} is not in the README's tree"


def test_every_flag_that_is_named_exists() -> None:
    sources = "\n".join(file.read_text() for file in product_files())
    known = OTHER_FLAGS | set(re.findall(r"^    (\w+): .* = setting\(", sources, re.MULTILINE))
    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue
        for flag in re.findall(r"(?<![\w-])--([a-z]\w*(?:-\w+)*)", page.read_text()):
            assert flag.removeprefix("no_") in known, f"{page.name}: --{flag}"


def said() -> str:
    """Every string of the code, those that are made of pieces with a gap for what is filled in."""
    strings = []
    for file in product_files():
        text = file.read_text()
        if file.suffix != ".py":
            strings.append(text)
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                strings.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                strings.append(node.value)
    return "\n\n".join(strings)


def test_every_message_is_one_of_the_code() -> None:
    strings = said()
    rows = re.findall(r"^\| (`.*?) \|", (PROJECT / "docs" / "messages.md").read_text(), re.MULTILINE)
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert len(messages) > 60
    for message in messages:
        pattern = "[^\n]*".join(re.escape(piece.strip()) for piece in message.split("..."))
        assert re.search(pattern, strings), f"no message of the code is `{message}`"
