-- Partyline's tables for MySQL and MariaDB. Column names and their meaning are those of Kamailio 5.6; location differs from
-- Kamailio's in that
--   * its primary key is what identifies a binding, so that a refresh touches one B-tree and nothing else;
--   * expires and last_modified are seconds since 1970-01-01 00:00 UTC;
--   * text is VARBINARY: it is compared byte for byte, never converted and never padded.
-- Statements end with a semicolon at the end of a line.
CREATE TABLE IF NOT EXISTS version (
    table_name VARCHAR(32) NOT NULL,
    table_version INT UNSIGNED NOT NULL DEFAULT 0,
    PRIMARY KEY (table_name)
) ENGINE=InnoDB DEFAULT CHARSET=latin1;

-- The version rows stand before their tables: a table of this name without its row is somebody else's.
INSERT IGNORE INTO version (table_name, table_version) VALUES ('location', 1);
INSERT IGNORE INTO version (table_name, table_version) VALUES ('subscriber', 7);

CREATE TABLE IF NOT EXISTS location (
    username VARBINARY(64) NOT NULL DEFAULT '',
    domain VARBINARY(64) NOT NULL DEFAULT '',
    contact VARBINARY(512) NOT NULL DEFAULT '',
    instance VARBINARY(255) NOT NULL DEFAULT '',
    reg_id INT UNSIGNED NOT NULL DEFAULT 0,
    ruid VARBINARY(64) NOT NULL DEFAULT '',
    received VARBINARY(128) DEFAULT NULL,
    path VARBINARY(512) DEFAULT NULL,
    expires BIGINT NOT NULL DEFAULT 0,
    q FLOAT NOT NULL DEFAULT -1,
    callid VARBINARY(255) NOT NULL DEFAULT '',
    cseq BIGINT NOT NULL DEFAULT 0,
    last_modified BIGINT NOT NULL DEFAULT 0,
    flags INT NOT NULL DEFAULT 0,
    cflags INT NOT NULL DEFAULT 0,
    user_agent VARBINARY(255) NOT NULL DEFAULT '',
    socket VARBINARY(64) DEFAULT NULL,
    methods BIGINT DEFAULT NULL,
    server_id INT NOT NULL DEFAULT 0,
    connection_id INT NOT NULL DEFAULT 0,
    keepalive INT NOT NULL DEFAULT 0,
    `partition` INT NOT NULL DEFAULT 0,
    PRIMARY KEY (username, domain, contact, instance, reg_id)
) ENGINE=InnoDB DEFAULT CHARSET=latin1;

CREATE TABLE IF NOT EXISTS subscriber (
    id INT UNSIGNED NOT NULL AUTO_INCREMENT,
    username VARCHAR(64) NOT NULL DEFAULT '',
    domain VARCHAR(64) NOT NULL DEFAULT '',
    password VARCHAR(64) NOT NULL DEFAULT '',
    ha1 VARCHAR(128) NOT NULL DEFAULT '',
    ha1b VARCHAR(128) NOT NULL DEFAULT '',
    PRIMARY KEY (id),
    UNIQUE KEY account_idx (username, domain)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
