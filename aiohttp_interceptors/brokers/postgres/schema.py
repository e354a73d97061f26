"""The tables of a Hub's log in PostgreSQL, and the functions that write them: what a migration makes."""

from __future__ import annotations

import re

from ..._logging import log as logger
from ...exceptions import BrokerDown, OutcomeUnknown
from ...hub.broker import IDEMPOTENCY_WINDOW
from .connection import PostgresSession

__all__ = ["TABLE", "checked_table", "migrate", "migration"]


TABLE = "aiohttp_interceptors_records"
LONGEST = 50  # characters, so that there is room for what comes after it in other names
STEP = 1000  # entries that are deleted at once at most: who publishes waits for that
LIFE = IDEMPOTENCY_WINDOW * 1.25  # seconds that a key is remembered
_NAME = re.compile(r"([a-z_][a-z0-9_]*\.)?[a-z_][a-z0-9_]*", re.ASCII)

# One row has the end of the log. Who appends holds its lock until what it wrote can be seen, so that positions have no
# holes and their order is that of the commits. What is written in a transaction of the application goes to the outbox,
# and gets its position, under that lock, when that commits. An entry has the life of the server that took it, drawn
# anew whenever the server starts: an entry of another life under the same position is another entry. "eras" is where
# each former epoch ended.
_MIGRATION = """\
BEGIN;
SELECT pg_advisory_xact_lock(hashtext('{t}'));
CREATE TABLE IF NOT EXISTS {t} (
  position bigint PRIMARY KEY,
  topic text NOT NULL,
  payload bytea NOT NULL,
  life integer NOT NULL,
  created timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE IF NOT EXISTS {t}_log (
  only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  epoch text NOT NULL,
  last bigint NOT NULL,
  trimmed bigint NOT NULL,
  life integer NOT NULL DEFAULT 0,
  server timestamptz NOT NULL DEFAULT '-infinity',
  eras jsonb NOT NULL DEFAULT '{{}}'
) WITH (fillfactor = 10);
CREATE TABLE IF NOT EXISTS {t}_keys (
  key text PRIMARY KEY,
  position bigint NOT NULL,
  created timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS {index}_keys_created ON {t}_keys (created);
CREATE TABLE IF NOT EXISTS {t}_outbox (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  topic text NOT NULL,
  payload bytea NOT NULL,
  key text
);

CREATE OR REPLACE FUNCTION {t}_lock() RETURNS {t}_log LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE log {t}_log;
BEGIN
  SELECT * INTO log FROM {t}_log FOR UPDATE;
  IF NOT FOUND THEN
    INSERT INTO {t}_log (epoch, last, trimmed)
      SELECT left(replace(gen_random_uuid()::text, '-', ''), 10), coalesce(max(position), 0),
        coalesce(min(position) - 1, 0) FROM {t}
      ON CONFLICT DO NOTHING;
    IF FOUND THEN
      DELETE FROM {t}_keys;
    END IF;
    SELECT * INTO log FROM {t}_log FOR UPDATE;
  END IF;
  IF log.server <> pg_postmaster_start_time() THEN
    UPDATE {t}_log SET server = pg_postmaster_start_time(), life = (random() * 2147483647)::integer
      RETURNING * INTO log;
  END IF;
  RETURN log;
END $$;

CREATE OR REPLACE FUNCTION {t}_append(
  topics text[], payloads bytea[], keys text[], known text, known_position bigint, bell text,
  OUT era text, OUT server_life integer, OUT places bigint[]
) LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
  log {t}_log := {t}_lock();
  fresh boolean[];
  place bigint;
BEGIN
  era := log.epoch;
  server_life := log.life;
  IF log.epoch = known AND log.last < known_position THEN
    RETURN;
  END IF;
  IF array_remove(keys, NULL) = '{{}}' THEN
    places := ARRAY(SELECT log.last + n FROM generate_series(1, cardinality(topics)) AS n);
    log.last := log.last + cardinality(topics);
  ELSE
    FOR i IN 1 .. cardinality(topics) LOOP
      SELECT k.position INTO place FROM {t}_keys AS k
        WHERE k.key = keys[i] AND k.created > clock_timestamp() - make_interval(secs => {life});
      fresh[i] := NOT FOUND;
      IF fresh[i] THEN
        log.last := log.last + 1;
        place := log.last;
        IF keys[i] IS NOT NULL THEN
          INSERT INTO {t}_keys AS k (key, position) VALUES (keys[i], place)
            ON CONFLICT (key) DO UPDATE SET position = excluded.position, created = excluded.created;
        END IF;
      END IF;
      places[i] := place;
    END LOOP;
  END IF;
  INSERT INTO {t} (position, topic, payload, life)
    SELECT draft.place, draft.topic, draft.payload, log.life
    FROM unnest(topics, payloads, places, fresh) AS draft (topic, payload, place, fresh)
    WHERE draft.fresh IS NOT FALSE;
  UPDATE {t}_log SET last = log.last;
  IF bell IS NOT NULL THEN
    PERFORM pg_notify(bell, '');
  END IF;
END $$;

CREATE OR REPLACE FUNCTION {t}_number() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
  PERFORM {t}_append(ARRAY[NEW.topic], ARRAY[NEW.payload], ARRAY[NEW.key], NULL, NULL, NULL);
  DELETE FROM {t}_outbox WHERE id = NEW.id;
  RETURN NULL;
END $$;
DROP TRIGGER IF EXISTS number ON {t}_outbox;
CREATE CONSTRAINT TRIGGER number AFTER INSERT ON {t}_outbox DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION {t}_number();

CREATE OR REPLACE FUNCTION {t}_rewind(
  known text, known_position bigint, lives integer[], left_epoch text, following text
) RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
  log {t}_log := {t}_lock();
  border bigint;
BEGIN
  IF log.epoch = known THEN
    SELECT max(position) INTO border FROM {t} WHERE life = ANY (lives) AND position < known_position;
    border := coalesce(border, log.trimmed);
    UPDATE {t}_log SET epoch = following, eras = jsonb_build_object(known, border, left_epoch, border) || (
      SELECT coalesce(jsonb_object_agg(key, least(value::bigint, border)), '{{}}') FROM jsonb_each_text(log.eras)
    );
  END IF;
END $$;

CREATE OR REPLACE FUNCTION {t}_trim(
  most bigint, age double precision
) RETURNS boolean LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
  log {t}_log;
  goal bigint;
BEGIN
  SELECT * INTO log FROM {t}_log FOR UPDATE SKIP LOCKED;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  SELECT greatest(max(position) FILTER (WHERE created < clock_timestamp() - make_interval(secs => age)),
      log.last - most) INTO goal
    FROM (SELECT position, created FROM {t} WHERE position > log.trimmed ORDER BY position LIMIT {step}) AS oldest;
  goal := least(goal, log.trimmed + {step});
  IF goal > log.trimmed THEN
    DELETE FROM {t} WHERE position > log.trimmed AND position <= goal;
    UPDATE {t}_log SET trimmed = goal;
  END IF;
  DELETE FROM {t}_keys WHERE key IN (
    SELECT key FROM {t}_keys WHERE created < clock_timestamp() - make_interval(secs => {life})
    ORDER BY created LIMIT {step}
  );
  RETURN goal = log.trimmed + {step};
END $$;
COMMIT;
"""


def checked_table(table: str) -> str:
    """Return a table's name as it is. Raises ``TypeError`` or ``ValueError``."""
    if not isinstance(table, str):
        raise TypeError(f"table is the name of a table, not {table!r}")
    if not _NAME.fullmatch(table) or len(table.rpartition(".")[2]) > LONGEST:
        raise ValueError(
            f"table is a name of at most {LONGEST} of the characters a-z, 0-9 and _, perhaps after that of a schema "
            f"and a dot, not {table!r}"
        )
    return table


def migration(table: str = TABLE) -> str:
    """Return the SQL that makes what a ``PostgresBroker`` needs. To run it again is safe, also by several at once."""
    name = checked_table(table)
    return _MIGRATION.format(t=name, index=name.rpartition(".")[2], life=LIFE, step=STEP)


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
