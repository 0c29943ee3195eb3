"""No secret of a credential is anywhere but with its owner: not in answers, logs, files, events, arguments, environments.

A whole gateway in a process of its own is driven with good and bad requests, with secrets in all the wrong places, and then
everything that it and its workers have left is searched. What each credential is good for is in `test_tokens.py`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tests.fakes import eventually
from tests.gateway.edge_support import ask, cookie_of, request_body
from tests.support import BEHAVIOURS, Answer, Running

OPERATOR = "the-operators-marker-81c5"
KEY = "Idempotency-Key"


class At(NamedTuple):
    """A gateway in a process of its own."""

    url: str


class Secrets:
    """What must be nowhere, and every answer but those in which it is shown on purpose."""

    def __init__(self, at: At) -> None:
        self.at = at
        self.texts = [OPERATOR]
        self.answers: list[Answer] = []

    async def call(self, method: str, path: str, token: str | None = OPERATOR, **options: object) -> Answer:
        answer = await ask(self.at, method, path, token, **options)  # type: ignore[arg-type]
        self.answers.append(answer)
        return answer

    async def make(self, path: str, field: str, **fields: object) -> str:
        """Make a token or a link and take what is shown once."""
        answer = await ask(self.at, "POST", path, OPERATOR, json=fields, headers={KEY: f"{path} {fields}"})
        assert answer.status == 201, answer.text
        text = re.search("mbt_[0-9a-f]+_[A-Za-z0-9_-]+", str(answer.json[field]))
        assert text is not None
        self.texts.append(text[0].split("_", 2)[2])
        await self.call("POST", path, json=fields, headers={KEY: f"{path} {fields}"})  # the replay shows none
        return text[0]

    async def sign_in(self, code: str) -> str:
        answer = await ask(self.at, "POST", "/login", data={"code": code})
        cookie = cookie_of(answer)
        self.texts.append(cookie.split("_", 2)[2])
        assert self.texts[-1] not in answer.text
        return cookie

    def found_in(self, data: bytes) -> list[str]:
        return [text for text in self.texts if text.encode() in data]


async def drive(secrets: Secrets) -> None:
    """Good requests and bad ones, with every secret in every place but the right one, and there too."""
    token = await secrets.make("/api/tokens", "token", userId="ada", label="a label")
    await secrets.make("/api/tokens", "token", operator=True, scopes=["read"])
    link = await secrets.make("/api/links", "path", userId="ada")
    cookie = await secrets.sign_in(await secrets.make("/api/links", "path", operator=True))
    headers = {"Cookie": cookie, "Origin": secrets.at.url}
    await secrets.call("GET", "/api/workers", None, headers=headers)
    await secrets.call("POST", "/api/route", token, json={"type": "whoami"}, headers={KEY: "mine"})
    await secrets.call("POST", "/login", None, data={"code": "wrong"})
    for text in (OPERATOR, token, link, cookie.partition("=")[2]):
        for wrong in (text[:-1], text + "x", text.swapcase()):
            await secrets.call("GET", "/api/workers", wrong)
        await secrets.call("POST", f"/api/route?token={text}&access_token={text}", None, data=b"{}")
        await secrets.call("GET", f"/api/{text}", None)
        await secrets.call("DELETE", f"/api/tokens/{text}", text)
        await secrets.call("GET", f"/{text.replace('-', '%2d')}", None)
        await secrets.call("GET", "/api/workers", None, headers={"Cookie": f"moltbot-session={text}"})
        await secrets.call("GET", "/api/workers", None, headers={"X-Api-Key": text})
        await secrets.call("POST", "/api/route", None, data=request_body("echo", "ada", token=text))
        await secrets.call("POST", "/login", None, data={"code": text + "x"})
        await secrets.call("GET", "/api/workers", text, headers={"Host": "evil.example"})
        await secrets.call("GET", "/api/workers", text, headers={"Origin": "http://evil.example"})
        await secrets.call(
            "POST", "/api/route", text, data=b"{", headers={"Content-Type": "application/json"}
        )
        await secrets.call("POST", "/api/route", text, json={"type": "nothing", "userId": "ada"})
        await secrets.call(
            "POST", "/api/route", text, json={"type": "die", "userId": "ada"}, headers={KEY: "die"}
        )
    for path in ("/api/workers", "/api/workers/worker-0", "/health", "/livez", "/readyz", "/api/tokens"):
        await secrets.call("GET", path)
    await secrets.call("GET", "/api/users?userId=ada")
    surroundings = await secrets.call("POST", "/api/route", json={"type": "surroundings", "userId": "ada"})
    assert surroundings.status == 200, surroundings.text


async def test_no_secret_is_anywhere(tmp_path: Path) -> None:
    base = tmp_path / "base"
    arguments = ("-w", "1", "-s", str(base), "--handler", BEHAVIOURS, "--token-file", str(tmp_path / "mine"))
    given = tmp_path / "mine"
    given.write_text(OPERATOR)
    given.chmod(0o600)
    with Running(tmp_path, *arguments) as gateway:
        secrets = Secrets(At(gateway.document["url"]))
        await drive(secrets)
        assert len(secrets.texts) == 6
        assert secrets.found_in(str(gateway.document).encode()) == []
        leaks = [answer for answer in secrets.answers if secrets.found_in(str(answer).encode())]
        assert leaks == []
        assert seen_of_processes(gateway.process.pid, secrets) == []
        await eventually(lambda: (base / "logs" / "worker-pool.log").exists())
        assert files_with(base, secrets) == []
        _, out, err = gateway.end(15)
        assert secrets.found_in((out + err).encode()) == []
    assert files_with(base, secrets) == []
    # The search would find them: what is beside a secret in the same rows and lines is there.
    secrets.texts = ["a label", "ada"]
    assert {"moltbot.db"} <= {path.name for path in files_with(base, secrets)}


def files_with(base: Path, secrets: Secrets) -> list[Path]:
    return [path for path in base.rglob("*") if path.is_file() and secrets.found_in(path.read_bytes())]


def seen_of_processes(pid: int, secrets: Secrets) -> list[str]:
    """What of the arguments and environments of the gateway and all below it holds a secret."""
    found = []
    gateway = psutil.Process(pid)
    family = [gateway, *gateway.children(recursive=True)]
    assert len(family) > 1
    for process in family:
        found += seen_of_process(process, secrets)
    return found


def seen_of_process(process: psutil.Process, secrets: Secrets) -> list[str]:
    found = []
    for name in ("cmdline", "environ"):
        try:
            data = Path(f"/proc/{process.pid}/{name}").read_bytes()
        except OSError:  # it has ended, or even we may not look
            continue
        found += [f"{name} of {process.pid}" for _ in secrets.found_in(data)]
    return found


@pytest.mark.parametrize("place", ["variable", "made"])
async def test_where_the_operators_token_may_be(tmp_path: Path, place: str) -> None:
    """In the variable it was given in, which no worker gets, or in the one file, which only its owner reads."""
    base = tmp_path / "base"
    variables = {"MOLTBOT_TOKEN": OPERATOR} if place == "variable" else {}
    with Running(tmp_path, "-w", "1", "-s", str(base), "--handler", BEHAVIOURS, **variables) as gateway:
        token = OPERATOR if variables else (base / "token").read_text().strip()
        secrets = Secrets(At(gateway.document["url"]))
        secrets.texts = [token]
        answer = await secrets.call(
            "POST", "/api/route", token, json={"type": "surroundings", "userId": "ada"}
        )
        assert answer.status == 200
        assert secrets.found_in(answer.text.encode()) == []
        for child in psutil.Process(gateway.process.pid).children(recursive=True):
            assert seen_of_process(child, secrets) == []
    kept = [] if variables else [base / "token"]
    assert files_with(base, secrets) == kept
