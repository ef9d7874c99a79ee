/* The partyline house: what the legacy house does with three threads, osip2 and queries is a call into libpartyline here.
 * The plugins and main.c do not know the difference. */
#include "../house.h"

#include <partyline.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PLUGINS_MAX 16

/* The 200s of a write_through registrar wait for their commit; so does the end of the program. */
#define DRAIN_MS 5000

/* A plugin as it was registered, and the house that its requests belong to. */
struct slot {
  struct house *house;
  struct house_plugin plugin;
};

struct house {
  struct house_config config;
  partyline_engine *engine;
  partyline_registrar *registrar;
  struct slot slots[PLUGINS_MAX];
  unsigned slot_count;
  struct house_counters counters; /* as they stood when the engine was stopped */
};

/* Lives on the stack of the callback. */
struct house_request {
  struct house *house;
  partyline_message *message;
  char source[64];
};

const char *house_name(void) { return "partyline"; }

static int failed(void) {
  fprintf(stderr, "server: %s\n", partyline_last_error());
  return -1;
}

static int open_registrar(struct house *house) {
  const struct house_config *config = &house->config;
  char url[4096];
  int n = config->store == HOUSE_STORE_NONE     ? snprintf(url, sizeof url, "memory:")
          : config->store == HOUSE_STORE_SQLITE ? snprintf(url, sizeof url, "sqlite:%s", config->store_path)
                                                : snprintf(url, sizeof url, "%s", config->store_path);
  if (n < 0 || (size_t)n >= sizeof url) {
    fprintf(stderr, "server: the store's name is too long\n");
    return -1;
  }
  /* Without a store there is nothing to write through to and nobody to look up, as in the legacy house. */
  int none = config->store == HOUSE_STORE_NONE;
  if (partyline_registrar_new(&house->registrar) < 0 ||
      partyline_registrar_set(house->registrar, "mode", none ? "memory" : config->mode) < 0 ||
      partyline_registrar_set(house->registrar, "auth", !none && config->auth == HOUSE_AUTH_USER ? "user" : "none") < 0 ||
      partyline_registrar_open(house->registrar, url) < 0)
    return failed();
  return 0;
}

struct house *house_open(const struct house_config *config) {
  struct house *house = calloc(1, sizeof *house);
  if (house == NULL) {
    fprintf(stderr, "server: no memory\n");
    return NULL;
  }
  house->config = *config;
  int bad = 0;
  if (partyline_engine_new(&house->engine) < 0) bad = failed();
  if (bad == 0 && config->threads > 0) {
    char threads[16];
    snprintf(threads, sizeof threads, "%d", config->threads);
    /* The maximum first: the minimum may not exceed it. */
    if (partyline_engine_set(house->engine, "threads.max", threads) < 0 ||
        partyline_engine_set(house->engine, "threads.min", threads) < 0)
      bad = failed();
  }
  if (bad == 0) bad = open_registrar(house);
  if (bad == 0) return house;
  house_close(house);
  return NULL;
}

static int callback(void *user, partyline_message *message) {
  struct slot *slot = user;
  struct house_request request = {.house = slot->house, .message = message};
  return slot->plugin.handle(slot->plugin.user, &request);
}

int house_plugin_register(struct house *house, const struct house_plugin *plugin) {
  static const int policies[] = {
      [HOUSE_SERIAL] = PARTYLINE_SERIAL, [HOUSE_KEYED_AOR] = PARTYLINE_KEYED_AOR, [HOUSE_PARALLEL] = PARTYLINE_PARALLEL};
  static const int phases[] = {[HOUSE_REALLY_FIRST] = PARTYLINE_FIRST,
                               [HOUSE_FIRST] = PARTYLINE_FIRST,
                               [HOUSE_MIDDLE] = PARTYLINE_NORMAL,
                               [HOUSE_LAST] = PARTYLINE_LAST,
                               [HOUSE_REALLY_LAST] = PARTYLINE_LAST};
  _Static_assert(HOUSE_NEXT == PARTYLINE_NEXT && HOUSE_DONE == PARTYLINE_DONE && HOUSE_PENDING == PARTYLINE_PENDING,
                 "a plugin's verdict is handed on as it is");
  if (house->slot_count == PLUGINS_MAX) {
    fprintf(stderr, "server: more than %d plugins\n", PLUGINS_MAX);
    return -1;
  }
  struct slot *slot = &house->slots[house->slot_count];
  *slot = (struct slot){house, *plugin};
  partyline_plugin described = {
      .size = sizeof described,
      .version = 1,
      .policy = policies[plugin->policy],
      .phase = phases[plugin->phase],
      .name = plugin->name,
      .methods = plugin->methods,
      .callback = callback,
      .user = slot,
  };
  if (partyline_plugin_register(house->engine, &described) < 0) return failed();
  house->slot_count++;
  return 0;
}

int house_start(struct house *house) {
  char address[64];
  snprintf(address, sizeof address, "udp:%s:%d", house->config.address, house->config.port);
  if (partyline_engine_listen(house->engine, address, NULL) < 0 || partyline_engine_start(house->engine) < 0) return failed();
  return 0;
}

void house_stop(struct house *house) {
  if (partyline_engine_stop(house->engine, DRAIN_MS) < 0) failed();
  if (house->config.store != HOUSE_STORE_NONE && partyline_registrar_flush(house->registrar, DRAIN_MS) < 0) failed();
  partyline_stats stats = {.size = sizeof stats};
  if (partyline_stats_get(house->engine, &stats) < 0) {
    failed();
    return;
  }
  house->counters = (struct house_counters){.datagrams = stats.received,
                                            .requests = stats.received - stats.dropped - stats.malformed,
                                            .answers = stats.sent,
                                            .dropped = stats.dropped};
}

void house_counters(const struct house *house, struct house_counters *out) { *out = house->counters; }

void house_close(struct house *house) {
  if (house->engine != NULL && partyline_engine_free(house->engine) < 0) failed();
  if (house->registrar != NULL && partyline_registrar_free(house->registrar) < 0) failed();
  free(house);
}

/* --- the request --- */

struct house_text house_method(struct house_request *request) {
  struct house_text text = {NULL, 0};
  partyline_message_method(request->message, &text.ptr, &text.len);
  return text;
}

int house_header(struct house_request *request, const char *name, unsigned index, struct house_text *value) {
  return partyline_message_header(request->message, name, index, &value->ptr, &value->len) == PARTYLINE_OK;
}

struct house_text house_source(struct house_request *request) {
  char host[46];
  uint16_t port = 0;
  if (partyline_message_source(request->message, host, sizeof host, &port) < 0) return (struct house_text){NULL, 0};
  int n = snprintf(request->source, sizeof request->source, strchr(host, ':') != NULL ? "[%s]:%u" : "%s:%u", host, port);
  return (struct house_text){request->source, (size_t)n};
}

static const char *find(const char *from, const char *end, char what) {
  return from < end ? memchr(from, what, (size_t)(end - from)) : NULL;
}

static struct house_text between(const char *from, const char *to) { return (struct house_text){from, (size_t)(to - from)}; }

/* RFC 3261, 25.1: scheme ":" [ user [ ":" password ] "@" ] host [ ":" port ] and parameters, which nobody asks for here. */
static int split(const char *at, const char *end, struct house_uri *uri) {
  *uri = (struct house_uri){{NULL, 0}, {NULL, 0}, {NULL, 0}, {NULL, 0}};
  const char *colon = find(at, end, ':');
  if (colon == NULL || colon == at) return 0;
  uri->scheme = between(at, colon);
  at = colon + 1;
  /* A user part may hold ';' and '?', so the '@' is looked for first. */
  const char *sign = find(at, end, '@');
  if (sign != NULL) {
    const char *password = find(at, sign, ':');
    uri->user = between(at, password != NULL ? password : sign);
    at = sign + 1;
  }
  const char *stop = at;
  while (stop < end && *stop != ';' && *stop != '?' && *stop != '>') stop++;
  const char *bracket = at < stop && *at == '[' ? find(at, stop, ']') : NULL;
  const char *port = find(bracket != NULL ? bracket : at, stop, ':');
  uri->host = between(at, port != NULL ? port : stop);
  if (port != NULL) uri->port = between(port + 1, stop);
  return uri->host.len > 0;
}

/* The URI of a name-addr or addr-spec: within <>, past a quoted display name; else up to the parameters. */
static int split_address(const char *at, const char *end, struct house_uri *uri) {
  int quoted = 0;
  for (const char *p = at; p < end; p++) {
    if (quoted && *p == '\\') p++;
    else if (*p == '"') quoted = !quoted;
    else if (*p == '<' && !quoted) {
      const char *close = find(p, end, '>');
      return close != NULL && split(p + 1, close, uri);
    }
  }
  while (at < end && (*at == ' ' || *at == '\t')) at++;
  const char *parameters = find(at, end, ';');
  return split(at, parameters != NULL ? parameters : end, uri);
}

int house_uri(struct house_request *request, enum house_uri_of which, struct house_uri *uri) {
  struct house_text text = {NULL, 0};
  if (which == HOUSE_URI_REQUEST)
    return partyline_message_uri(request->message, &text.ptr, &text.len) == PARTYLINE_OK && split(text.ptr, text.ptr + text.len, uri);
  return house_header(request, which == HOUSE_URI_TO ? "To" : "From", 0, &text) && split_address(text.ptr, text.ptr + text.len, uri);
}

/* --- what ends a request --- */

int house_reply(struct house_request *request, int status, const char *reason, const char *extra) {
  if (partyline_reply(request->message, status, reason, extra, NULL, 0) < 0) failed();
  return HOUSE_DONE;
}

static int verdict(struct house_request *request, int said) {
  if (said >= 0) return said;
  failed();
  return house_reply(request, 500, "Server Internal Error", NULL);
}

int house_user_check(struct house_request *request) {
  return verdict(request, partyline_registrar_authorize(request->house->registrar, request->message));
}

int house_register(struct house_request *request) {
  return verdict(request, partyline_registrar_handle(request->house->registrar, request->message));
}
