/* Where the legacy house keeps users and bindings: one synchronous connection, called by the core thread under the lock. */
#ifndef STORE_H
#define STORE_H

#include <stddef.h>
#include <time.h>

struct binding {
  const char *user, *domain, *contact, *received, *callid, *user_agent;
  int cseq;
  double q;
  time_t expires, now;
};

struct store;

typedef void store_each(void *arg, const char *contact, double q, time_t expires);

/* Every function but close returns a negative number after one line on stderr when the database fails. */
struct store_ops {
  int (*user)(struct store *store, const char *user, const char *domain); /* 1: there is such a subscriber, 0: there is none */
  int (*begin)(struct store *store);           /* only around more than one change */
  int (*end)(struct store *store, int commit);
  int (*save)(struct store *store, const struct binding *binding); /* update, else insert */
  int (*remove)(struct store *store, const char *user, const char *domain, const char *contact); /* NULL: all */
  int (*list)(struct store *store, const char *user, const char *domain, time_t now, store_each *each, void *arg);
  void (*close)(struct store *store);
};

struct store {
  const struct store_ops *ops;
};

/* Each returns NULL after one sentence on stderr. */
struct store *store_memory_open(void);
struct store *store_sqlite_open(const char *path);
struct store *store_mysql_open(const char *url);

/* A value for location.ruid, unlike any other of this or an earlier run. */
void store_ruid(char ruid[64]);

/* The tables are those of src/registrar/store/{sqlite,mysql}.sql: either server can go on with what the other has written. Their
 * primary key begins with (username, domain, contact), which is the index that the queries of this server want. */
#define LOCATION_VERSION 1
#define SUBSCRIBER_VERSION 7

#endif
