/* What osip2 calls, in the osip thread, under the global lock. */
#include "host.h"

#include <stdlib.h>

static void remove_transaction(osip_transaction_t *transaction) {
  osip_remove_transaction((osip_t *)transaction->config, transaction);
}

#define KILL(kind)                                                                           \
  void psp_core_cb_##kind##_kill_transaction(int type, osip_transaction_t *transaction) {    \
    (void)type;                                                                              \
    remove_transaction(transaction);                                                         \
  }
KILL(ict)
KILL(ist)
KILL(nict)
KILL(nist)

void psp_core_cb_transport_error(int type, osip_transaction_t *transaction, int error) {
  (void)type;
  (void)transaction;
  (void)error;
}

int psp_core_cb_snd_message(osip_transaction_t *transaction, osip_message_t *message, char *host, int port, int out_socket) {
  if (MSG_IS_RESPONSE(message) && host == NULL) {
    osip_via_t *via = osip_list_get(&message->vias, 0);
    if (via == NULL) return -2;
    osip_generic_param_t *received = NULL, *rport = NULL;
    osip_via_param_get_byname(via, "received", &received);
    osip_via_param_get_byname(via, "rport", &rport);
    host = received != NULL ? received->gvalue : via->host;
    port = rport != NULL && rport->gvalue != NULL ? atoi(rport->gvalue) : via->port != NULL ? atoi(via->port) : 5060;
  }
  return pspm_tlp_send_message(core->tlp, transaction, message, host, port, out_socket);
}

#define REQUEST(name)                     \
  PSP_MESSAGE_CALLBACK(name) {            \
    (void)type;                           \
    (void)message;                        \
    psp_core_event_add_sfp_inc_traffic(transaction); \
  }
REQUEST(rcvinvite)
REQUEST(rcvregister)
REQUEST(rcvbye)
REQUEST(rcvinfo)
REQUEST(rcvoptions)
REQUEST(rcvunkrequest)

PSP_MESSAGE_CALLBACK(rcvcancel) {
  (void)type;
  (void)message;
  psp_core_event_add_sfull_cancel(transaction);
}

/* A response to a branch: the sfp loop sees it in the transaction. */
#define RESPONSE(name)                    \
  PSP_MESSAGE_CALLBACK(name) {            \
    (void)type;                           \
    (void)transaction;                    \
    (void)message;                        \
    module_wakeup(core->sfp->module);     \
  }
RESPONSE(rcv1xx)
RESPONSE(rcv2xx)
RESPONSE(rcv3xx)
RESPONSE(rcv4xx)
RESPONSE(rcv5xx)
RESPONSE(rcv6xx)

#define NOTHING(name)                     \
  PSP_MESSAGE_CALLBACK(name) {            \
    (void)type;                           \
    (void)transaction;                    \
    (void)message;                        \
  }
NOTHING(rcvresp_retransmission)
NOTHING(sndreq_retransmission)
NOTHING(sndresp_retransmission)
NOTHING(rcvreq_retransmission)
NOTHING(sndinvite)
NOTHING(sndack)
NOTHING(sndregister)
NOTHING(sndbye)
NOTHING(sndcancel)
NOTHING(sndinfo)
NOTHING(sndoptions)
NOTHING(sndunkrequest)
NOTHING(snd1xx)
NOTHING(snd2xx)
NOTHING(snd3xx)
NOTHING(snd4xx)
NOTHING(snd5xx)
NOTHING(snd6xx)
NOTHING(rcvack)
NOTHING(rcvack2)
