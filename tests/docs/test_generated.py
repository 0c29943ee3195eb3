"""What the reference says about settings, errors, routes, frames and states is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moltbot.core import errors, frames
from moltbot.core.clock import SystemClock
from moltbot.gateway.app import create_app
from moltbot.gateway.config import EdgeConfig
from moltbot.gateway.edge import Edge
from moltbot.gateway.origins import Origins
from moltbot.gateway.problems import _STATUS
from moltbot.router.gateway_router import GatewayRouter
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.isolation.plan import Level
from moltbot.sandbox.lifecycle import ExitReason, State
from tests.docs.generated import PARTS, error_classes, parts_in, renewed
from tests.docs.pages import PAGES, ROOT, name_of
from tests.escape.test_attempts import ATTEMPTS

REFERENCE = ROOT / "docs" / "reference"


@pytest.mark.parametrize("page", [page for page in PAGES if parts_in(page)], ids=name_of)
def test_generated_parts_are_up_to_date(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == renewed(page), "run `python -m tests.docs.generated`"


def test_every_generated_part_is_on_one_page() -> None:
    used = [part for page in PAGES for part in parts_in(page)]
    assert sorted(used) == sorted(PARTS)


def test_every_code_has_a_status() -> None:
    codes = {error.code for error in error_classes() if not issubclass(error, errors.StartupError)}
    assert codes == set(_STATUS)


def test_the_http_page_names_every_code_of_the_edge() -> None:
    """What only the edge refuses is written there by hand; every `Refused(status, "code"` must be in the table."""
    text = (REFERENCE / "http.md").read_text(encoding="utf-8")
    for file in (ROOT / "gateway").rglob("*.py"):
        source = file.read_text(encoding="utf-8")
        for status, code in re.findall(r'Refused\(\s*(\d{3}),\s*"([a-z_]+)"', source):
            assert f"| `{code}` | {status} |" in text, f"{code} of {file.name} is missing"


def test_the_http_page_names_every_route() -> None:
    router = GatewayRouter(PoolConfig(), SystemClock())
    config = EdgeConfig()
    app = create_app(router, Edge(config, Origins("127.0.0.1", ()), SystemClock()), config)
    ours = {
        f"{route.method} {route.resource.canonical}"
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    assert {name.replace("/api/v1/", "/api/") for name in ours if "/api/v1/" in name} == {
        name for name in ours if "/api/" in name and "/api/v1/" not in name
    }
    shown = re.findall(
        r"^## `([A-Z]+ [^`]+)`$", (REFERENCE / "http.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(shown) == sorted(name for name in ours if "/api/v1/" not in name)


def test_the_frames_page_names_every_frame_and_field() -> None:
    text = (REFERENCE / "frames.md").read_text(encoding="utf-8")
    for kinds in (frames.TO_WORKER, frames.FROM_WORKER):
        for kind, fields in kinds.items():
            row = re.search(rf"^\| `{kind}` \|(.*)\|$", text, re.MULTILINE)
            assert row is not None, f"there is no row for {kind}"
            assert set(fields) <= set(re.findall(r"`([a-z_]+)`", row[1])), kind


def test_the_lifecycle_page_explains_every_state_and_reason() -> None:
    text = (ROOT / "docs" / "explanation" / "lifecycle.md").read_text(encoding="utf-8")
    for word in (*State, *ExitReason):
        assert f"| `{word}` |" in text, word


def test_the_isolation_page_names_every_attempt_that_a_wall_leaves_open() -> None:
    text = (ROOT / "docs" / "explanation" / "isolation.md").read_text(encoding="utf-8")
    for attempt in ATTEMPTS:
        if attempt.expected[Level.LANDLOCK].outcome == "open":
            assert f"`{attempt.name}`" in text, attempt.name


def test_the_python_page_names_every_public_name() -> None:
    import moltbot

    text = (REFERENCE / "python-api.md").read_text(encoding="utf-8")
    for name in (*moltbot.__all__, *(error.__name__ for error in error_classes())):
        assert f"`{name}" in text, name
