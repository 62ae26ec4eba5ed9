"""README and docs name only what exists: commands, options, settings and files; their Python blocks run."""

import ast
import re
import tomllib
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
import yaml

from tests.docs.commands import ROOT, check_dotted, check_inline, check_shell
from tests.rollout.runs import save_run

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^(?:<!-- not checked: ([^\n]*) -->\n)?```(\w*)\n(.*?)^```$", re.M | re.S)
MARKS = {
    ("docs/data.md", "commands of other packages"),
    ("docs/experiments.md", "a loop of the shell"),
    ("docs/quickstart.md", "commands of Docker"),
    ("docs/results.md", "brace expansion of a shell"),
    ("docs/scaling.md", "environment variables of a launcher"),
    ("docs/scaling.md", "command lines of cloud tools"),
    ("docs/scaling.md", "needs a bucket"),
    ("docs/scaling.md", "minutes of a CPU, and a GPU"),
    ("docs/scaling.md", "a GPU"),
    ("docs/scaling.md", "needs a bucket"),
    ("docs/scaling.md", "writes an archive"),
    ("docs/sharing.md", "a download"),
    ("docs/sharing.md", "a command of LeRobot"),
}
"""The blocks that are not checked, and why."""


class Block(NamedTuple):
    """A fenced code block of a document."""

    document: str
    line: int
    mark: str | None
    language: str
    text: str


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks() -> list[Block]:
    found = []
    for path in DOCUMENTS:
        text = path.read_text()
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(name_of(path), line, match[1] or None, match[2], match[3]))
    return found


def headings(path: Path) -> set[str]:
    """The anchors that GitHub and MkDocs give the headings of a page."""
    lines = re.findall(r"^#+ (.+)$", re.sub(BLOCK, "", path.read_text()), re.M)
    names = [re.sub(r"[^\w -]", "", re.sub(r"\]\([^)]*\)", "]", line).lower()) for line in lines]
    return {name.strip().replace(" ", "-") for name in names}


CHECKED = [block for block in blocks() if not block.mark]


def test_the_marks_are_those_that_are_known() -> None:
    assert {(block.document, block.mark) for block in blocks() if block.mark} == MARKS


def test_no_block_is_indented_or_without_a_language() -> None:
    for path in DOCUMENTS:
        assert not re.search(r"\n\n    \S", re.sub(BLOCK, "", path.read_text())), name_of(path)
    assert {block.language for block in blocks()} <= {"bash", "python", "text", "toml"}


@pytest.mark.parametrize("block", [b for b in CHECKED if b.language == "bash"], ids=lambda b: f"{b.document}:{b.line}")
def test_a_shell_block_names_real_commands(block: Block) -> None:
    check_shell(block.text)


@pytest.mark.parametrize(
    "block", [b for b in CHECKED if b.language == "python"], ids=lambda b: f"{b.document}:{b.line}"
)
def test_a_python_block_runs(block: Block, tmp_path: Path) -> None:
    ast.parse(block.text)
    run = save_run(tmp_path / "run", "e2", "flow")
    names: dict[str, object] = {}
    exec(block.text.replace('"RUN"', repr(str(run))), names)
    actions = np.asarray(names["actions"])
    assert actions.shape == (1, 8, 7) and np.isfinite(actions).all() and np.abs(actions).max() <= 1.0
    assert isinstance(names["info"], dict) and jax.tree.leaves(names["carry"])


@pytest.mark.parametrize("block", [b for b in CHECKED if b.language == "toml"], ids=lambda b: f"{b.document}:{b.line}")
def test_a_toml_block_is_valid(block: Block) -> None:
    assert tomllib.loads(block.text)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_code_spans_and_links_name_what_exists(path: Path) -> None:
    text = re.sub(BLOCK, "", path.read_text())
    for span in re.findall(r"`([^`\n]+)`", text):
        check_inline(span)
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([\w-]+))?\)", text):
        if target.startswith("https://"):
            continue
        page = path.parent / target if target else path
        assert page.exists(), f"{name_of(path)}: no {target}"
        assert not anchor or anchor in headings(page), f"{name_of(path)}: {target} has no heading {anchor}"


def test_the_api_reference_names_what_exists() -> None:
    names = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), re.M)
    assert len(names) > 10
    for name in names:
        check_dotted(name)


def test_headings_that_the_code_names_exist() -> None:
    sources = [
        path for folder in ("wmjax", "train", "eval", "examples", "benchmarks") for path in (ROOT / folder).rglob("*")
    ]
    texts = [path.read_text() for path in sources if path.suffix in (".py", ".toml", ".md", ".ipynb")]
    found = {pair for text in texts for pair in re.findall(r"docs/(\w+\.md)#([\w-]+)", text)}
    assert found and all(anchor in headings(ROOT / "docs" / page) for page, anchor in found), found


def test_every_page_is_in_the_navigation() -> None:
    pages = {page for entry in yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"] for page in entry.values()}
    assert pages == {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize(
    "span",
    [
        "python -m wmjax.trian --config e2_flow",
        "python -m wmjax.train --conifg e2_flow",
        "python -m wmjax.train --config e2_flo",
        "python -m wmjax.train --train.stps 3",
        "python -m wmjax.evaluate --run RUN --protocol spatial_dve",
        "python benchmarks/loaders.py STORE",
        "--no-such-option",
        "--model.head.kin flow",
        "wmjax.rollout.results.NoRecord",
        "encoder.max_shfit",
        "docs/nothing.md",
    ],
)
def test_what_does_not_exist_is_found(span: str) -> None:
    with pytest.raises(AssertionError):
        check_inline(span)
