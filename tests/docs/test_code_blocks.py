"""Every command and every program in the documentation runs, against real workers, and prints what the page says."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, Block, blocks_of, matches, name_of

PATIENCE = 90
RUNNABLE = ("run", "fails", "background")


def is_run(block: Block) -> bool:
    if block.language == "python":
        return "fragment" not in block.words
    return (
        block.language == "sh" and any(word in RUNNABLE for word in block.words)
    ) or block.file is not None


class Reader:
    """Someone who follows one page, step by step, in a directory of their own."""

    def __init__(self, page: Path, directory: Path) -> None:
        self._page = page
        self._directory = directory
        self._gateways: list[subprocess.Popen[str]] = []
        self._url = ""
        self._printed = ""
        (directory / "examples").symlink_to(ROOT / "examples")
        self._environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(directory / "home"),
            "XDG_DATA_HOME": str(directory / "home" / "data"),
            "TMPDIR": str(directory),
            "LANG": "C.UTF-8",
            "MOLTBOT_PORT": "0",
        }

    def follow(self, block: Block) -> None:
        text = block.text.replace("http://127.0.0.1:18789", self._url) if self._url else block.text
        if block.file is not None:
            (self._directory / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python" and "fragment" not in block.words:
            self._run([sys.executable, "-c", text], block)
        elif "background" in block.words:
            self._start_gateway(text, block)
        elif "run" in block.words or "fails" in block.words:
            self._run(["bash", "-euo", "pipefail", "-c", text], block, fails="fails" in block.words)
        elif "stopped" in block.words:
            self._printed = self.stop_gateways()
        if "output" in block.words or "stopped" in block.words:
            missing = matches(block.text, self._printed)
            assert missing is None, f"{self._at(block)}: not printed: {missing!r}\nbut:\n{self._printed}"

    def _at(self, block: Block) -> str:
        return f"{name_of(self._page)}:{block.line}"

    def _run(self, command: list[str], block: Block, *, fails: bool = False) -> None:
        done = subprocess.run(
            command,
            check=False,
            cwd=self._directory,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )
        assert (done.returncode != 0) is fails, (
            f"{self._at(block)} ended with {done.returncode}:\n{done.stdout}"
        )
        self._printed = done.stdout

    def _start_gateway(self, text: str, block: Block) -> None:
        self.stop_gateways()
        process = subprocess.Popen(
            ["bash", "-c", f"exec {text}"],
            cwd=self._directory,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._gateways.append(process)
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Press Ctrl+C to stop."):
                break
        self._printed = "".join(lines)
        assert "Listening on " in self._printed, f"{self._at(block)} did not start:\n{self._printed}"
        self._url = self._printed.partition("Listening on ")[2].split()[0]

    def stop_gateways(self) -> str:
        """Stop what runs as an operator would; it must end in order. Returns what was printed meanwhile."""
        printed = ""
        while self._gateways:
            process = self._gateways.pop()
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, output
            printed += output
        return printed

    def kill_gateways(self) -> None:
        for process in self._gateways:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("page", [page for page in PAGES if any(map(is_run, blocks_of(page)))], ids=name_of)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path) -> None:
    reader = Reader(page, tmp_path)
    try:
        for block in blocks_of(page):
            reader.follow(block)
        reader.stop_gateways()
    finally:
        reader.kill_gateways()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_marked_in_a_way_that_is_known(page: Path) -> None:
    known = {"", "python", "sh", "text", "toml", "json", "mermaid", "dockerfile", "yaml", "ini"}
    marks = {"run", "background", "fragment", "fails", "stopped", "output", "demo"}
    for block in blocks_of(page):
        assert block.language in known, f"{name_of(page)}:{block.line}"
        for word in block.words[1:]:
            assert word in marks or word.startswith("file="), f"{name_of(page)}:{block.line}: {word}"
        if block.language == "python":
            ast.parse(block.text)
        if block.language == "json" and "..." not in block.text:
            json.loads(block.text)


def test_the_demo_prints_what_the_readme_shows(tmp_path: Path) -> None:
    """The README's demo command, on a free port and in the test's own directory."""
    shown = next(block for block in blocks_of(ROOT / "README.md") if "demo" in block.words)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "moltbot",
            "workers",
            "demo",
            "-w",
            "3",
            "-t",
            "1ms",
            "--port",
            "0",
            "-s",
            tmp_path / "w",
        ],
        check=False,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout
    missing = matches(shown.text, done.stdout)
    assert missing is None, f"not printed: {missing!r}\nbut:\n{done.stdout}"
