/* The osip thread: timers and state machines of every transaction, and the callbacks that they call. It sends every answer. */
#include "legacy.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static struct house *house_of(osip_transaction_t *transaction) {
  return osip_get_application_context((osip_t *)transaction->config);
}

static void request_received(int type, osip_transaction_t *transaction, osip_message_t *message) {
  (void)type;
  (void)message;
  struct house *house = house_of(transaction);
  osip_fifo_add(house->traffic, transaction);
  module_wake(&house->core);
}

/* The state machine has ended. The transaction leaves osip2's list at once and is freed by the core thread, with its request. */
static void transaction_ended(int type, osip_transaction_t *transaction) {
  (void)type;
  struct house_request *request = osip_transaction_get_your_instance(transaction);
  if (request != NULL) request->ended = 1;
  osip_remove_transaction((osip_t *)transaction->config, transaction);
}

static void transport_failed(int type, osip_transaction_t *transaction, int error) {
  (void)type;
  (void)transaction;
  (void)error;
}

static int send_message(osip_transaction_t *transaction, osip_message_t *message, char *host, int port, int out_socket) {
  struct house *house = house_of(transaction);
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)(port > 0 ? port : 5060))};
  /* The top Via carries 'received' with the number that the datagram came from, so there is nothing to resolve. */
  if (host == NULL || inet_pton(AF_INET, host, &to.sin_addr) != 1) return -1;
  char *text = NULL;
  size_t length = 0;
  if (osip_message_to_str(message, &text, &length) != 0) return -1;
  ssize_t sent = sendto(out_socket > 0 ? out_socket : house->socket, text, length, MSG_NOSIGNAL, (struct sockaddr *)&to, sizeof to);
  osip_free(text);
  if (sent < 0) return -1;
  if (MSG_IS_RESPONSE(message) && message->status_code >= 200)
    atomic_fetch_add_explicit(&house->answers, 1, memory_order_relaxed);
  return 0;
}

static long long milliseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

/* osip2 looks at every live transaction in osip_timers_gettimeout, in osip_timers_nist_execute and in osip_nist_execute.
 * partysip calls all three in every turn. Here the first is not called at all, and the second ten times a second, for the
 * shortest of the protocol's timers is 500 ms; so a turn costs one look at each, not three. */
#define TIMERS_EVERY 100

void *timers_loop(void *arg) {
  struct house *house = arg;
  const struct timeval limit = {0, TIMERS_EVERY * 1000};
  long long ran = 0;
  while (!module_sleep(&house->timers, -1, NULL, &limit)) {
    osip_mutex_lock(house->lock);
    long long now = milliseconds();
    if (now - ran >= TIMERS_EVERY) {
      ran = now;
      osip_timers_ict_execute(house->osip);
      osip_timers_ist_execute(house->osip);
      osip_timers_nict_execute(house->osip);
      osip_timers_nist_execute(house->osip);
    }
    osip_ict_execute(house->osip);
    osip_ist_execute(house->osip);
    osip_nict_execute(house->osip);
    osip_nist_execute(house->osip);
    osip_mutex_unlock(house->lock);
  }
  return NULL;
}

int signalling_open(struct house *house) {
  /* Without this osip2 writes a line to stdout for every datagram that it cannot parse. */
  osip_trace_initialize(TRACE_LEVEL0, stderr);
  for (int level = TRACE_LEVEL0; level < END_TRACE_LEVEL; level++) osip_trace_disable_level(level);
  if (osip_init(&house->osip) != 0) {
    house->osip = NULL;
    fprintf(stderr, "server: osip2 cannot be initialised\n");
    return -1;
  }
  osip_set_application_context(house->osip, house);
  osip_set_cb_send_message(house->osip, send_message);
  osip_set_message_callback(house->osip, OSIP_IST_INVITE_RECEIVED, request_received);
  for (int type = OSIP_NIST_REGISTER_RECEIVED; type <= OSIP_NIST_UNKNOWN_REQUEST_RECEIVED; type++)
    osip_set_message_callback(house->osip, type, request_received);
  for (int type = 0; type < OSIP_KILL_CALLBACK_COUNT; type++)
    osip_set_kill_transaction_callback(house->osip, type, transaction_ended);
  for (int type = 0; type < OSIP_TRANSPORT_ERROR_CALLBACK_COUNT; type++)
    osip_set_transport_error_callback(house->osip, type, transport_failed);
  return 0;
}

void signalling_close(struct house *house) {
  if (house->osip == NULL) return;
  /* What is left here was never handed to the core thread. */
  osip_list_t *lists[] = {&house->osip->osip_ist_transactions, &house->osip->osip_nist_transactions};
  for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
    osip_transaction_t *transaction;
    while ((transaction = osip_list_get(lists[i], 0)) != NULL) {
      osip_list_remove(lists[i], 0);
      osip_transaction_free2(transaction);
    }
  }
  osip_release(house->osip);
  house->osip = NULL;
}
