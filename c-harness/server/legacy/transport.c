/* The transport thread: one datagram per select, parsed and handed to its transaction. */
#include "legacy.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

static void drop(struct house *house, osip_event_t *event) {
  atomic_fetch_add_explicit(&house->dropped, 1, memory_order_relaxed);
  if (event != NULL) {
    osip_message_free(event->sip);
    osip_free(event);
  }
}

/* osip2 takes a message apart without asking for any header. These are what a transaction is made of, and what it reads
 * without a look. */
static int complete(const osip_message_t *message) {
  return MSG_IS_REQUEST(message) && message->sip_method != NULL && message->req_uri != NULL && message->call_id != NULL &&
         message->call_id->number != NULL && message->cseq != NULL && message->cseq->method != NULL &&
         message->cseq->number != NULL && message->from != NULL && message->from->url != NULL && message->to != NULL &&
         message->to->url != NULL && osip_list_size(&message->vias) > 0;
}

static void receive(struct house *house) {
  static char buffer[65536]; /* one transport thread, one buffer */
  struct sockaddr_in from;
  socklen_t size = sizeof from;
  ssize_t n = recvfrom(house->socket, buffer, sizeof buffer - 1, MSG_DONTWAIT, (struct sockaddr *)&from, &size);
  if (n < 0) return;
  atomic_fetch_add_explicit(&house->datagrams, 1, memory_order_relaxed);
  buffer[n] = '\0';
  osip_event_t *event = n < 10 ? NULL : osip_parse(buffer, (size_t)n);
  if (event == NULL || event->sip == NULL || !complete(event->sip)) {
    drop(house, event);
    return;
  }
  char address[INET_ADDRSTRLEN];
  inet_ntop(AF_INET, &from.sin_addr, address, sizeof address);
  osip_message_fix_last_via_header(event->sip, address, ntohs(from.sin_port));

  if (osip_find_transaction_and_add_event(house->osip, event) != 0) {
    osip_transaction_t *transaction = MSG_IS_ACK(event->sip) ? NULL : osip_create_transaction(house->osip, event);
    if (transaction == NULL) {
      drop(house, event);
      return;
    }
    osip_transaction_set_in_socket(transaction, house->socket);
    osip_transaction_set_out_socket(transaction, house->socket);
    osip_transaction_add_event(transaction, event);
  }
  module_wake(&house->timers);
}

void *transport_loop(void *arg) {
  struct house *house = arg;
  int readable = 0;
  while (!module_sleep(&house->transport, house->socket, &readable, NULL))
    if (readable) receive(house);
  return NULL;
}
