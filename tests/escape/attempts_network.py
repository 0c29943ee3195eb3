"""Attempts on the network and on sockets: listeners of this machine, kinds of sockets that no rule about ports binds."""

from __future__ import annotations

import socket

from tests.escape.here import as_here, made, opened
from tests.escape.table import Attempt, Expected, at, is_open, refused

FAMILY = refused("EAFNOSUPPORT")
PROTOCOL = refused("EPROTONOSUPPORT")
NOBODY = refused("ECONNREFUSED")
PLAIN = is_open("nothing guards the network")


def here(family: int, kind: int, protocol: int = 0) -> Expected:
    """Without a wall: whatever this kernel has and lets the gateway's user do."""
    return as_here(made(family, kind, protocol), "nothing guards the kernel's other families")


def _routed() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("169.254.169.254", 80))  # of UDP, this looks for a way and sends nothing


REACHED = (
    Attempt(
        "tcp-listener",
        "a service on the machine's loopback",
        "network_namespaces(7)",
        """
with socket.create_connection((LOOPBACK, facts["tcp"]), 10) as sock:
    escaped(sock.recv(100))
""",
        at(NOBODY, FAMILY, PLAIN),
    ),
    Attempt(
        "tcp-listener-by-the-worker-itself",
        "the same from the handler's thread",
        "network_namespaces(7)",
        """
with socket.create_connection((LOOPBACK, facts["tcp"]), 10) as sock:
    escaped(sock.recv(100))
""",
        at(NOBODY, FAMILY, PLAIN),
        by="worker",
    ),
    Attempt(
        "tcp-fast-open",
        "the same without connect(2): the first data carry the connection",
        "sendto(2), MSG_FASTOPEN; a way past Landlock's right to connect until it was added",
        """
sock = socket.socket()
sock.sendto(b"x", 0x20000000, (LOOPBACK, facts["tcp"]))
escaped(sock.recv(100))
""",
        at(refused("EOPNOTSUPP", "ENOTSUP"), FAMILY, PLAIN),
    ),
    Attempt(
        "gateway-port",
        "the gateway itself: its HTTP interface is for clients outside",
        "network_namespaces(7)",
        """
with socket.create_connection((LOOPBACK, facts["port"]), 10) as sock:
    sock.sendall(b"GET /health HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n")
    escaped(sock.recv(100))
""",
        at(NOBODY, FAMILY, PLAIN),
    ),
    Attempt(
        "udp-listener",
        "an answer by UDP from the machine's loopback, as from a resolver",
        "udp(7); Landlock knows TCP only",
        """
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(10)
sock.connect((LOOPBACK, facts["udp"]))
sock.send(b"x")
escaped(sock.recv(100))
""",
        at(NOBODY, FAMILY, PLAIN),
    ),
    Attempt(
        "metadata-service",
        "a way to 169.254.169.254, where clouds hand out credentials (looked for; nothing is sent)",
        "the theft from Capital One in 2019, by the credentials of such a service",
        """
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("169.254.169.254", 80))
escaped("there is a way")
""",
        at(refused("ENETUNREACH"), FAMILY, as_here(_routed, "the machine's own way")),
    ),
    Attempt(
        "resolver",
        "the name server of the machine, and with it DNS as a way for data to leave",
        "resolv.conf(5)",
        "escaped(open('/etc/resolv.conf').read())",
        at(refused("ENOENT"), refused("EACCES"), as_here(opened("/etc/resolv.conf"), "as on the machine")),
    ),
    Attempt(
        "interfaces",
        "the machine's network interfaces",
        "rtnetlink(7)",
        """
names = [name for _, name in socket.if_nameindex() if name != "lo"]
escaped(names) if names else refused("only a loopback")
""",
        at(
            refused("only a loopback"),
            is_open("netlink's route family is left to programs that list interfaces; it can change nothing")
            if len(socket.if_nameindex()) > 1
            else refused("only a loopback"),
            PLAIN if len(socket.if_nameindex()) > 1 else refused("only a loopback"),
        ),
    ),
    Attempt(
        "abstract-socket",
        "an abstract Unix socket of the gateway's user",
        "CVE-2020-15257 (containerd-shim)",
        """
sock = socket.socket(socket.AF_UNIX)
sock.connect("\\0" + facts["abstract"])
escaped(sock.recv(100))
""",
        at(NOBODY, FAMILY, PLAIN),
    ),
    Attempt(
        "named-socket",
        "a named Unix socket of the gateway's user, such as an agent's or the Docker daemon's",
        "unix(7)",
        """
sock = socket.socket(socket.AF_UNIX)
sock.connect(facts["named"])
escaped(sock.recv(100))
""",
        at(refused("ENOENT"), FAMILY, PLAIN),
    ),
    Attempt(
        "datagram-by-one-end-of-a-pair",
        "a named socket, by an end of a pair of datagram sockets, which needs no call of socket(2)",
        "unix(7): sendto(2) to a name works from a connected datagram socket",
        """
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
ours.sendto(b"x", facts["datagrams"])
escaped("sent")
""",
        at(refused("ENOENT"), refused("ESOCKTNOSUPPORT"), PLAIN),
    ),
)

KINDS = (
    Attempt(
        "mptcp",
        "TCP under another protocol's number, to which rules about TCP do not apply",
        "landlock(7), Landlock's network rights bind TCP and not MPTCP",
        """
sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
sock.connect((LOOPBACK, facts["tcp"]))
escaped(sock.recv(100))
""",
        at(PROTOCOL, FAMILY, here(socket.AF_INET, socket.SOCK_STREAM, 262)),
    ),
    Attempt(
        "sctp",
        "a socket of SCTP",
        "CVE-2019-8956 (Linux: SCTP, use after free)",
        "escaped(socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132))",
        at(PROTOCOL, FAMILY, here(socket.AF_INET, socket.SOCK_STREAM, 132)),
    ),
    Attempt(
        "sctp-by-its-type",
        "the same without naming the protocol",
        "socket(2): with protocol 0 the type chooses",
        "escaped(socket.socket(socket.AF_INET, socket.SOCK_SEQPACKET, 0))",
        at(refused("ESOCKTNOSUPPORT"), FAMILY, here(socket.AF_INET, socket.SOCK_SEQPACKET)),
    ),
    Attempt(
        "raw",
        "packets of one's own making",
        "raw(7)",
        "escaped(socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))",
        at(refused("EPERM"), FAMILY, here(socket.AF_INET, socket.SOCK_RAW, 1)),
    ),
    Attempt(
        "packet",
        "frames of the interfaces",
        "CVE-2017-7308 and CVE-2020-14386 (Linux: packet sockets)",
        "escaped(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3))",
        at(FAMILY, FAMILY, here(socket.AF_PACKET, socket.SOCK_RAW, 3)),
    ),
    Attempt(
        "packet-by-its-old-name",
        "the same as the internet family's SOCK_PACKET, which the kernel turns into a packet socket",
        "packet(7), SOCK_PACKET",
        "escaped(socket.socket(socket.AF_INET, 10, 3))",
        at(refused("ESOCKTNOSUPPORT"), FAMILY, here(socket.AF_INET, 10, 3)),
    ),
    Attempt(
        "netlink-generic",
        "netlink of kernel modules",
        "netlink(7), NETLINK_GENERIC",
        "escaped(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16))",
        at(PROTOCOL, PROTOCOL, here(socket.AF_NETLINK, socket.SOCK_RAW, 16)),
    ),
    Attempt(
        "netlink-netfilter",
        "the machine's packet filter",
        "CVE-2022-32250 (Linux: nf_tables, use after free)",
        "escaped(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12))",
        at(PROTOCOL, PROTOCOL, here(socket.AF_NETLINK, socket.SOCK_RAW, 12)),
    ),
    Attempt(
        "netlink-socket-list",
        "a list of all sockets, and of who is behind them",
        "CVE-2013-1763 (Linux: sock_diag); sock_diag(7)",
        "escaped(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4))",
        at(PROTOCOL, PROTOCOL, here(socket.AF_NETLINK, socket.SOCK_RAW, 4)),
    ),
    Attempt(
        "vsock",
        "the host of a virtual machine, past its network",
        "CVE-2021-26708 (Linux: vsock)",
        "escaped(socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))",
        at(FAMILY, FAMILY, here(socket.AF_VSOCK, socket.SOCK_STREAM)),
    ),
    Attempt(
        "kernel-crypto",
        "the kernel's ciphers",
        "CVE-2016-8646 (Linux: AF_ALG)",
        "escaped(socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET))",
        at(FAMILY, FAMILY, here(socket.AF_ALG, socket.SOCK_SEQPACKET)),
    ),
    Attempt(
        "bluetooth",
        "radios",
        "CVE-2020-12351 (Linux: Bluetooth)",
        "escaped(socket.socket(31, socket.SOCK_RAW, 1))",
        at(FAMILY, FAMILY, here(31, socket.SOCK_RAW, 1)),
    ),
    Attempt(
        "express-data-path",
        "packets past the kernel's own network code",
        "address_families(7), AF_XDP",
        "escaped(socket.socket(44, socket.SOCK_RAW, 0))",
        at(FAMILY, FAMILY, here(44, socket.SOCK_RAW, 0)),
    ),
)

ATTEMPTS = (*REACHED, *KINDS)
