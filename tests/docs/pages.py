"""The pages of documentation as these tests see them: their fenced blocks, headings and links.

The first word after the fence is the language; the words after it say what a test does with the block:

    python               run as a script
    python file=NAME     written to NAME, for the blocks that follow
    python fragment      only parsed
    sh run               run; must succeed
    sh fails             run; must fail
    sh background        a gateway: started, waited for, stopped at the page's end
    text output          what the block before it printed, `...` standing for anything on that line
    text stopped         the gateway is stopped here, and printed this while it ended
    toml file=NAME       written to NAME

All other blocks are only shown. The blocks of one page share a directory and run in order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")],
    key=lambda path: str(path.relative_to(ROOT)),
)
_FENCE = re.compile(r"^```(.*)$")


@dataclass(frozen=True)
class Block:
    """One fenced block: the words after the fence, the text, and the line it begins on."""

    words: tuple[str, ...]
    text: str
    line: int

    @property
    def language(self) -> str:
        return self.words[0] if self.words else ""

    @property
    def file(self) -> str | None:
        return next((word[5:] for word in self.words if word.startswith("file=")), None)


def blocks_of(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    words: tuple[str, ...] | None = None
    lines: list[str] = []
    start = 0
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if fence is None:
            lines.append(line)
        elif words is None:
            words, lines, start = tuple(fence[1].split()), [], number
        else:
            yield Block(words, "\n".join(lines) + "\n", start)
            words = None
    assert words is None, f"{page}: the fence of line {start} is not closed"


def prose_of(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def matches(expected: str, actual: str) -> str | None:
    """None if every line of `expected` is found in `actual`, in order; else the first that is not. Spaces count as one."""
    rest = iter(actual.splitlines())
    for line in filter(str.strip, expected.splitlines()):
        pattern = re.compile(".*".join(re.escape(part) for part in _squeeze(line).split("...")))
        if not any(pattern.fullmatch(_squeeze(candidate)) for candidate in rest):
            return line
    return None


def _squeeze(line: str) -> str:
    return " ".join(line.split())
