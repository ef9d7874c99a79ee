/* New requests: the hooks of their method, then the request state machine. */
#include "host.h"

#include <time.h>

int pspm_sfp_inc_dispatch_ack(pspm_sfp_t *sfp, osip_message_t *ack) {
  psp_request_t *request;
  if (psp_request_init(&request, NULL, ack) != 0) {
    osip_message_free(ack);
    return -1;
  }
  if (pspm_sfp_inc_call_plugins(sfp, request) == -2) {
    psp_request_free(request);
    return -1;
  }
  return pspm_sfp_inc_dispatch_psp_request(sfp, request);
}

int pspm_sfp_inc_dispatch_traffic(pspm_sfp_t *sfp, osip_transaction_t *transaction) {
  static time_t flushed;
  time_t now = time(NULL);
  if (flushed == 0) flushed = now;
  psp_request_t *request;
  if (psp_request_init(&request, transaction, NULL) != 0) return -1;
  if (pspm_sfp_inc_call_plugins(sfp, request) == -2) {
    psp_request_free(request);
    return -1;
  }
  if (core->recovery_delay != -1 && now - flushed > core->recovery_delay) {
    ppl_uinfo_flush_dbm();
    flushed = now;
  }
  return pspm_sfp_inc_dispatch_psp_request(sfp, request);
}

int pspm_sfp_inc_dispatch_psp_request(pspm_sfp_t *sfp, psp_request_t *request) {
  (void)sfp;
  if (!(request->flag & (PSP_UAS_MODE | PSP_FORK_MODE | PSP_SEQ_MODE)) || request->inc_tr == NULL) {
    psp_request_free(request);
    return -1;
  }
  return psp_core_event_add_sfull_request(request);
}

static sfp_inc_func_tab_t *table_of(pspm_sfp_t *sfp, osip_message_t *request) {
  return MSG_IS_INVITE(request)      ? sfp->rcv_invites
         : MSG_IS_ACK(request)       ? sfp->rcv_acks
         : MSG_IS_REGISTER(request)  ? sfp->rcv_registers
         : MSG_IS_BYE(request)       ? sfp->rcv_byes
         : MSG_IS_OPTIONS(request)   ? sfp->rcv_optionss
         : MSG_IS_INFO(request)      ? sfp->rcv_infos
         : MSG_IS_CANCEL(request)    ? sfp->rcv_cancels
         : MSG_IS_NOTIFY(request)    ? sfp->rcv_notifys
         : MSG_IS_SUBSCRIBE(request) ? sfp->rcv_subscribes
                                     : sfp->rcv_unknowns;
}

int pspm_sfp_inc_call_plugins(pspm_sfp_t *sfp, psp_request_t *request) {
  osip_message_t *message = psp_request_get_request(request);
  if (message == NULL) return -1;
  sfp_inc_func_tab_t *table = table_of(sfp, message);
  sfp_inc_func_t *levels[] = {table->really_first, table->first, table->middle, table->last, table->really_last};
  for (int level = 0; level < 5; level++)
    for (sfp_inc_func_t *hook = levels[level]; hook != NULL; hook = hook->next) {
      hook->callback(request);
      if (request->flag & PSP_MANDATE) goto mandated;
      if (request->flag & PSP_STOP) return -2;
    }
  return 0;
mandated:
  for (sfp_inc_func_t *hook = table->final; hook != NULL; hook = hook->next) {
    hook->callback(request);
    if (request->flag & PSP_MANDATE) return 0;
    if (request->flag & PSP_STOP) return -2;
  }
  return 0;
}
