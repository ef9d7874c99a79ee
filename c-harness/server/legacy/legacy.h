/* The legacy house: what its files share.
 *
 *   transport thread          osip thread                     core thread
 *   select, one datagram  ->  timers, state machines      ->  request list, plugins one after another,
 *   osip_parse                (callbacks, sends answers)  <-  store (one synchronous connection)
 *   find or create the
 *   transaction
 *
 * Each thread sleeps in select on the pipe of its module. One lock, held by the osip thread for its whole execute turn and by
 * the core thread for its whole turn, so that the two alternate; the transport thread takes only osip2's own mutexes. A request
 * and its transaction live until timer J ends the transaction (32 s on UDP).
 */
#ifndef LEGACY_H
#define LEGACY_H

#include "../house.h"
#include "store.h"

#include <sys/time.h> /* osip.h uses struct timeval and does not ask for it */

#include <osip2/osip.h>
#include <osip2/osip_condv.h>
#include <osip2/osip_mt.h>
#include <osipparser2/osip_port.h>
#include <stdatomic.h>
#include <time.h>

/* A thread and the pipe that wakes it. */
struct module {
  struct osip_thread *thread;
  int pipe[2];
};

int module_open(struct module *module);
int module_start(struct module *module, void *(*loop)(void *), void *arg);
void module_wake(struct module *module);
/* Sleeps until woken, until extra (if not negative) is readable, or until the time is over. Returns 1 when it is to end, else 0;
 * *readable says whether extra is. */
int module_sleep(struct module *module, int extra, int *readable, const struct timeval *limit);
void module_end(struct module *module);
void module_close(struct module *module);

struct house_request {
  struct house *house;
  osip_transaction_t *transaction;
  osip_message_t *message;
  time_t born;
  int answered;
  int ended; /* the transaction has terminated; set by the osip thread, under the lock */
  char *scratch[8]; /* header values rendered for plugins; freed when the plugins have run */
  unsigned scratches;
  char source[32];
  struct house_request *next, *prev;
};

#define PLUGINS_MAX 16

struct house {
  struct house_config config;
  osip_t *osip;
  int socket;
  struct module transport, timers, core;
  struct osip_mutex *lock;
  osip_fifo_t *traffic; /* transactions whose request the core thread has not seen yet */
  struct house_request *requests, *requests_tail;
  struct house_plugin plugins[PLUGINS_MAX];
  unsigned plugin_count;
  struct store *store;
  atomic_ullong datagrams, new_requests, answers, dropped;
};

void *transport_loop(void *house);
void *timers_loop(void *house);
void *core_loop(void *house);
int signalling_open(struct house *house);  /* osip2 and its callbacks */
void signalling_close(struct house *house);
void core_close(struct house *house);      /* frees the requests that are left, and their transactions */

#endif
