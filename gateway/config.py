"""The settings of the port: where it listens, whom it trusts, what it accepts. The workers' are in `sandbox/config.py`."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from moltbot.sandbox.setting_kinds import Bytes, Count, Milliseconds, Names, RequestRate

_HEADER_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")

_TAKEN_HEADERS = frozenset(
    {"host", "authorization", "cookie", "origin", "content-length", "content-type", "connection"}
)

Network = IPv4Network | IPv6Network


def _networks(value: object) -> object:
    """A list of addresses and networks may be written as one text: `"10.0.0.0/8, ::1"`."""
    words = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(words, list | tuple):
        return words
    try:
        return tuple(ip_network(word) if isinstance(word, str) else word for word in words)
    except ValueError as error:
        raise ValueError(f"{error}; expected addresses such as 10.0.0.7 or 10.0.0.0/8") from None


Networks = Annotated[tuple[Network, ...], BeforeValidator(_networks)]


class EdgeConfig(BaseModel):
    """A checked configuration of the port; frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on")
    port: Count = Field(0, ge=0, le=65535, description="Port to listen on; 0 takes a free one")
    allowed_hosts: Names = Field(
        (), description="Names this gateway answers to, besides loopback names and the bound address"
    )
    token_file: Path | None = Field(
        None, description="File with the operator's token; <sandbox_base_dir>/token if unset"
    )
    tls_cert: Path | None = Field(None, description="File with the certificate chain (PEM), for https")
    tls_key: Path | None = Field(None, description="File with the certificate's private key (PEM)")
    trusted_proxies: Networks = Field(
        (), description="Addresses or networks of proxies that may say who the user is"
    )
    proxy_user_header: str = Field(
        "X-Forwarded-User", description="Header in which a trusted proxy names the user"
    )
    max_body: Bytes = Field(10 << 20, ge=1024, description="Size of a request's body")
    max_connections: Count | None = Field(
        None,
        ge=16,
        description="Connections open at once; by the open files allowed, at most 10000, if unset",
    )
    body_timeout: Milliseconds = Field(30_000, ge=100, description="How long a request's body may take (ms)")
    send_timeout: Milliseconds = Field(
        30_000, ge=100, description="How long a reader of a stream may take nothing (ms)"
    )
    rate_limit_credential: RequestRate | None = Field(
        None, description="Requests per time with one credential, such as 600/m; unlimited if unset"
    )
    rate_limit_user: RequestRate | None = Field(
        None, description="Requests per time for one user, such as 60/m; unlimited if unset"
    )
    access_log: bool = Field(True, description="Write a line for every request into logs/access.log")

    @field_validator("proxy_user_header")
    @classmethod
    def _header_name(cls, value: str) -> str:
        if not value or not _HEADER_CHARACTERS.issuperset(value.lower()):
            raise ValueError("it is not the name of a header")
        if value.lower() in _TAKEN_HEADERS:
            raise ValueError("that header means something else: choose one that only the proxy sends")
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _host_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if "/" in name or "@" in name or (name.count(":") == 1):
                raise ValueError(f"{name!r} is not a bare host name: leave out scheme, port and path")
        return value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together: give both or none")
        return self
