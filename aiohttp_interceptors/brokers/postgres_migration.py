"""Making what is missing of a Hub's tables in PostgreSQL, by one process at a time."""

from __future__ import annotations

from ..errors import BrokerDown, OutcomeUnknown
from ..observe.logs import log as logger
from .postgres_schema import migration
from .postgres_session import PostgresSession

__all__ = ["migrate"]

# What another release has is there, too, and is not touched: that takes the printed migration.
_MISSING = """
SELECT name FROM unnest(%s::text[]) AS name WHERE to_regclass(name) IS NULL
UNION ALL SELECT name FROM unnest(%s::text[]) AS name WHERE to_regproc(name) IS NULL
"""


async def migrate(session: PostgresSession, table: str, limit: float) -> None:
    """Make the tables and functions of a Hub's log unless they are there.

    Raises:
        BrokerDown: It took longer than ``limit`` seconds; the server finishes it, or undoes it.
        BrokerRefused: The role may not, or the schema is missing.

    """
    names = [table, *(f"{table}_{end}" for end in ("log", "keys", "outbox"))]
    functions = [f"{table}_{end}" for end in ("lock", "append", "number", "rewind", "trim")]
    try:
        missing = await session.run(_MISSING, (names, functions), limit)
        if missing:
            await session.script(migration(table), limit)
            logger.info("postgres_migrated", table=table, missing=[name for (name,) in missing])
    except OutcomeUnknown as error:
        raise BrokerDown(f"{table} could not be made: {error}") from error
