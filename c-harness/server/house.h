/* The house that the server's plugins live in.
 *
 * main.c and plugins/ know this header and nothing else. Transport loop, plugin dispatch and user store stand behind it in
 * two forms: legacy/ (plain C on osip2, shaped as partysip is) and partyline/ (calls libpartyline). The same main.c and the
 * same plugins are compiled into both servers, so a difference between the two is a difference between the houses.
 *
 * Rules: what an accessor returns is borrowed and lives until the plugin returns; it is not NUL-terminated. A plugin that
 * returns HOUSE_DONE or HOUSE_PENDING has given the request away and must not touch it again. A plugin may be called on any
 * thread of the house, and on several at once unless its policy says otherwise.
 */
#ifndef HOUSE_H
#define HOUSE_H

#include <stddef.h>

/* What a plugin says about a request when it returns. */
#define HOUSE_NEXT 0    /* nothing decided: the next plugin is called */
#define HOUSE_DONE 1    /* answered, or dropped on purpose */
#define HOUSE_PENDING 2 /* the house answers, or calls the plugin again, once the store has spoken */

enum house_store { HOUSE_STORE_NONE, HOUSE_STORE_SQLITE, HOUSE_STORE_MYSQL };
enum house_auth { HOUSE_AUTH_NONE, HOUSE_AUTH_USER };

struct house_config {
  const char *address;    /* numeric IPv4 address to listen on */
  int port;               /* UDP */
  enum house_store store;
  const char *store_path; /* sqlite: path of the file; mysql: the whole mysql:// URL; none: NULL */
  const char *mode;       /* write_through, write_back or memory; the legacy house knows only write_through */
  int threads;            /* 0: the house decides; the legacy house has its fixed threads */
  enum house_auth auth;
};

/* Where in the chain a plugin stands; within one phase they stand in order of registration. */
enum house_phase { HOUSE_REALLY_FIRST, HOUSE_FIRST, HOUSE_MIDDLE, HOUSE_LAST, HOUSE_REALLY_LAST };

/* What may run at once. The legacy house calls every plugin one after another, whatever it declares. */
enum house_policy { HOUSE_SERIAL, HOUSE_KEYED_AOR, HOUSE_PARALLEL };

struct house;
struct house_request;

struct house_text {
  const char *ptr; /* NULL when there is nothing */
  size_t len;
};

struct house_uri {
  struct house_text scheme, user, host, port;
};

enum house_uri_of { HOUSE_URI_REQUEST, HOUSE_URI_TO, HOUSE_URI_FROM };

struct house_plugin {
  const char *name;
  const char *methods; /* comma separated, NULL for all */
  enum house_phase phase;
  enum house_policy policy;
  int (*handle)(void *user, struct house_request *request);
  void *user;
};

struct house_counters {
  unsigned long long datagrams; /* received */
  unsigned long long requests;  /* new requests that went to the plugins (retransmissions are not counted) */
  unsigned long long answers;   /* final responses put on the wire, retransmissions of them included */
  unsigned long long dropped;   /* datagrams that were no request that can be answered */
};

/* --- for main.c. Each returns NULL or -1 after one sentence on stderr. main has blocked SIGTERM and SIGINT before. --- */
struct house *house_open(const struct house_config *config);
int house_plugin_register(struct house *house, const struct house_plugin *plugin); /* before house_start */
int house_start(struct house *house); /* on return the port is open and requests are answered */
void house_stop(struct house *house); /* on return no thread of the house runs */
void house_counters(const struct house *house, struct house_counters *out);
void house_close(struct house *house); /* frees everything */
const char *house_name(void);          /* "legacy" or "partyline" */

/* --- for plugins: the request --- */
struct house_text house_method(struct house_request *request);
/* The index-th header of that name (long form) as it stands in the message. 1: found, 0: none. */
int house_header(struct house_request *request, const char *name, unsigned index, struct house_text *value);
/* 1: found and parsed, 0: none. Absent parts have ptr NULL. */
int house_uri(struct house_request *request, enum house_uri_of which, struct house_uri *uri);
struct house_text house_source(struct house_request *request); /* "address:port" of the sender */

/* --- for plugins: what ends a request. Each returns what the plugin is to return. --- */
/* A response without body; extra holds whole header lines, each ended by CRLF, or is NULL. */
int house_reply(struct house_request *request, int status, const char *reason, const char *extra);
/* Is the user of the To header in the store? NEXT: yes; DONE: 404 (or 500) was sent; PENDING: the store is being asked. */
int house_user_check(struct house_request *request);
/* RFC 3261, 10.3, steps 6 to 8: bindings are changed (or only read), then 200 with the bindings that stand. DONE or PENDING.
 * Where the store is durable, the 200 leaves after the commit and not before. */
int house_register(struct house_request *request);

#endif
