"""Links between pages lead somewhere: to a file that exists, to a heading that is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, name_of, prose_of

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+\s+(.*)$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    found: set[str] = set()
    for heading in _HEADING.findall(prose_of(page)):
        word = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-")
        number = sum(1 for name in found if name == word or re.fullmatch(re.escape(word) + r"-\d+", name))
        found.add(f"{word}-{number}" if number else word)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_internal_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(prose_of(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(ROOT), f"{name_of(page)}: {target} leaves the project"
        assert file.exists(), f"{name_of(page)}: {target} does not exist"
        if anchor:
            assert anchor in anchors(file), f"{name_of(page)}: there is no heading for {target}"


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in PAGES:
        if page.is_relative_to(ROOT / "docs") and page.name != "README.md":
            assert f"({page.relative_to(ROOT / 'docs')})" in index, (
                f"{name_of(page)} is not in docs/README.md"
            )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_a_page_names_exist(page: Path) -> None:
    for name in re.findall(r"`((?:tests|examples|benchmarks)/[\w./-]+)`", prose_of(page)):
        assert (ROOT / name).exists(), f"{name_of(page)}: {name} does not exist"
