"""The tables of `moltbot.db` and their version.

Covers what is laid down in a new file and how the version of an older one is read. Which versions are refused, and with
what words, is in `database_file.py`; the rows of `pins` are written and read in `directory.py`.
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

_VERSION = sa.select(_meta.c.value).where(_meta.c.key == "schema_version")
_NEW_META = sa.insert(_meta)


def create_tables(connection: sa.Connection, now: float) -> None:
    """Lay down all tables in a database that has none; `now`, in seconds since 1970, is noted as its birth."""
    metadata.create_all(connection, checkfirst=False)
    values = {"schema_version": str(SCHEMA_VERSION), "created": repr(now)}
    connection.execute(_NEW_META, [{"key": key, "value": value} for key, value in values.items()])


def stored_version(connection: sa.Connection) -> str:
    """The version as it is written in the file, valid or not; empty if there is none."""
    return connection.execute(_VERSION).scalar_one_or_none() or ""
