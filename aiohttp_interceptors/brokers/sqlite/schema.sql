-- The tables of a SqliteBroker. The database has user_version 1.
-- The statements are separated by semicolons, which no comment may contain.

-- One row: the state of the log.
--   epoch            of new entries
--   last_offset      of the newest entry that was ever appended
--   trimmed_through  offset of the newest entry that was deleted, or 0
--   identity         of the file: its inode, and with synchronous=NORMAL the boot ID of the machine.
--                    Another one means that the file is a copy, or may have lost transactions in a crash.
CREATE TABLE log (
    epoch TEXT NOT NULL,
    last_offset INTEGER NOT NULL,
    trimmed_through INTEGER NOT NULL,
    identity TEXT NOT NULL
);

-- Earlier epochs, oldest first.
--   last_offset      of the last entry of the epoch that later epochs kept
CREATE TABLE past_epoch (
    number INTEGER PRIMARY KEY,
    epoch TEXT NOT NULL,
    last_offset INTEGER NOT NULL
);

-- The entries. The payload is the last column, so that reading the others takes one page for each entry.
--   published_at     Unix time in seconds
CREATE TABLE entry (
    offset INTEGER PRIMARY KEY,
    published_at REAL NOT NULL,
    topic TEXT NOT NULL,
    payload BLOB NOT NULL
);

-- Idempotency keys in the order of their first use, and the entries that were appended with them.
CREATE TABLE idempotency_key (
    number INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    used_at REAL NOT NULL,
    offset INTEGER NOT NULL
);
