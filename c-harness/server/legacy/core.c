/* The core thread: takes new requests, calls the plugins one after another, and looks after the requests that are alive. */
#include "legacy.h"

#include <stdlib.h>
#include <string.h>

/* A request that nobody has answered after this long gets 408, as a proxy core does for its pending requests. */
#define ANSWER_WITHIN 180

static void unlink_request(struct house *house, struct house_request *request) {
  if (request->prev != NULL) request->prev->next = request->next;
  else house->requests = request->next;
  if (request->next != NULL) request->next->prev = request->prev;
  else house->requests_tail = request->prev;
}

static void free_request(struct house_request *request) {
  osip_transaction_free2(request->transaction);
  osip_free(request);
}

static int takes(const struct house_plugin *plugin, const char *method) {
  if (plugin->methods == NULL) return 1;
  size_t length = strlen(method);
  for (const char *at = plugin->methods; at != NULL && *at != '\0';) {
    const char *comma = strchr(at, ',');
    size_t n = comma != NULL ? (size_t)(comma - at) : strlen(at);
    if (n == length && memcmp(at, method, n) == 0) return 1;
    at = comma != NULL ? comma + 1 : NULL;
  }
  return 0;
}

static void call_plugins(struct house *house, struct house_request *request) {
  int said = HOUSE_NEXT;
  for (unsigned i = 0; i < house->plugin_count && said == HOUSE_NEXT; i++)
    if (takes(&house->plugins[i], request->message->sip_method))
      said = house->plugins[i].handle(house->plugins[i].user, request);
  if (said == HOUSE_NEXT) house_reply(request, 501, "Not Implemented", NULL);
  for (unsigned i = 0; i < request->scratches; i++) osip_free(request->scratch[i]); /* a macro that reads its argument twice */
  request->scratches = 0;
}

static void take(struct house *house, osip_transaction_t *transaction, time_t now) {
  struct house_request *request = osip_malloc(sizeof *request);
  if (request == NULL) return; /* the transaction stays without an answer; signalling_close frees it */
  memset(request, 0, sizeof *request);
  request->house = house;
  request->transaction = transaction;
  request->message = transaction->orig_request;
  request->born = now;
  request->ended = transaction->state == NIST_TERMINATED || transaction->state == IST_TERMINATED;
  osip_transaction_set_your_instance(transaction, request);
  request->prev = house->requests_tail;
  if (house->requests_tail != NULL) house->requests_tail->next = request;
  else house->requests = request;
  house->requests_tail = request;
  atomic_fetch_add_explicit(&house->new_requests, 1, memory_order_relaxed);
  call_plugins(house, request);
}

/* Every turn looks at every request that is alive, as partysip's does: has its transaction ended, is an answer overdue? */
static void look_after(struct house *house, time_t now) {
  struct house_request *next;
  for (struct house_request *request = house->requests; request != NULL; request = next) {
    next = request->next;
    if (request->ended) {
      unlink_request(house, request);
      free_request(request);
    } else if (!request->answered && now - request->born > ANSWER_WITHIN) {
      house_reply(request, 408, "Request Timeout", NULL);
    }
  }
}

void *core_loop(void *arg) {
  struct house *house = arg;
  const struct timeval limit = {5, 0};
  for (;;) {
    int end = module_sleep(&house->core, -1, NULL, &limit);
    osip_mutex_lock(house->lock);
    time_t now = time(NULL);
    osip_transaction_t *transaction;
    while ((transaction = osip_fifo_tryget(house->traffic)) != NULL) take(house, transaction, now);
    look_after(house, now);
    osip_mutex_unlock(house->lock);
    if (end) return NULL;
  }
}

void core_close(struct house *house) {
  while (house->requests != NULL) {
    struct house_request *request = house->requests;
    unlink_request(house, request);
    if (!request->ended) osip_remove_transaction(house->osip, request->transaction);
    free_request(request);
  }
}
