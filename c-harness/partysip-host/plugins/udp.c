/* The transport plugin: one socket; a datagram is read, parsed and handed to the core; what is sent is resolved, then sent. */
#include <partyline/partysip.h>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <unistd.h>

#define MESSAGE_MAX 4000

psp_plugin_t udp_plugin = {.name = "udp", .version = "1.0", .description = "UDP on one socket", .flag = PSP_PLUGIN_TLP};
static int sock = -1;

static void fix_via(osip_message_t *message, const char *address, int port) {
  osip_via_t *via = MSG_IS_REQUEST(message) ? osip_list_get(&message->vias, 0) : NULL;
  if (via == NULL || via->host == NULL) return;
  osip_generic_param_t *rport = NULL;
  osip_via_param_get_byname(via, "rport", &rport);
  if (rport != NULL && rport->gvalue == NULL && (rport->gvalue = osip_malloc(9)) != NULL) snprintf(rport->gvalue, 9, "%d", port);
  if (strcasecmp(via->host, address) != 0) osip_via_set_received(via, osip_strdup(address));
}

static int complete(osip_message_t *message) {
  return message->cseq != NULL && message->cseq->method != NULL && message->cseq->number != NULL &&
         message->call_id != NULL && message->call_id->number != NULL && message->from != NULL &&
         message->from->url != NULL && message->to != NULL && message->to->url != NULL &&
         osip_list_size(&message->vias) > 0 &&
         (!MSG_IS_REQUEST(message) || (message->req_uri != NULL && message->sip_method != NULL));
}

int udp_process_message(char *buffer, char *address, int port, int length) {
  osip_event_t *event = length < 10 ? NULL : osip_parse(buffer, (size_t)length);
  osip_free(buffer);
  if (event == NULL || event->sip == NULL || !complete(event->sip)) {
    if (event != NULL) {
      osip_message_free(event->sip);
      osip_free(event);
    }
    return -1;
  }
  fix_via(event->sip, address, port);
  psp_core_fix_strict_router_issue(event);
  return psp_core_event_add_sip_message(event);
}

int cb_rcv_udp_message(int max) {
  for (; max != 0; max--) {
    fd_set set;
    FD_ZERO(&set);
    FD_SET(sock, &set);
    struct timeval none = {0, 0};
    if (select(sock + 1, &set, NULL, NULL, &none) <= 0) return 0;
    char *buffer = osip_malloc(MESSAGE_MAX + 3);
    if (buffer == NULL) return -1;
    struct sockaddr_in from;
    socklen_t size = sizeof from;
    int n = (int)recvfrom(sock, buffer, MESSAGE_MAX, 0, (struct sockaddr *)&from, &size);
    if (n <= 0) {
      osip_free(buffer);
      return 0;
    }
    buffer[n] = '\0';
    char text[INET_ADDRSTRLEN];
    inet_ntop(AF_INET, &from.sin_addr, text, sizeof text);
    char *address = osip_strdup(text);
    udp_process_message(buffer, address, ntohs(from.sin_port), n);
    osip_free(address);
  }
  return 1;
}

int cb_snd_udp_message(osip_transaction_t *transaction, osip_message_t *message, char *host, int port, int out_socket) {
  (void)transaction;
  (void)out_socket;
  char *text = NULL, service[12];
  size_t length = 0;
  struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_DGRAM}, *found = NULL;
  if (host == NULL || osip_message_to_str(message, &text, &length) != 0) return -1;
  snprintf(service, sizeof service, "%d", port > 0 ? port : 5060);
  int sent = -1;
  if (getaddrinfo(host, service, &hints, &found) == 0) {
    sent = (int)sendto(sock, text, length, MSG_NOSIGNAL, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
  }
  osip_free(text);
  return sent < 0 ? -1 : 0;
}

int plugin_init(char *name_config) {
  (void)name_config;
  tlp_plugin_t *tlp;
  tlp_rcv_func_t *receive;
  tlp_snd_func_t *send;
  char *port = psp_config_get_element("serverport_udp"), *address = psp_config_get_element("serverip");
  struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons((uint16_t)(port != NULL ? atoi(port) : 5060))};
  if (address == NULL || inet_pton(AF_INET, address, &own.sin_addr) != 1) own.sin_addr.s_addr = INADDR_ANY;
  sock = socket(AF_INET, SOCK_DGRAM, 0);
  if (sock < 0 || bind(sock, (struct sockaddr *)&own, sizeof own) != 0 || fcntl(sock, F_SETFL, O_NONBLOCK) != 0) {
    perror("udp plugin");
    return -1;
  }
  psp_plugin_take_ownership(&udp_plugin);
  if (psp_core_load_tlp_plugin(&tlp, &udp_plugin, TLP_UDP | TLP_UNRELIABLE) != 0 ||
      tlp_rcv_func_init(&receive, cb_rcv_udp_message, udp_plugin.plug_id) != 0 ||
      tlp_snd_func_init(&send, cb_snd_udp_message, udp_plugin.plug_id) != 0)
    return -1;
  tlp_plugin_set_input_socket(tlp, sock);
  tlp_plugin_set_output_socket(tlp, sock);
  tlp_plugin_set_rcv_hook(tlp, receive);
  tlp_plugin_set_snd_hook(tlp, send);
  return 0;
}

int plugin_start(void) { return 0; }

int plugin_release(void) {
  close(sock);
  return 0;
}
