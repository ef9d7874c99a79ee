/* The legacy house: opened, started, stopped, closed. */
#include "legacy.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

const char *house_name(void) { return "legacy"; }

static int listen_on(struct house *house) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)house->config.port)};
  if (inet_pton(AF_INET, house->config.address, &address.sin_addr) != 1) {
    fprintf(stderr, "server: %s is no IPv4 address\n", house->config.address);
    return -1;
  }
  house->socket = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (house->socket < 0 || bind(house->socket, (struct sockaddr *)&address, sizeof address) != 0) {
    fprintf(stderr, "server: cannot listen on %s:%d: %s\n", house->config.address, house->config.port, strerror(errno));
    return -1;
  }
  return 0;
}

struct house *house_open(const struct house_config *config) {
  if (strcmp(config->mode, "write_through") != 0) {
    fprintf(stderr, "server: the legacy server knows only --mode write_through\n");
    return NULL;
  }
  struct house *house = calloc(1, sizeof *house);
  if (house == NULL) {
    fprintf(stderr, "server: no memory\n");
    return NULL;
  }
  house->config = *config;
  house->socket = -1;
  int pipes = module_open(&house->transport) | module_open(&house->timers) | module_open(&house->core);
  if (pipes != 0) fprintf(stderr, "server: no pipe: %s\n", strerror(errno));
  if (pipes == 0 && signalling_open(house) == 0) {
    house->lock = osip_mutex_init();
    house->traffic = osip_malloc(sizeof *house->traffic);
    if (house->traffic != NULL) osip_fifo_init(house->traffic);
    switch (config->store) {
    case HOUSE_STORE_NONE: house->store = store_memory_open(); break;
    case HOUSE_STORE_SQLITE: house->store = store_sqlite_open(config->store_path); break;
    case HOUSE_STORE_MYSQL: house->store = store_mysql_open(config->store_path); break;
    }
    if (house->lock != NULL && house->traffic != NULL && house->store != NULL) return house;
  }
  house_close(house);
  return NULL;
}

int house_plugin_register(struct house *house, const struct house_plugin *plugin) {
  if (house->plugin_count == PLUGINS_MAX) {
    fprintf(stderr, "server: more than %d plugins\n", PLUGINS_MAX);
    return -1;
  }
  unsigned at = house->plugin_count++;
  for (; at > 0 && house->plugins[at - 1].phase > plugin->phase; at--) house->plugins[at] = house->plugins[at - 1];
  house->plugins[at] = *plugin;
  return 0;
}

int house_start(struct house *house) {
  if (listen_on(house) != 0) return -1;
  if (module_start(&house->core, core_loop, house) == 0 && module_start(&house->timers, timers_loop, house) == 0 &&
      module_start(&house->transport, transport_loop, house) == 0)
    return 0;
  fprintf(stderr, "server: no thread: %s\n", strerror(errno));
  house_stop(house);
  return -1;
}

void house_stop(struct house *house) {
  /* From the wire inwards; the osip thread last but one turn later, for it sends what the core thread has answered. */
  module_end(&house->transport);
  module_end(&house->core);
  module_end(&house->timers);
}

void house_counters(const struct house *house, struct house_counters *out) {
  *out = (struct house_counters){.datagrams = atomic_load(&house->datagrams),
                                 .requests = atomic_load(&house->new_requests),
                                 .answers = atomic_load(&house->answers),
                                 .dropped = atomic_load(&house->dropped)};
}

void house_close(struct house *house) {
  core_close(house);
  signalling_close(house);
  if (house->traffic != NULL) osip_fifo_free(house->traffic);
  if (house->lock != NULL) osip_mutex_destroy(house->lock);
  if (house->store != NULL) house->store->ops->close(house->store);
  if (house->socket >= 0) close(house->socket);
  module_close(&house->transport);
  module_close(&house->timers);
  module_close(&house->core);
  free(house);
}
