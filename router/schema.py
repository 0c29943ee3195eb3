"""The tables of `moltbot.db` and their version.

Covers what is laid down in a new file and how the version of an older one is read. Which versions are refused, and with
what words, is in `database_file.py`. Rows of `pins` are read in `directory.py`, of `forgettings` and `tombstones` in
`tombstones.py`; `tokens` and `outcomes` are the gateway's. User ids are stored as UTF-8 in columns called `user_id` and
nowhere else, so that forgetting a user can find every row of theirs.
"""

from __future__ import annotations

import sqlalchemy as sa

SCHEMA_VERSION = 1

metadata = sa.MetaData()
_meta = sa.Table(
    "meta", metadata, sa.Column("key", sa.Text, primary_key=True), sa.Column("value", sa.Text, nullable=False)
)
pins = sa.Table(
    "pins",
    metadata,
    sa.Column("user_id", sa.LargeBinary, primary_key=True),  # UTF-8: PostgreSQL's text cannot hold NUL
    sa.Column("worker_id", sa.Text, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("since", sa.Double, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sqlite_with_rowid=False,  # the key is the row's place: half the size, and no NULL in it
)
forgettings = sa.Table(  # users whose files are being deleted; gone when that is done
    "forgettings",
    metadata,
    sa.Column("user_id", sa.LargeBinary, primary_key=True),
    sa.Column("worker_id", sa.Text, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("since", sa.Double, nullable=False),
    sqlite_with_rowid=False,
)
tombstones = sa.Table(  # all that is left of a forgotten user
    "tombstones",
    metadata,
    sa.Column("digest", sa.LargeBinary, primary_key=True),  # keyed: see core/keyed_hash.py
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("forgotten", sa.Double, nullable=False),
    sa.Column(
        "scrubbed", sa.Boolean, nullable=False
    ),  # false while the log or the backup may still hold their rows
    sqlite_with_rowid=False,
)
tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),  # token, link or session
    sa.Column("digest", sa.LargeBinary, nullable=False),  # SHA-256 of the secret part, which is nowhere
    sa.Column("user_id", sa.LargeBinary),  # NULL: an operator's
    sa.Column("scopes", sa.Text, nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("expires", sa.Double),
    sqlite_with_rowid=False,
)
outcomes = sa.Table(  # what was answered to requests with an Idempotency-Key
    "outcomes",
    metadata,
    sa.Column("owner", sa.LargeBinary, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("user_id", sa.LargeBinary),  # whom the request was for, if for one
    sa.Column("fingerprint", sa.LargeBinary, nullable=False),
    sa.Column("status", sa.Integer),  # NULL while it runs
    sa.Column("content_type", sa.Text),
    sa.Column("body", sa.LargeBinary),
    sa.Column("created", sa.Double, nullable=False),
    sa.Index("outcomes_by_user", "user_id"),
    sa.Index("outcomes_by_age", "created"),
)

_VERSION = sa.select(_meta.c.value).where(_meta.c.key == "schema_version")
_KEY_CHECK = sa.select(_meta.c.value).where(_meta.c.key == "key_check")
_NEW_META = sa.insert(_meta)


def create_tables(connection: sa.Connection, now: float) -> None:
    """Lay down all tables in a database that has none; `now`, in seconds since 1970, is noted as its birth."""
    metadata.create_all(connection, checkfirst=False)
    values = {"schema_version": str(SCHEMA_VERSION), "created": repr(now)}
    connection.execute(_NEW_META, [{"key": key, "value": value} for key, value in values.items()])


def stored_version(connection: sa.Connection) -> str:
    """The version as it is written in the file, valid or not; empty if there is none."""
    return connection.execute(_VERSION).scalar_one_or_none() or ""


def stored_key_check(connection: sa.Connection) -> str | None:
    """What tells the key of the hashes from any other; None before its first use."""
    return connection.execute(_KEY_CHECK).scalar_one_or_none()


def store_key_check(connection: sa.Connection, value: str) -> None:
    """Note for good which key the hashes are made with."""
    connection.execute(_NEW_META, {"key": "key_check", "value": value})
