"""The operator's token: made once, for nobody else to read, and refused when it is not safe."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moltbot import StartupError, create_gateway_router
from moltbot.gateway.config import EdgeConfig
from moltbot.gateway.server import Gateway
from moltbot.sandbox.secret_file import load_or_create_secret, read_secret
from tests.support import check_sentence, pool_config


async def start_with(tmp_path: Path, edge: EdgeConfig, token: str | None = None) -> str:
    """Start a gateway with these settings and return its token; raises what the start raises."""
    router = create_gateway_router(pool_config=pool_config(tmp_path / "base"))
    async with Gateway(router, edge, token=token) as gateway:
        return gateway.token


async def test_the_token_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        first = await start_with(tmp_path, EdgeConfig())
    finally:
        os.umask(old)
    file = tmp_path / "base" / "token"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text().strip() == first
    assert len(first) >= 32
    assert await start_with(tmp_path, EdgeConfig()) == first


async def test_two_gateways_never_make_the_same_token(tmp_path: Path) -> None:
    assert load_or_create_secret(tmp_path / "a") != load_or_create_secret(tmp_path / "b")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o622])
def test_a_token_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "token"
    load_or_create_secret(file)
    file.chmod(mode)
    with pytest.raises(StartupError, match="chmod 600") as caught:
        load_or_create_secret(file)
    check_sentence(caught.value.message)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"short", b"x" * 15, b"with space" * 3, b"\xff" * 20, "schlüssel".encode() * 4, b"a\tb" * 9],
)
def test_what_is_no_token_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(StartupError, match="token|directory|pipe|missing") as caught:
        read_secret(file)
    check_sentence(caught.value.message)
    assert str(file) in caught.value.message


def test_a_link_in_the_tokens_place_is_refused(tmp_path: Path) -> None:
    real = tmp_path / "real"
    load_or_create_secret(real)
    link = tmp_path / "token"
    for target in (real, tmp_path / "missing"):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        with pytest.raises(StartupError):
            load_or_create_secret(link)
    assert not (tmp_path / "missing").exists()


def test_a_directory_a_pipe_or_nothing_is_no_token_file(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir(mode=0o700)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("directory", "pipe", "missing"):
        with pytest.raises(StartupError, match="token|directory|pipe|missing") as caught:
            read_secret(tmp_path / name)
        check_sentence(caught.value.message)


async def test_a_named_token_file_is_used_and_never_made(tmp_path: Path) -> None:
    named = tmp_path / "my-token"
    with pytest.raises(StartupError, match="my-token cannot be read"):
        await start_with(tmp_path, EdgeConfig(token_file=named))
    assert not named.exists()
    named.write_text("sixteen-characters-or-more\n")
    named.chmod(0o600)
    assert await start_with(tmp_path, EdgeConfig(token_file=named)) == "sixteen-characters-or-more"
    assert not (tmp_path / "base" / "token").exists()


async def test_a_token_given_directly_must_be_one_too(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="MOLTBOT_TOKEN"):
        await start_with(tmp_path, EdgeConfig(), token="short")
