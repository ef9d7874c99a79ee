-- Partyline's tables for SQLite. Column names and their meaning are those of Kamailio 5.6; location differs from Kamailio's
-- in that its primary key is what identifies a binding, and that expires and last_modified are seconds since
-- 1970-01-01 00:00 UTC. Statements end with a semicolon at the end of a line.
CREATE TABLE IF NOT EXISTS version (
    table_name TEXT NOT NULL PRIMARY KEY,
    table_version INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

-- The version rows stand before their tables: a table of this name without its row is somebody else's.
INSERT OR IGNORE INTO version (table_name, table_version) VALUES ('location', 1);
INSERT OR IGNORE INTO version (table_name, table_version) VALUES ('subscriber', 7);

CREATE TABLE IF NOT EXISTS location (
    username TEXT NOT NULL DEFAULT '',
    domain TEXT NOT NULL DEFAULT '',
    contact TEXT NOT NULL DEFAULT '',
    instance TEXT NOT NULL DEFAULT '',
    reg_id INTEGER NOT NULL DEFAULT 0,
    ruid TEXT NOT NULL DEFAULT '',
    received TEXT DEFAULT NULL,
    path TEXT DEFAULT NULL,
    expires INTEGER NOT NULL DEFAULT 0,
    q REAL NOT NULL DEFAULT -1,
    callid TEXT NOT NULL DEFAULT '',
    cseq INTEGER NOT NULL DEFAULT 0,
    last_modified INTEGER NOT NULL DEFAULT 0,
    flags INTEGER NOT NULL DEFAULT 0,
    cflags INTEGER NOT NULL DEFAULT 0,
    user_agent TEXT NOT NULL DEFAULT '',
    socket TEXT DEFAULT NULL,
    methods INTEGER DEFAULT NULL,
    server_id INTEGER NOT NULL DEFAULT 0,
    connection_id INTEGER NOT NULL DEFAULT 0,
    keepalive INTEGER NOT NULL DEFAULT 0,
    "partition" INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (username, domain, contact, instance, reg_id)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS subscriber (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    username TEXT NOT NULL DEFAULT '',
    domain TEXT NOT NULL DEFAULT '',
    password TEXT NOT NULL DEFAULT '',
    ha1 TEXT NOT NULL DEFAULT '',
    ha1b TEXT NOT NULL DEFAULT '',
    UNIQUE (username, domain)
);
