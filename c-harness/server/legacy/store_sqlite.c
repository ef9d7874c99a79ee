/* SQLite: one connection, prepared statements, write-ahead log with synchronous=FULL, so what is committed is on disk. */
#include "store.h"

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { USER, UPDATE, INSERT, REMOVE, REMOVE_ALL, LISTED, BEGIN, COMMIT, ROLLBACK, STATEMENTS };

static const char *const texts[STATEMENTS] = {
    [USER] = "SELECT username FROM subscriber WHERE username=?1 AND domain=?2",
    [UPDATE] = "UPDATE location SET expires=?4, q=?5, callid=?6, cseq=?7, last_modified=?8, user_agent=?9, received=?10 "
               "WHERE username=?1 AND domain=?2 AND contact=?3",
    [INSERT] = "INSERT INTO location (username, domain, contact, expires, q, callid, cseq, last_modified, user_agent, received, ruid) "
               "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
    [REMOVE] = "DELETE FROM location WHERE username=?1 AND domain=?2 AND contact=?3",
    [REMOVE_ALL] = "DELETE FROM location WHERE username=?1 AND domain=?2",
    [LISTED] = "SELECT contact, q, expires FROM location WHERE username=?1 AND domain=?2 AND expires>?3",
    [BEGIN] = "BEGIN IMMEDIATE",
    [COMMIT] = "COMMIT",
    [ROLLBACK] = "ROLLBACK",
};

static const char schema[] =
    "CREATE TABLE IF NOT EXISTS version (table_name TEXT NOT NULL PRIMARY KEY, table_version INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;"
    "INSERT OR IGNORE INTO version (table_name, table_version) VALUES ('location', 1);"
    "INSERT OR IGNORE INTO version (table_name, table_version) VALUES ('subscriber', 7);"
    "CREATE TABLE IF NOT EXISTS location (username TEXT NOT NULL DEFAULT '', domain TEXT NOT NULL DEFAULT '',"
    " contact TEXT NOT NULL DEFAULT '', instance TEXT NOT NULL DEFAULT '', reg_id INTEGER NOT NULL DEFAULT 0,"
    " ruid TEXT NOT NULL DEFAULT '', received TEXT DEFAULT NULL, path TEXT DEFAULT NULL, expires INTEGER NOT NULL DEFAULT 0,"
    " q REAL NOT NULL DEFAULT -1, callid TEXT NOT NULL DEFAULT '', cseq INTEGER NOT NULL DEFAULT 0,"
    " last_modified INTEGER NOT NULL DEFAULT 0, flags INTEGER NOT NULL DEFAULT 0, cflags INTEGER NOT NULL DEFAULT 0,"
    " user_agent TEXT NOT NULL DEFAULT '', socket TEXT DEFAULT NULL, methods INTEGER DEFAULT NULL,"
    " server_id INTEGER NOT NULL DEFAULT 0, connection_id INTEGER NOT NULL DEFAULT 0, keepalive INTEGER NOT NULL DEFAULT 0,"
    " \"partition\" INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (username, domain, contact, instance, reg_id)) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS subscriber (id INTEGER PRIMARY KEY AUTOINCREMENT, username TEXT NOT NULL DEFAULT '',"
    " domain TEXT NOT NULL DEFAULT '', password TEXT NOT NULL DEFAULT '', ha1 TEXT NOT NULL DEFAULT '',"
    " ha1b TEXT NOT NULL DEFAULT '', UNIQUE (username, domain));";

struct sqlite {
  struct store store;
  sqlite3 *db;
  sqlite3_stmt *statements[STATEMENTS];
};

static sqlite3_stmt *with_aor(struct sqlite *sqlite, int which, const char *user, const char *domain) {
  sqlite3_stmt *statement = sqlite->statements[which];
  sqlite3_bind_text(statement, 1, user, -1, SQLITE_STATIC);
  sqlite3_bind_text(statement, 2, domain, -1, SQLITE_STATIC);
  return statement;
}

/* One step, then reset: 1 when a row came, 0 when none did. */
static int once(struct sqlite *sqlite, sqlite3_stmt *statement) {
  int code = sqlite3_step(statement);
  if (code != SQLITE_ROW && code != SQLITE_DONE) fprintf(stderr, "server: sqlite: %s\n", sqlite3_errmsg(sqlite->db));
  sqlite3_reset(statement);
  return code == SQLITE_ROW ? 1 : code == SQLITE_DONE ? 0 : -1;
}

static int sqlite_user(struct store *store, const char *user, const char *domain) {
  struct sqlite *sqlite = (struct sqlite *)store;
  return once(sqlite, with_aor(sqlite, USER, user, domain));
}

static int sqlite_begin(struct store *store) {
  struct sqlite *sqlite = (struct sqlite *)store;
  return once(sqlite, sqlite->statements[BEGIN]);
}

static int sqlite_end(struct store *store, int commit) {
  struct sqlite *sqlite = (struct sqlite *)store;
  return once(sqlite, sqlite->statements[commit ? COMMIT : ROLLBACK]);
}

static int write_binding(struct sqlite *sqlite, int which, const struct binding *binding) {
  char ruid[64];
  sqlite3_stmt *statement = with_aor(sqlite, which, binding->user, binding->domain);
  sqlite3_bind_text(statement, 3, binding->contact, -1, SQLITE_STATIC);
  sqlite3_bind_int64(statement, 4, binding->expires);
  sqlite3_bind_double(statement, 5, binding->q);
  sqlite3_bind_text(statement, 6, binding->callid, -1, SQLITE_STATIC);
  sqlite3_bind_int(statement, 7, binding->cseq);
  sqlite3_bind_int64(statement, 8, binding->now);
  sqlite3_bind_text(statement, 9, binding->user_agent, -1, SQLITE_STATIC);
  sqlite3_bind_text(statement, 10, binding->received, -1, SQLITE_STATIC);
  if (which == INSERT) {
    store_ruid(ruid);
    sqlite3_bind_text(statement, 11, ruid, -1, SQLITE_STATIC);
  }
  return once(sqlite, statement);
}

static int sqlite_save(struct store *store, const struct binding *binding) {
  struct sqlite *sqlite = (struct sqlite *)store;
  int code = write_binding(sqlite, UPDATE, binding);
  return code < 0 || sqlite3_changes(sqlite->db) > 0 ? code : write_binding(sqlite, INSERT, binding);
}

static int sqlite_remove(struct store *store, const char *user, const char *domain, const char *contact) {
  struct sqlite *sqlite = (struct sqlite *)store;
  sqlite3_stmt *statement = with_aor(sqlite, contact != NULL ? REMOVE : REMOVE_ALL, user, domain);
  if (contact != NULL) sqlite3_bind_text(statement, 3, contact, -1, SQLITE_STATIC);
  return once(sqlite, statement);
}

static int sqlite_list(struct store *store, const char *user, const char *domain, time_t now, store_each *each, void *arg) {
  struct sqlite *sqlite = (struct sqlite *)store;
  sqlite3_stmt *statement = with_aor(sqlite, LISTED, user, domain);
  sqlite3_bind_int64(statement, 3, now);
  int code;
  while ((code = sqlite3_step(statement)) == SQLITE_ROW)
    each(arg, (const char *)sqlite3_column_text(statement, 0), sqlite3_column_double(statement, 1),
         (time_t)sqlite3_column_int64(statement, 2));
  if (code != SQLITE_DONE) fprintf(stderr, "server: sqlite: %s\n", sqlite3_errmsg(sqlite->db));
  sqlite3_reset(statement);
  return code == SQLITE_DONE ? 0 : -1;
}

static void sqlite_close(struct store *store) {
  struct sqlite *sqlite = (struct sqlite *)store;
  for (int i = 0; i < STATEMENTS; i++) sqlite3_finalize(sqlite->statements[i]);
  sqlite3_close(sqlite->db);
  free(sqlite);
}

/* 0 when the table has the version that these statements were written for. */
static int version(struct sqlite *sqlite, const char *table, int wanted) {
  sqlite3_stmt *statement = NULL;
  int found = -1;
  if (sqlite3_prepare_v2(sqlite->db, "SELECT table_version FROM version WHERE table_name=?1", -1, &statement, NULL) == SQLITE_OK) {
    sqlite3_bind_text(statement, 1, table, -1, SQLITE_STATIC);
    if (sqlite3_step(statement) == SQLITE_ROW) found = sqlite3_column_int(statement, 0);
  }
  sqlite3_finalize(statement);
  if (found == wanted) return 0;
  fprintf(stderr, "server: sqlite: table %s has version %d, this server knows version %d\n", table, found, wanted);
  return -1;
}

struct store *store_sqlite_open(const char *path) {
  static const struct store_ops ops = {sqlite_user,   sqlite_begin, sqlite_end,  sqlite_save,
                                       sqlite_remove, sqlite_list,  sqlite_close};
  struct sqlite *sqlite = calloc(1, sizeof *sqlite);
  if (sqlite == NULL) {
    fprintf(stderr, "server: no memory for the database connection\n");
    return NULL;
  }
  sqlite->store.ops = &ops;
  int code = sqlite3_open_v2(path, &sqlite->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, NULL);
  if (code == SQLITE_OK) {
    sqlite3_busy_timeout(sqlite->db, 5000);
    code = sqlite3_exec(sqlite->db, "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;", NULL, NULL, NULL);
  }
  if (code == SQLITE_OK) code = sqlite3_exec(sqlite->db, schema, NULL, NULL, NULL);
  for (int i = 0; i < STATEMENTS && code == SQLITE_OK; i++)
    code = sqlite3_prepare_v3(sqlite->db, texts[i], -1, SQLITE_PREPARE_PERSISTENT, &sqlite->statements[i], NULL);
  if (code != SQLITE_OK) {
    fprintf(stderr, "server: sqlite: %s: %s\n", path, sqlite->db != NULL ? sqlite3_errmsg(sqlite->db) : "no memory");
  } else if (version(sqlite, "location", LOCATION_VERSION) == 0 && version(sqlite, "subscriber", SUBSCRIBER_VERSION) == 0) {
    return &sqlite->store;
  }
  sqlite_close(&sqlite->store);
  return NULL;
}
