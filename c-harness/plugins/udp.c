/* libpsp_udp.so: a transport plugin in partysip's form that drops into the folder of partysip's own `udp` and reads the same keys of
 * its configuration (serverip, serverport_udp). Its sockets and threads are libpartyline's: datagrams come and go in batches, requests
 * are parsed on several threads (those of one call in order), and a name is never looked up where something waits.
 *
 * Where libpsp_mysqlreg.so is loaded too and nobody else hooks REGISTER, the engine answers REGISTER itself and nothing of it comes
 * to partysip; all else does.
 *
 *   udp_threads = N       the most threads that read and parse (default 64; a thread is started when all others are busy)
 *   udp_listen = ADDRESS  where to listen; else serverip, and all addresses where that is a list
 *
 * partysip calls nothing when all plugins are loaded. So what it is given to watch is a descriptor that can be read from the
 * beginning: the receive hook is called as soon as the transport's loop runs, and starts the engine.
 */
#include <partyline/partysip.h>

#include "../../src/partysip/psp.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <netdb.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

psp_plugin_t udp_plugin = {
    .name = "udp", .version = "partyline", .description = "UDP by libpartyline", .flag = PSP_PLUGIN_TLP};

int partyline_udp_transport = 1; /* libpsp_mysqlreg.so looks for it */
static partyline_engine *engine;
static int begin_fd = -1;

static int failed(const char *what) {
  fprintf(stderr, "udp plugin: %s: %s\n", what, partyline_last_error());
  return -1;
}

static int complete(const osip_message_t *message) {
  return message->cseq != NULL && message->cseq->method != NULL && message->cseq->number != NULL &&
         message->call_id != NULL && message->call_id->number != NULL && message->from != NULL &&
         message->from->url != NULL && message->to != NULL && message->to->url != NULL &&
         osip_list_size(&message->vias) > 0 &&
         (!MSG_IS_REQUEST(message) || (message->req_uri != NULL && message->sip_method != NULL));
}

/* A message that the engine does not answer itself. On one of its threads. */
static int receive(void *user, partyline_message *message) {
  (void)user;
  const char *text;
  size_t length;
  char address[64];
  uint16_t port;
  if (partyline_message_text(message, &text, &length) < 0 ||
      partyline_message_source(message, address, sizeof address, &port) < 0)
    return PARTYLINE_DONE;
  osip_event_t *event = osip_parse(text, length);
  if (event == NULL || event->sip == NULL || !complete(event->sip)) {
    if (event != NULL) {
      osip_message_free(event->sip);
      osip_free(event);
    }
    return PARTYLINE_DONE;
  }
  if (MSG_IS_REQUEST(event->sip)) osip_message_fix_last_via_header(event->sip, address, port);
  psp_core_fix_strict_router_issue(event);
  psp_core_event_add_sip_message(event);
  return PARTYLINE_DONE;
}

static int send_to(const char *address, int port, const char *text, size_t length) {
  unsigned char number[16];
  int family = inet_pton(AF_INET, address, number) == 1 ? 4 : inet_pton(AF_INET6, address, number) == 1 ? 6 : 0;
  if (family == 0) return 1;
  return partyline_psp_send(engine, family, number, (uint16_t)(port > 0 ? port : 5060), text, length) < 0 ? -1 : 0;
}

/* A message to a name. */
struct named {
  char *host, *text;
  int port;
  size_t length;
};

static void look_up(void *user) {
  struct named *named = user;
  struct addrinfo hints = {.ai_socktype = SOCK_DGRAM}, *found = NULL;
  char address[INET6_ADDRSTRLEN];
  if (getaddrinfo(named->host, NULL, &hints, &found) == 0) {
    for (struct addrinfo *one = found; one != NULL; one = one->ai_next)
      if (getnameinfo(one->ai_addr, one->ai_addrlen, address, sizeof address, NULL, 0, NI_NUMERICHOST) == 0 &&
          send_to(address, named->port, named->text, named->length) == 0)
        break;
    freeaddrinfo(found);
  }
  osip_free(named->host);
  osip_free(named->text);
  osip_free(named);
}

static int send_later(const char *host, int port, char *text, size_t length) {
  struct named *named = osip_malloc(sizeof *named);
  if (named != NULL) {
    *named = (struct named){osip_strdup(host), text, port, length};
    if (partyline_post(engine, PARTYLINE_GROUP_WORKER, look_up, named) == 0) return 0;
    osip_free(named->host);
    osip_free(named);
  }
  osip_free(text);
  return -1;
}

static int send_message(osip_transaction_t *transaction, osip_message_t *message, char *host, int port, int out_socket) {
  (void)out_socket;
  osip_route_t *route = NULL;
  if (transaction == NULL && MSG_IS_REQUEST(message)) {
    /* An ACK on its own way: where the route says, or the request URI. */
    host = NULL;
    osip_message_get_route(message, 0, &route);
    if (route != NULL) {
      host = route->url->host;
      port = route->url->port != NULL ? atoi(route->url->port) : 5060;
    }
  }
  if (host == NULL && message->req_uri != NULL) {
    host = message->req_uri->host;
    port = message->req_uri->port != NULL ? atoi(message->req_uri->port) : 5060;
  }
  char *text = NULL;
  size_t length = 0;
  if (host == NULL || osip_message_to_str(message, &text, &length) != 0) return -1;
  int sent = send_to(host, port, text, length);
  if (sent == 1) return send_later(host, port, text, length);
  osip_free(text);
  return sent;
}

/* All plugins have set their hooks by now. */
static int start(void) {
  partyline_registrar *(*alone)(void);
  *(void **)&alone = dlsym(RTLD_DEFAULT, "mysqlreg_alone");
  partyline_registrar *registrar = alone != NULL ? alone() : NULL;
  partyline_plugin plugin = {.size = sizeof plugin,
                             .version = 1,
                             .policy = PARTYLINE_KEYED_CALL_ID,
                             .phase = PARTYLINE_NORMAL,
                             .name = "partysip",
                             .methods = registrar != NULL ? "!REGISTER" : NULL,
                             .callback = receive};
  if (partyline_plugin_register(engine, &plugin) < 0) return failed("plugin");
  if (registrar != NULL && partyline_engine_attach(engine, registrar) < 0) return failed("registrar");
  return partyline_engine_start(engine) < 0 ? failed("start") : 0;
}

/* Whoever comes first: a program that calls plugin_start, or the transport's loop. */
static int start_once(void) {
  static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  static int result = 1;
  pthread_mutex_lock(&mutex);
  if (result == 1) result = start();
  pthread_mutex_unlock(&mutex);
  return result;
}

static int begin(int max) {
  uint64_t count;
  (void)max;
  if (read(begin_fd, &count, sizeof count) == sizeof count) start_once();
  return 0;
}

int plugin_init(char *name_config) {
  (void)name_config;
  tlp_plugin_t *tlp;
  tlp_rcv_func_t *receiving;
  tlp_snd_func_t *sending;
  char *port = psp_config_get_element("serverport_udp"), *address = psp_config_get_element("serverip");
  char *threads = psp_config_get_element("udp_threads"), *own = psp_config_get_element("udp_listen"), listen[128];
  /* partysip's own listens everywhere; where it found the addresses itself, serverip is a list of them. */
  if (own != NULL) address = own;
  else if (address == NULL || strpbrk(address, " ,") != NULL) address = "0.0.0.0";
  snprintf(listen, sizeof listen, "udp:%s:%d", address, port != NULL ? atoi(port) : 5060);
  if (partyline_engine_new(&engine) < 0 || (threads != NULL && partyline_engine_set(engine, "threads.max", threads) < 0) ||
      partyline_engine_listen(engine, listen, NULL) < 0)
    return failed(listen);
  begin_fd = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC);
  psp_plugin_take_ownership(&udp_plugin);
  if (begin_fd < 0 || psp_core_load_tlp_plugin(&tlp, &udp_plugin, TLP_UDP | TLP_UNRELIABLE) != 0 ||
      tlp_rcv_func_init(&receiving, begin, udp_plugin.plug_id) != 0 ||
      tlp_snd_func_init(&sending, send_message, udp_plugin.plug_id) != 0)
    return -1;
  tlp_plugin_set_input_socket(tlp, begin_fd);
  tlp_plugin_set_output_socket(tlp, -1);
  tlp_plugin_set_rcv_hook(tlp, receiving);
  tlp_plugin_set_snd_hook(tlp, sending);
  return 0;
}

int plugin_start(void) { return start_once(); }

int plugin_release(void) {
  if (begin_fd >= 0) close(begin_fd);
  begin_fd = -1;
  partyline_engine_stop(engine, 1000);
  partyline_engine_free(engine);
  engine = NULL;
  return 0;
}
