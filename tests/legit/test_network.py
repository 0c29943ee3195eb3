"""A worker's own loopback and unix sockets work inside of the strongest wall; the middle one has neither."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest
import trustme

from tests.legit.walls import Walled, handlers_in

pytestmark = pytest.mark.asyncio(loop_scope="module")
FILE = "network.py"
_NO_SOCKET = r"OSError: \[Errno 97\]"
AT_LANDLOCK = {
    "asyncio_server": "IndexError",  # asyncio leaves out a family that the machine does not have
    "web_server": "IndexError",
    "own_name": "AssertionError",  # the machine keeps its name
    **dict.fromkeys(("asyncio_unix_server", "unix_sockets"), _NO_SOCKET),
    **dict.fromkeys(("tcp_between_processes", "udp", "ipv6_loopback", "tls", "no_other_network"), _NO_SOCKET),
}


def grants(base: Path) -> list[Path]:
    """A certificate for localhost, and the authority that signed it."""
    keys = base / "keys"
    keys.mkdir()
    authority = trustme.CA()
    authority.cert_pem.write_to_path(keys / "authority.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(keys / "server.pem")
    for path in keys.iterdir():
        path.chmod(0o644)
    keys.chmod(0o755)
    return [keys]


def authorities() -> list[str]:
    """What lies where this machine keeps the certificates it trusts."""
    paths = ssl.get_default_verify_paths()
    folder = Path(paths.capath or paths.openssl_capath)
    return sorted(os.listdir(folder)) if folder.exists() else []


@pytest.mark.parametrize("program", handlers_in(FILE))
async def test_an_honest_program(worker: Walled, program: str) -> None:
    keys = worker.base.parent / "keys"
    payload = {
        "certificate": str(keys / "server.pem"),
        "authority": str(keys / "authority.pem"),
        "names": authorities(),
    }
    await worker.does(program, AT_LANDLOCK, payload)
