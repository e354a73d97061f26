-- The tables and functions of a PostgresBroker. To run this again is safe, also for several clients at once.
--
-- A client that appends locks the single row of the log table until its transaction has ended. Therefore positions
-- have no holes, and their order is the order of the commits.
--
-- An entry of a caller's transaction goes into the outbox first. A deferred trigger appends it to the log when the
-- transaction commits, so that a long transaction does not hold the lock.

BEGIN;
SELECT pg_advisory_xact_lock(hashtext('{table}'));

-- The entries.
--   position         the offset, which is a keyword of SQL
--   run_id           of the server when it stored the entry. Two entries with the same position are the same entry
--                    only if their run_id is the same.
CREATE TABLE IF NOT EXISTS {table} (
    position bigint PRIMARY KEY,
    topic text NOT NULL,
    payload bytea NOT NULL,
    run_id integer NOT NULL,
    published_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- One row: the state of the log.
--   epoch            of new entries
--   last_position    of the newest entry that was ever appended
--   trimmed_through  position of the newest entry that was deleted, or 0
--   run_id           a random number, drawn again after each start of the server
--   server_start     when the server started, as it was when run_id was drawn
--   past_epochs      by epoch, the last position that later epochs share with it
-- Each append updates the row: the free space of its page keeps these updates off the index.
CREATE TABLE IF NOT EXISTS {table}_log (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch text NOT NULL,
    last_position bigint NOT NULL,
    trimmed_through bigint NOT NULL,
    run_id integer NOT NULL DEFAULT 0,
    server_start timestamptz NOT NULL DEFAULT '-infinity',
    past_epochs jsonb NOT NULL DEFAULT '{}'
) WITH (fillfactor = 10);

-- Idempotency keys, and the positions of the entries that were appended with them.
CREATE TABLE IF NOT EXISTS {table}_keys (
    key text PRIMARY KEY,
    position bigint NOT NULL,
    used_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS {index}_keys_used_at ON {table}_keys (used_at);

-- The entries of transactions that have not been committed.
CREATE TABLE IF NOT EXISTS {table}_outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic text NOT NULL,
    payload bytea NOT NULL,
    key text
);

-- Locks the log and returns its state. Creates the log if there is none.
CREATE OR REPLACE FUNCTION {table}_lock() RETURNS {table}_log LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    log {table}_log;
BEGIN
    SELECT * INTO log FROM {table}_log FOR UPDATE;
    IF NOT FOUND THEN
        INSERT INTO {table}_log (epoch, last_position, trimmed_through)
            SELECT left(replace(gen_random_uuid()::text, '-', ''), 10), coalesce(max(position), 0),
                coalesce(min(position) - 1, 0) FROM {table}
            ON CONFLICT DO NOTHING;
        IF FOUND THEN
            DELETE FROM {table}_keys;
        END IF;
        SELECT * INTO log FROM {table}_log FOR UPDATE;
    END IF;
    IF log.server_start <> pg_postmaster_start_time() THEN
        UPDATE {table}_log
            SET server_start = pg_postmaster_start_time(), run_id = (random() * 2147483647)::integer
            RETURNING * INTO log;
    END IF;
    RETURN log;
END $$;

-- Appends entries and returns their positions; for a key in use, the position of the entry that it was used with.
-- Appends nothing and returns no positions if the log ends before the known position, so that it has lost entries.
--   channel          to notify, or NULL
CREATE OR REPLACE FUNCTION {table}_append(
    topics text[], payloads bytea[], keys text[], known_epoch text, known_position bigint, channel text,
    OUT log_epoch text, OUT log_run_id integer, OUT positions bigint[]
) LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    log {table}_log := {table}_lock();
    is_new boolean[];
    entry_position bigint;
BEGIN
    log_epoch := log.epoch;
    log_run_id := log.run_id;
    IF log.epoch = known_epoch AND log.last_position < known_position THEN
        RETURN;
    END IF;
    IF array_remove(keys, NULL) = '{}' THEN
        positions := ARRAY(SELECT log.last_position + n FROM generate_series(1, cardinality(topics)) AS n);
        log.last_position := log.last_position + cardinality(topics);
    ELSE
        FOR i IN 1 .. cardinality(topics) LOOP
            SELECT k.position INTO entry_position FROM {table}_keys AS k
                WHERE k.key = keys[i] AND k.used_at > clock_timestamp() - make_interval(secs => {key_seconds});
            is_new[i] := NOT FOUND;
            IF is_new[i] THEN
                log.last_position := log.last_position + 1;
                entry_position := log.last_position;
                IF keys[i] IS NOT NULL THEN
                    INSERT INTO {table}_keys AS k (key, position) VALUES (keys[i], entry_position)
                        ON CONFLICT (key) DO UPDATE SET position = excluded.position, used_at = excluded.used_at;
                END IF;
            END IF;
            positions[i] := entry_position;
        END LOOP;
    END IF;
    INSERT INTO {table} (position, topic, payload, run_id)
        SELECT request.position, request.topic, request.payload, log.run_id
        FROM unnest(topics, payloads, positions, is_new) AS request (topic, payload, position, is_new)
        WHERE request.is_new IS NOT FALSE;
    UPDATE {table}_log SET last_position = log.last_position;
    IF channel IS NOT NULL THEN
        PERFORM pg_notify(channel, '');
    END IF;
END $$;

-- Appends an entry of the outbox at the commit. Does not notify: NOTIFY locks the whole database until the commit.
CREATE OR REPLACE FUNCTION {table}_relay() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM {table}_append(ARRAY[NEW.topic], ARRAY[NEW.payload], ARRAY[NEW.key], NULL, NULL, NULL);
    DELETE FROM {table}_outbox WHERE id = NEW.id;
    RETURN NULL;
END $$;
DROP TRIGGER IF EXISTS relay ON {table}_outbox;
CREATE CONSTRAINT TRIGGER relay AFTER INSERT ON {table}_outbox DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION {table}_relay();

-- Begins another epoch, because the server has lost the entry at a position. Does nothing if the current epoch is not
-- known_epoch: another client was first. The new epoch shares the entries through the last one before the lost position
-- that was stored in a known run of the server.
--   left_epoch       an epoch that the client had read before, or known_epoch
CREATE OR REPLACE FUNCTION {table}_begin_epoch(
    known_epoch text, lost_position bigint, known_run_ids integer[], left_epoch text, next_epoch text
) RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    log {table}_log := {table}_lock();
    shared_through bigint;
BEGIN
    IF log.epoch = known_epoch THEN
        SELECT max(position) INTO shared_through FROM {table}
            WHERE run_id = ANY (known_run_ids) AND position < lost_position;
        shared_through := coalesce(shared_through, log.trimmed_through);
        UPDATE {table}_log SET
            epoch = next_epoch,
            past_epochs = jsonb_build_object(known_epoch, shared_through, left_epoch, shared_through) || (
                SELECT coalesce(jsonb_object_agg(key, least(value::bigint, shared_through)), '{}')
                FROM jsonb_each_text(log.past_epochs)
            );
    END IF;
END $$;

-- Deletes a limited number of the entries that exceed the retention, and of expired idempotency keys. Returns whether
-- there may be more entries to delete. Does nothing while another client has the lock.
--   max_age          in seconds, or NULL
CREATE OR REPLACE FUNCTION {table}_trim(
    max_records bigint, max_age double precision
) RETURNS boolean LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    log {table}_log;
    trim_end bigint;
BEGIN
    SELECT * INTO log FROM {table}_log FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    SELECT greatest(
            max(position) FILTER (WHERE published_at < clock_timestamp() - make_interval(secs => max_age)),
            log.last_position - max_records
        ) INTO trim_end
        FROM (
            SELECT position, published_at FROM {table}
            WHERE position > log.trimmed_through ORDER BY position LIMIT {trim_step}
        ) AS oldest;
    trim_end := least(trim_end, log.trimmed_through + {trim_step});
    IF trim_end > log.trimmed_through THEN
        DELETE FROM {table} WHERE position > log.trimmed_through AND position <= trim_end;
        UPDATE {table}_log SET trimmed_through = trim_end;
    END IF;
    DELETE FROM {table}_keys WHERE key IN (
        SELECT key FROM {table}_keys WHERE used_at < clock_timestamp() - make_interval(secs => {key_seconds})
        ORDER BY used_at LIMIT {trim_step}
    );
    RETURN trim_end = log.trimmed_through + {trim_step};
END $$;

COMMIT;
