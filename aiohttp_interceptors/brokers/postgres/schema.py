"""The migration that creates the tables and functions of ``schema.sql``, under the name of a table."""

from __future__ import annotations

import re
from importlib import resources

from ..._logging import log as logger
from ...exceptions import BrokerDown, OutcomeUnknown
from ...hub.broker import IDEMPOTENCY_WINDOW
from .connection import PostgresConnection

__all__ = ["DEFAULT_TABLE", "checked_table", "migrate", "migration"]


DEFAULT_TABLE = "aiohttp_interceptors_records"
MAX_TABLE_LENGTH = 50  # characters; an identifier has at most 63, and the longest suffix is _keys_used_at
TRIM_STEP = 1000  # entries to delete at once, at most: publishing waits for that
KEY_SECONDS = IDEMPOTENCY_WINDOW * 1.25  # seconds that an idempotency key is kept

_TABLE_NAME = re.compile(r"([a-z_][a-z0-9_]*\.)?[a-z_][a-z0-9_]*", re.ASCII)
_SCHEMA = resources.files(__package__).joinpath("schema.sql").read_text("utf-8")
# Relations and functions that are missing. Those of another release are not: they need the printed migration.
_SELECT_MISSING = """
SELECT name FROM unnest(%s::text[]) AS name WHERE to_regclass(name) IS NULL
UNION ALL SELECT name FROM unnest(%s::text[]) AS name WHERE to_regproc(name) IS NULL
"""


def checked_table(table: str) -> str:
    """Return the name of a table unchanged. Raises ``TypeError`` or ``ValueError`` if it is not one."""
    if not isinstance(table, str):
        raise TypeError(f"table is the name of a table, not {table!r}")
    if not _TABLE_NAME.fullmatch(table) or len(_without_schema(table)) > MAX_TABLE_LENGTH:
        raise ValueError(
            f"table is a name of at most {MAX_TABLE_LENGTH} of the characters a-z, 0-9 and _, optionally after a "
            f"schema and a dot, not {table!r}"
        )
    return table


def migration(table: str = DEFAULT_TABLE) -> str:
    """Return the SQL that creates what a ``PostgresBroker`` needs. To run it again is safe, also concurrently."""
    placeholders = {
        "table": checked_table(table),
        "index": _without_schema(table),  # an index is always in the schema of its table
        "key_seconds": KEY_SECONDS,
        "trim_step": TRIM_STEP,
    }
    script = _SCHEMA
    for name, value in placeholders.items():
        script = script.replace(f"{{{name}}}", str(value))
    return script


async def migrate(connection: PostgresConnection, table: str, read_timeout: float) -> None:
    """Create the tables and functions of a log if one of them is missing.

    Raises:
        BrokerDown: It took longer than ``read_timeout`` seconds. The server completes it or rolls it back.
        BrokerRefused: The role lacks a privilege, or the schema is missing.
    """
    tables = [table, *(f"{table}_{suffix}" for suffix in ("log", "keys", "outbox"))]
    functions = [f"{table}_{suffix}" for suffix in ("lock", "append", "relay", "begin_epoch", "trim")]
    try:
        missing = await connection.request(_SELECT_MISSING, (tables, functions), read_timeout)
        if missing:
            await connection.run_script(migration(table), read_timeout)
            logger.info("postgres_migrated", table=table, missing=[name for (name,) in missing])
    except OutcomeUnknown as error:
        raise BrokerDown(f"{table} could not be created: {error}") from error


def _without_schema(table: str) -> str:
    return table.rpartition(".")[2]
