/* MySQL and MariaDB through libmariadb: one connection, prepared statements, autocommit. A connection that is lost is opened
 * again once per statement; a statement that fails after that has failed. */
#include "store.h"

#include <errmsg.h>
#include <mysql.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { USER, UPDATE, INSERT, REMOVE, REMOVE_ALL, LISTED, STATEMENTS };

static const char *const texts[STATEMENTS] = {
    [USER] = "SELECT username FROM subscriber WHERE username=? AND domain=?",
    [UPDATE] = "UPDATE location SET expires=?, q=?, callid=?, cseq=?, last_modified=?, user_agent=?, received=? "
               "WHERE username=? AND domain=? AND contact=?",
    [INSERT] = "INSERT INTO location (expires, q, callid, cseq, last_modified, user_agent, received, username, domain, contact, ruid) "
               "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    [REMOVE] = "DELETE FROM location WHERE username=? AND domain=? AND contact=?",
    [REMOVE_ALL] = "DELETE FROM location WHERE username=? AND domain=?",
    [LISTED] = "SELECT contact, q, expires FROM location WHERE username=? AND domain=? AND expires>?",
};

static const char *const schema[] = {
    "CREATE TABLE IF NOT EXISTS version (table_name VARCHAR(32) NOT NULL, table_version INT UNSIGNED NOT NULL DEFAULT 0,"
    " PRIMARY KEY (table_name)) ENGINE=InnoDB DEFAULT CHARSET=latin1",
    "INSERT IGNORE INTO version (table_name, table_version) VALUES ('location', 1), ('subscriber', 7)",
    "CREATE TABLE IF NOT EXISTS location (username VARBINARY(64) NOT NULL DEFAULT '', domain VARBINARY(64) NOT NULL DEFAULT '',"
    " contact VARBINARY(512) NOT NULL DEFAULT '', instance VARBINARY(255) NOT NULL DEFAULT '', reg_id INT UNSIGNED NOT NULL DEFAULT 0,"
    " ruid VARBINARY(64) NOT NULL DEFAULT '', received VARBINARY(128) DEFAULT NULL, path VARBINARY(512) DEFAULT NULL,"
    " expires BIGINT NOT NULL DEFAULT 0, q FLOAT NOT NULL DEFAULT -1, callid VARBINARY(255) NOT NULL DEFAULT '',"
    " cseq BIGINT NOT NULL DEFAULT 0, last_modified BIGINT NOT NULL DEFAULT 0, flags INT NOT NULL DEFAULT 0,"
    " cflags INT NOT NULL DEFAULT 0, user_agent VARBINARY(255) NOT NULL DEFAULT '', socket VARBINARY(64) DEFAULT NULL,"
    " methods BIGINT DEFAULT NULL, server_id INT NOT NULL DEFAULT 0, connection_id INT NOT NULL DEFAULT 0,"
    " keepalive INT NOT NULL DEFAULT 0, `partition` INT NOT NULL DEFAULT 0,"
    " PRIMARY KEY (username, domain, contact, instance, reg_id)) ENGINE=InnoDB DEFAULT CHARSET=latin1",
    "CREATE TABLE IF NOT EXISTS subscriber (id INT UNSIGNED NOT NULL AUTO_INCREMENT, username VARCHAR(64) NOT NULL DEFAULT '',"
    " domain VARCHAR(64) NOT NULL DEFAULT '', password VARCHAR(64) NOT NULL DEFAULT '', ha1 VARCHAR(128) NOT NULL DEFAULT '',"
    " ha1b VARCHAR(128) NOT NULL DEFAULT '', PRIMARY KEY (id), UNIQUE KEY account_idx (username, domain))"
    " ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin",
};

struct mysql {
  struct store store;
  char user[64], password[64], host[128], database[64];
  unsigned port;
  MYSQL *db;
  MYSQL_STMT *statements[STATEMENTS];
};

static void disconnect(struct mysql *mysql) {
  for (int i = 0; i < STATEMENTS; i++) {
    if (mysql->statements[i] != NULL) mysql_stmt_close(mysql->statements[i]);
    mysql->statements[i] = NULL;
  }
  if (mysql->db != NULL) mysql_close(mysql->db);
  mysql->db = NULL;
}

static int failed(struct mysql *mysql, const char *text) {
  fprintf(stderr, "server: mysql: %s:%u: %s\n", mysql->host, mysql->port, text);
  return -1;
}

/* Connects and creates what is missing. */
static int connect_to(struct mysql *mysql) {
  mysql->db = mysql_init(NULL);
  if (mysql->db == NULL) return failed(mysql, "no memory");
  mysql_options(mysql->db, MYSQL_SET_CHARSET_NAME, "utf8mb4");
  unsigned timeout = 5;
  mysql_options(mysql->db, MYSQL_OPT_CONNECT_TIMEOUT, &timeout);
  /* CLIENT_FOUND_ROWS: an update that finds its row and changes nothing is still an update. */
  if (mysql_real_connect(mysql->db, mysql->host, mysql->user, mysql->password, mysql->database, mysql->port, NULL,
                         CLIENT_FOUND_ROWS) == NULL)
    return failed(mysql, mysql_error(mysql->db));
  for (size_t i = 0; i < sizeof schema / sizeof *schema; i++)
    if (mysql_query(mysql->db, schema[i]) != 0) return failed(mysql, mysql_error(mysql->db));
  return 0;
}

static MYSQL_STMT *prepared(struct mysql *mysql, int which) {
  if (mysql->db == NULL && connect_to(mysql) != 0) {
    disconnect(mysql);
    return NULL;
  }
  if (mysql->statements[which] == NULL) {
    MYSQL_STMT *statement = mysql_stmt_init(mysql->db);
    if (statement != NULL && mysql_stmt_prepare(statement, texts[which], strlen(texts[which])) != 0) {
      failed(mysql, mysql_stmt_error(statement));
      mysql_stmt_close(statement);
      statement = NULL;
    }
    mysql->statements[which] = statement;
  }
  return mysql->statements[which];
}

static int lost(unsigned code) { return code == CR_SERVER_GONE_ERROR || code == CR_SERVER_LOST; }

/* Runs a statement; NULL when it failed, said on stderr. */
static MYSQL_STMT *run(struct mysql *mysql, int which, MYSQL_BIND *parameters) {
  for (int attempt = 0; attempt < 2; attempt++) {
    MYSQL_STMT *statement = prepared(mysql, which);
    if (statement == NULL) {
      if (mysql->db != NULL && lost(mysql_errno(mysql->db))) disconnect(mysql);
      continue;
    }
    if (mysql_stmt_bind_param(statement, parameters) == 0 && mysql_stmt_execute(statement) == 0) return statement;
    unsigned code = mysql_stmt_errno(statement);
    failed(mysql, mysql_stmt_error(statement));
    if (!lost(code)) return NULL;
    disconnect(mysql);
  }
  return NULL;
}

static void bind_text(MYSQL_BIND *bind, const char *text) {
  memset(bind, 0, sizeof *bind);
  bind->buffer_type = text != NULL ? MYSQL_TYPE_STRING : MYSQL_TYPE_NULL;
  bind->buffer = (void *)text;
  bind->buffer_length = text != NULL ? strlen(text) : 0;
}

static int mysql_user(struct store *store, const char *user, const char *domain) {
  MYSQL_BIND parameters[2];
  bind_text(&parameters[0], user);
  bind_text(&parameters[1], domain);
  MYSQL_STMT *statement = run((struct mysql *)store, USER, parameters);
  if (statement == NULL) return -1;
  if (mysql_stmt_store_result(statement) != 0) return failed((struct mysql *)store, mysql_stmt_error(statement));
  int found = mysql_stmt_num_rows(statement) > 0;
  mysql_stmt_free_result(statement);
  return found;
}

static int command(struct mysql *mysql, const char *text) {
  if (mysql->db == NULL && connect_to(mysql) != 0) {
    disconnect(mysql);
    return -1;
  }
  return mysql_query(mysql->db, text) == 0 ? 0 : failed(mysql, mysql_error(mysql->db));
}

static int mysql_begin(struct store *store) {
  struct mysql *mysql = (struct mysql *)store;
  if (mysql->db != NULL && mysql_ping(mysql->db) != 0) disconnect(mysql);
  return command(mysql, "START TRANSACTION");
}

static int mysql_end(struct store *store, int commit) { return command((struct mysql *)store, commit ? "COMMIT" : "ROLLBACK"); }

static void bind_number(MYSQL_BIND *bind, enum enum_field_types type, void *number) {
  memset(bind, 0, sizeof *bind);
  bind->buffer_type = type;
  bind->buffer = number;
}

static int mysql_save(struct store *store, const struct binding *binding) {
  char ruid[64];
  long long expires = binding->expires, now = binding->now, cseq = binding->cseq;
  double q = binding->q;
  MYSQL_BIND parameters[11];
  bind_number(&parameters[0], MYSQL_TYPE_LONGLONG, &expires);
  bind_number(&parameters[1], MYSQL_TYPE_DOUBLE, &q);
  bind_text(&parameters[2], binding->callid);
  bind_number(&parameters[3], MYSQL_TYPE_LONGLONG, &cseq);
  bind_number(&parameters[4], MYSQL_TYPE_LONGLONG, &now);
  bind_text(&parameters[5], binding->user_agent);
  bind_text(&parameters[6], binding->received);
  bind_text(&parameters[7], binding->user);
  bind_text(&parameters[8], binding->domain);
  bind_text(&parameters[9], binding->contact);
  MYSQL_STMT *statement = run((struct mysql *)store, UPDATE, parameters);
  if (statement == NULL) return -1;
  if (mysql_stmt_affected_rows(statement) > 0) return 0;
  store_ruid(ruid);
  bind_text(&parameters[10], ruid);
  return run((struct mysql *)store, INSERT, parameters) == NULL ? -1 : 0;
}

static int mysql_remove(struct store *store, const char *user, const char *domain, const char *contact) {
  MYSQL_BIND parameters[3];
  bind_text(&parameters[0], user);
  bind_text(&parameters[1], domain);
  bind_text(&parameters[2], contact);
  return run((struct mysql *)store, contact != NULL ? REMOVE : REMOVE_ALL, parameters) == NULL ? -1 : 0;
}

static int mysql_list(struct store *store, const char *user, const char *domain, time_t now, store_each *each, void *arg) {
  char contact[513];
  unsigned long contact_length = 0;
  long long since = now, expires = 0;
  double q = 0;
  MYSQL_BIND parameters[3], columns[3];
  bind_text(&parameters[0], user);
  bind_text(&parameters[1], domain);
  bind_number(&parameters[2], MYSQL_TYPE_LONGLONG, &since);
  MYSQL_STMT *statement = run((struct mysql *)store, LISTED, parameters);
  if (statement == NULL) return -1;
  bind_number(&columns[0], MYSQL_TYPE_STRING, contact);
  columns[0].buffer_length = sizeof contact - 1;
  columns[0].length = &contact_length;
  bind_number(&columns[1], MYSQL_TYPE_DOUBLE, &q);
  bind_number(&columns[2], MYSQL_TYPE_LONGLONG, &expires);
  if (mysql_stmt_bind_result(statement, columns) != 0 || mysql_stmt_store_result(statement) != 0)
    return failed((struct mysql *)store, mysql_stmt_error(statement));
  int code;
  while ((code = mysql_stmt_fetch(statement)) == 0) {
    contact[contact_length] = '\0';
    each(arg, contact, q, (time_t)expires);
  }
  mysql_stmt_free_result(statement);
  return code == MYSQL_NO_DATA ? 0 : failed((struct mysql *)store, "a row of location cannot be read");
}

static void mysql_close_store(struct store *store) {
  disconnect((struct mysql *)store);
  free(store);
  mysql_library_end();
}

/* 0 when the table has the version that these statements were written for. */
static int version(struct mysql *mysql, const char *table, int wanted) {
  char query[128];
  int found = -1;
  snprintf(query, sizeof query, "SELECT table_version FROM version WHERE table_name='%s'", table);
  MYSQL_RES *result = mysql_query(mysql->db, query) == 0 ? mysql_store_result(mysql->db) : NULL;
  MYSQL_ROW row = result != NULL ? mysql_fetch_row(result) : NULL;
  if (row != NULL && row[0] != NULL) found = atoi(row[0]);
  if (result != NULL) mysql_free_result(result);
  if (found == wanted) return 0;
  fprintf(stderr, "server: mysql: table %s has version %d, this server knows version %d\n", table, found, wanted);
  return -1;
}

/* mysql://user[:password]@host:port/database */
static int parse(struct mysql *mysql, const char *url) {
  char login[128];
  int used = 0;
  if (sscanf(url, "mysql://%127[^@/]@%127[^:/]:%u/%63[A-Za-z0-9_]%n", login, mysql->host, &mysql->port, mysql->database, &used) != 4 ||
      url[used] != '\0' || mysql->port == 0 || mysql->port > 65535)
    return -1;
  char *colon = strchr(login, ':');
  if (colon != NULL) {
    *colon = '\0';
    if (strlen(colon + 1) >= sizeof mysql->password) return -1;
    strcpy(mysql->password, colon + 1);
  }
  if (strlen(login) >= sizeof mysql->user) return -1;
  strcpy(mysql->user, login);
  return 0;
}

struct store *store_mysql_open(const char *url) {
  static const struct store_ops ops = {mysql_user, mysql_begin, mysql_end, mysql_save, mysql_remove, mysql_list, mysql_close_store};
  struct mysql *mysql = calloc(1, sizeof *mysql);
  if (mysql == NULL) {
    fprintf(stderr, "server: no memory for the database connection\n");
    return NULL;
  }
  mysql->store.ops = &ops;
  if (parse(mysql, url) != 0) {
    fprintf(stderr, "server: mysql: the URL has to be mysql://user[:password]@host:port/database\n");
  } else if (connect_to(mysql) == 0 && version(mysql, "location", LOCATION_VERSION) == 0 &&
             version(mysql, "subscriber", SUBSCRIBER_VERSION) == 0) {
    return &mysql->store;
  }
  mysql_close_store(&mysql->store);
  return NULL;
}
