//! Tables with the columns, types and keys of Kamailio 5.6 to 5.8.

use mysql::prelude::Queryable;

use crate::common::mariadb::Mariadb;

const LOCATION: &str = "CREATE TABLE location (
    id INT(10) UNSIGNED AUTO_INCREMENT PRIMARY KEY NOT NULL, ruid VARCHAR(64) DEFAULT '' NOT NULL,
    username VARCHAR(64) DEFAULT '' NOT NULL, domain VARCHAR(64) DEFAULT NULL, contact VARCHAR(512) DEFAULT '' NOT NULL,
    received VARCHAR(128) DEFAULT NULL, path VARCHAR(512) DEFAULT NULL,
    expires DATETIME DEFAULT '2030-05-28 21:32:15' NOT NULL, q FLOAT(10,2) DEFAULT 1.0 NOT NULL,
    callid VARCHAR(255) DEFAULT 'Default-Call-ID' NOT NULL, cseq INT(11) DEFAULT 1 NOT NULL,
    last_modified DATETIME DEFAULT '2000-01-01 00:00:01' NOT NULL, flags INT(11) DEFAULT 0 NOT NULL,
    cflags INT(11) DEFAULT 0 NOT NULL, user_agent VARCHAR(255) DEFAULT '' NOT NULL, socket VARCHAR(64) DEFAULT NULL,
    methods INT(11) DEFAULT NULL, instance VARCHAR(255) DEFAULT NULL, reg_id INT(11) DEFAULT 0 NOT NULL,
    server_id INT(11) DEFAULT 0 NOT NULL, connection_id INT(11) DEFAULT 0 NOT NULL,
    keepalive INT(11) DEFAULT 0 NOT NULL, `partition` INT(11) DEFAULT 0 NOT NULL, CONSTRAINT ruid_idx UNIQUE (ruid))";
const SUBSCRIBER: &str = "CREATE TABLE subscriber (
    id INT(10) UNSIGNED AUTO_INCREMENT PRIMARY KEY NOT NULL, username VARCHAR(64) DEFAULT '' NOT NULL,
    domain VARCHAR(64) DEFAULT '' NOT NULL, password VARCHAR(64) DEFAULT '' NOT NULL, ha1 VARCHAR(128) DEFAULT '' NOT NULL,
    ha1b VARCHAR(128) DEFAULT '' NOT NULL, CONSTRAINT account_idx UNIQUE (username, domain))";

/// A new database with them; its URL.
pub fn database(server: &Mariadb, name: &str) -> String {
    let url = server.database(name);
    let mut conn = server.connect(name);
    for sql in [
        "CREATE TABLE version (table_name VARCHAR(32) NOT NULL, table_version INT UNSIGNED DEFAULT 0 NOT NULL, UNIQUE (table_name))",
        LOCATION,
        "CREATE INDEX account_contact_idx ON location (username, domain, contact)",
        "CREATE INDEX expires_idx ON location (expires)",
        "CREATE INDEX tcpcon_idx ON location (connection_id)",
        "CREATE INDEX connection_idx ON location (server_id, connection_id)",
        SUBSCRIBER,
        "CREATE INDEX username_idx ON subscriber (username)",
        "INSERT INTO version VALUES ('location', 9), ('subscriber', 7)",
    ] {
        conn.query_drop(sql).expect(sql);
    }
    url
}
