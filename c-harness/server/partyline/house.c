/* The partyline house: the same plugins behind libpartyline's transport, scheduler and registrar. */
#include "../house.h"

#include <partyline.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PLUGINS_MAX 16

struct house {
  struct house_config config;
  partyline_engine *engine;
  partyline_registrar *registrar;
  unsigned plugin_count;
  struct place {
    struct house *house;
    struct house_plugin plugin;
  } plugins[PLUGINS_MAX];
};

/* What a plugin gets: it lives on the stack of the call. */
struct house_request {
  struct house *house;
  partyline_message *message;
};

const char *house_name(void) { return "partyline"; }

static int said(const char *what) {
  fprintf(stderr, "server: %s: %s\n", what, partyline_last_error());
  return -1;
}

/* The registrar on the store that was asked for. */
static int open_registrar(struct house *house) {
  const struct house_config *config = &house->config;
  char url[4096];
  const char *mode = config->store == HOUSE_STORE_NONE ? "memory" : config->mode;
  int n = snprintf(url, sizeof url, "%s%s", config->store == HOUSE_STORE_SQLITE ? "sqlite:" : "",
                   config->store == HOUSE_STORE_NONE ? "memory:" : config->store_path);
  if (n < 0 || (size_t)n >= sizeof url) {
    fprintf(stderr, "server: the store's name is too long\n");
    return -1;
  }
  /* Without a store nobody is in the table of users: as in the legacy house, everybody may pass then. */
  const char *auth = config->auth == HOUSE_AUTH_USER && config->store != HOUSE_STORE_NONE ? "user" : "none";
  if (partyline_registrar_new(&house->registrar) != 0 || partyline_registrar_set(house->registrar, "mode", mode) != 0 ||
      partyline_registrar_set(house->registrar, "auth", auth) != 0 ||
      partyline_registrar_open(house->registrar, url) != 0)
    return said("the store cannot be opened");
  return 0;
}

struct house *house_open(const struct house_config *config) {
  struct house *house = calloc(1, sizeof *house);
  if (house == NULL) {
    fprintf(stderr, "server: no memory\n");
    return NULL;
  }
  house->config = *config;
  char threads[16];
  snprintf(threads, sizeof threads, "%d", config->threads);
  if (open_registrar(house) == 0) {
    if (partyline_engine_new(&house->engine) == 0 &&
        (config->threads == 0 || (partyline_engine_set(house->engine, "threads.min", threads) == 0 &&
                                  partyline_engine_set(house->engine, "threads.max", threads) == 0)))
      return house;
    said("no engine");
  }
  house_close(house);
  return NULL;
}

static int call(void *user, partyline_message *message) {
  const struct place *place = user;
  struct house_request request = {.house = place->house, .message = message};
  return place->plugin.handle(place->plugin.user, &request);
}

int house_plugin_register(struct house *house, const struct house_plugin *plugin) {
  if (house->plugin_count == PLUGINS_MAX) {
    fprintf(stderr, "server: more than %d plugins\n", PLUGINS_MAX);
    return -1;
  }
  unsigned at = house->plugin_count++;
  for (; at > 0 && house->plugins[at - 1].plugin.phase > plugin->phase; at--) house->plugins[at] = house->plugins[at - 1];
  house->plugins[at] = (struct place){.house = house, .plugin = *plugin};
  return 0;
}

int house_start(struct house *house) {
  static const int policies[] = {
      [HOUSE_SERIAL] = PARTYLINE_SERIAL, [HOUSE_KEYED_AOR] = PARTYLINE_KEYED_AOR, [HOUSE_PARALLEL] = PARTYLINE_PARALLEL};
  char address[64];
  snprintf(address, sizeof address, "udp:%s:%d", house->config.address, house->config.port);
  /* They stand in the order of their phases already. */
  for (unsigned i = 0; i < house->plugin_count; i++) {
    const struct house_plugin *from = &house->plugins[i].plugin;
    partyline_plugin plugin = {.size = sizeof plugin,
                               .version = 1,
                               .name = from->name,
                               .methods = from->methods,
                               .policy = policies[from->policy],
                               .phase = PARTYLINE_NORMAL,
                               .callback = call,
                               .user = &house->plugins[i]};
    if (partyline_plugin_register(house->engine, &plugin) != 0) return said(from->name);
  }
  if (partyline_engine_listen(house->engine, address, NULL) != 0) return said("cannot listen");
  if (partyline_engine_start(house->engine) != 0) return said("cannot start");
  return 0;
}

void house_stop(struct house *house) {
  if (partyline_engine_stop(house->engine, 2000) > 0) fprintf(stderr, "server: stopped with requests unanswered\n");
  if (partyline_registrar_flush(house->registrar, 10000) != 0) fprintf(stderr, "server: bindings are left unwritten\n");
}

void house_counters(const struct house *house, struct house_counters *out) {
  partyline_stats stats = {.size = sizeof stats};
  memset(out, 0, sizeof *out);
  if (partyline_stats_get(house->engine, &stats) != 0) {
    said("no statistics");
    return;
  }
  *out = (struct house_counters){.datagrams = stats.received,
                                 .requests = stats.received - stats.dropped - stats.malformed,
                                 .answers = stats.sent,
                                 .dropped = stats.dropped};
}

void house_close(struct house *house) {
  partyline_engine_free(house->engine);
  partyline_registrar_free(house->registrar);
  free(house);
}

struct house_text house_method(struct house_request *request) {
  struct house_text text = {NULL, 0};
  partyline_message_method(request->message, &text.ptr, &text.len);
  return text;
}

int house_header(struct house_request *request, const char *name, unsigned index, struct house_text *value) {
  *value = (struct house_text){NULL, 0};
  return partyline_message_header(request->message, name, index, &value->ptr, &value->len) == 0;
}

int house_uri(struct house_request *request, enum house_uri_of which, struct house_uri *uri) {
  static const int names[] = {[HOUSE_URI_REQUEST] = PARTYLINE_URI_REQUEST,
                              [HOUSE_URI_TO] = PARTYLINE_URI_TO,
                              [HOUSE_URI_FROM] = PARTYLINE_URI_FROM};
  partyline_uri parts = {.size = sizeof parts};
  memset(uri, 0, sizeof *uri);
  if (partyline_message_uri_parts(request->message, names[which], &parts) != 0) return 0;
  uri->scheme = (struct house_text){parts.scheme, parts.scheme_length};
  uri->user = (struct house_text){parts.user, parts.user_length};
  uri->host = (struct house_text){parts.host, parts.host_length};
  if (parts.port != 0) {
    /* The digits stand behind the host's colon. */
    uri->port.ptr = parts.host + parts.host_length + 1;
    while (uri->port.ptr[uri->port.len] >= '0' && uri->port.ptr[uri->port.len] <= '9') uri->port.len++;
  }
  return 1;
}

struct house_text house_source(struct house_request *request) {
  static _Thread_local char source[64];
  char host[46];
  unsigned short port = 0;
  if (partyline_message_source(request->message, host, sizeof host, &port) != 0) return (struct house_text){NULL, 0};
  int n = snprintf(source, sizeof source, "%s:%u", host, port);
  return (struct house_text){source, (size_t)n};
}

/* partyline's verdicts are the house's; an error was reported in the log and ends the request. */
static int verdict(int code) { return code < 0 ? HOUSE_DONE : code; }

int house_reply(struct house_request *request, int status, const char *reason, const char *extra) {
  if (partyline_reply(request->message, status, reason, extra, NULL, 0) != 0) said("no answer");
  return HOUSE_DONE;
}

int house_user_check(struct house_request *request) {
  return verdict(partyline_registrar_authorize(request->house->registrar, request->message));
}

int house_register(struct house_request *request) {
  return verdict(partyline_registrar_handle(request->house->registrar, request->message));
}

_Static_assert(HOUSE_NEXT == PARTYLINE_NEXT && HOUSE_DONE == PARTYLINE_DONE && HOUSE_PENDING == PARTYLINE_PENDING,
               "the verdicts are the same numbers");
