/* psp_osip_*: osip2's loop. It has no thread: its turn is part of the requests' loop's, so the two need not take turns at the
 * global lock. The lock itself is partysip's. */
#include "loops.h"

#include <string.h>

static psp_osip_t *me;
static atomic_int woken;

/* partysip's callbacks. Weak: a revision that lacks one of them does not set it. */
#pragma weak psp_core_cb_sndoptions
#pragma weak psp_core_cb_sndunkrequest
#pragma weak psp_core_cb_rcvunkrequest
#pragma weak psp_core_cb_rcvack2

/* A transaction of a branch has an answer, or one has ended: its request is looked at in this turn. */
#define ENDED(kind)                                                                   \
  static void kind##_ended(int type, osip_transaction_t *transaction) {               \
    partyline_psp_live_changed(transaction);                                          \
    psp_core_cb_##kind##_kill_transaction(type, transaction);                         \
  }
ENDED(ict)
ENDED(ist)
ENDED(nict)
ENDED(nist)

#define ANSWERED(class)                                                                        \
  static void answered_##class(int type, osip_transaction_t *transaction, osip_message_t *message) { \
    partyline_psp_live_changed(transaction);                                                   \
    psp_core_cb_rcv##class(type, transaction, message);                                        \
  }
ANSWERED(1xx)
ANSWERED(2xx)
ANSWERED(3xx)
ANSWERED(4xx)
ANSWERED(5xx)
ANSWERED(6xx)

static void transport_error(int type, osip_transaction_t *transaction, int error) {
  partyline_psp_live_changed(transaction);
  psp_core_cb_transport_error(type, transaction, error);
}

static const struct {
  int type;
  void (*function)(int, osip_transaction_t *, osip_message_t *);
} callbacks[] = {
    {OSIP_ICT_STATUS_2XX_RECEIVED_AGAIN, psp_core_cb_rcvresp_retransmission},
    {OSIP_ICT_STATUS_3456XX_RECEIVED_AGAIN, psp_core_cb_rcvresp_retransmission},
    {OSIP_NICT_STATUS_2XX_RECEIVED_AGAIN, psp_core_cb_rcvresp_retransmission},
    {OSIP_NICT_STATUS_3456XX_RECEIVED_AGAIN, psp_core_cb_rcvresp_retransmission},
    {OSIP_ICT_INVITE_SENT_AGAIN, psp_core_cb_sndreq_retransmission},
    {OSIP_NICT_REQUEST_SENT_AGAIN, psp_core_cb_sndreq_retransmission},
    {OSIP_IST_STATUS_2XX_SENT_AGAIN, psp_core_cb_sndresp_retransmission},
    {OSIP_IST_STATUS_3456XX_SENT_AGAIN, psp_core_cb_sndresp_retransmission},
    {OSIP_NIST_STATUS_2XX_SENT_AGAIN, psp_core_cb_sndresp_retransmission},
    {OSIP_NIST_STATUS_3456XX_SENT_AGAIN, psp_core_cb_sndresp_retransmission},
    {OSIP_IST_INVITE_RECEIVED_AGAIN, psp_core_cb_rcvreq_retransmission},
    {OSIP_NIST_REQUEST_RECEIVED_AGAIN, psp_core_cb_rcvreq_retransmission},
    {OSIP_ICT_INVITE_SENT, psp_core_cb_sndinvite},
    {OSIP_ICT_ACK_SENT, psp_core_cb_sndack},
    {OSIP_NICT_REGISTER_SENT, psp_core_cb_sndregister},
    {OSIP_NICT_BYE_SENT, psp_core_cb_sndbye},
    {OSIP_NICT_CANCEL_SENT, psp_core_cb_sndcancel},
    {OSIP_NICT_INFO_SENT, psp_core_cb_sndinfo},
    {OSIP_NICT_OPTIONS_SENT, psp_core_cb_sndoptions},
    {OSIP_NICT_SUBSCRIBE_SENT, psp_core_cb_sndoptions},
    {OSIP_NICT_NOTIFY_SENT, psp_core_cb_sndoptions},
    {OSIP_NICT_UNKNOWN_REQUEST_SENT, psp_core_cb_sndunkrequest},
    {OSIP_ICT_STATUS_1XX_RECEIVED, answered_1xx},
    {OSIP_ICT_STATUS_2XX_RECEIVED, answered_2xx},
    {OSIP_ICT_STATUS_3XX_RECEIVED, answered_3xx},
    {OSIP_ICT_STATUS_4XX_RECEIVED, answered_4xx},
    {OSIP_ICT_STATUS_5XX_RECEIVED, answered_5xx},
    {OSIP_ICT_STATUS_6XX_RECEIVED, answered_6xx},
    {OSIP_NICT_STATUS_1XX_RECEIVED, answered_1xx},
    {OSIP_NICT_STATUS_2XX_RECEIVED, answered_2xx},
    {OSIP_NICT_STATUS_3XX_RECEIVED, answered_3xx},
    {OSIP_NICT_STATUS_4XX_RECEIVED, answered_4xx},
    {OSIP_NICT_STATUS_5XX_RECEIVED, answered_5xx},
    {OSIP_NICT_STATUS_6XX_RECEIVED, answered_6xx},
    {OSIP_IST_STATUS_1XX_SENT, psp_core_cb_snd1xx},
    {OSIP_IST_STATUS_2XX_SENT, psp_core_cb_snd2xx},
    {OSIP_IST_STATUS_3XX_SENT, psp_core_cb_snd3xx},
    {OSIP_IST_STATUS_4XX_SENT, psp_core_cb_snd4xx},
    {OSIP_IST_STATUS_5XX_SENT, psp_core_cb_snd5xx},
    {OSIP_IST_STATUS_6XX_SENT, psp_core_cb_snd6xx},
    {OSIP_NIST_STATUS_1XX_SENT, psp_core_cb_snd1xx},
    {OSIP_NIST_STATUS_2XX_SENT, psp_core_cb_snd2xx},
    {OSIP_NIST_STATUS_3XX_SENT, psp_core_cb_snd3xx},
    {OSIP_NIST_STATUS_4XX_SENT, psp_core_cb_snd4xx},
    {OSIP_NIST_STATUS_5XX_SENT, psp_core_cb_snd5xx},
    {OSIP_NIST_STATUS_6XX_SENT, psp_core_cb_snd6xx},
    {OSIP_IST_INVITE_RECEIVED, psp_core_cb_rcvinvite},
    {OSIP_IST_ACK_RECEIVED, psp_core_cb_rcvack},
    {OSIP_IST_ACK_RECEIVED_AGAIN, psp_core_cb_rcvack2},
    {OSIP_NIST_REGISTER_RECEIVED, psp_core_cb_rcvregister},
    {OSIP_NIST_BYE_RECEIVED, psp_core_cb_rcvbye},
    {OSIP_NIST_CANCEL_RECEIVED, psp_core_cb_rcvcancel},
    {OSIP_NIST_INFO_RECEIVED, psp_core_cb_rcvinfo},
    {OSIP_NIST_OPTIONS_RECEIVED, psp_core_cb_rcvoptions},
    {OSIP_NIST_SUBSCRIBE_RECEIVED, psp_core_cb_rcvoptions},
    {OSIP_NIST_NOTIFY_RECEIVED, psp_core_cb_rcvoptions},
    {OSIP_NIST_UNKNOWN_REQUEST_RECEIVED, psp_core_cb_rcvunkrequest},
};

int psp_osip_init(psp_osip_t **out, int delay) {
  LOOPS_COUNT(psp_osip_init);
  osip_t *osip;
  if (osip_init(&osip) != 0) return -1;
  osip_set_cb_send_message(osip, psp_core_cb_snd_message);
  osip_set_kill_transaction_callback(osip, OSIP_ICT_KILL_TRANSACTION, ict_ended);
  osip_set_kill_transaction_callback(osip, OSIP_IST_KILL_TRANSACTION, ist_ended);
  osip_set_kill_transaction_callback(osip, OSIP_NICT_KILL_TRANSACTION, nict_ended);
  osip_set_kill_transaction_callback(osip, OSIP_NIST_KILL_TRANSACTION, nist_ended);
  for (int type = 0; type < OSIP_TRANSPORT_ERROR_CALLBACK_COUNT; type++)
    osip_set_transport_error_callback(osip, type, transport_error);
  for (size_t i = 0; i < sizeof callbacks / sizeof *callbacks; i++)
    if (callbacks[i].function != NULL) osip_set_message_callback(osip, callbacks[i].type, callbacks[i].function);
  psp_osip_t *new = osip_malloc(sizeof *new);
  if (new == NULL) {
    osip_release(osip);
    return -1;
  }
  memset(new, 0, sizeof *new);
  new->osip = osip;
  new->delay = delay;
  new->wakeup = ppl_pipe(); /* nobody sleeps on it; it is there for who looks */
  if (new->wakeup == NULL || partyline_loops_start() != 0) {
    if (new->wakeup != NULL) ppl_pipe_close(new->wakeup);
    osip_free(new);
    osip_release(osip);
    return -1;
  }
  me = new;
  *out = new;
  return 0;
}

int psp_osip_wakeup(psp_osip_t *osip) {
  LOOPS_COUNT(psp_osip_wakeup);
  if (osip == NULL) return -1;
  /* Who finds it set has nothing to do: the turn that clears it comes after this. */
  if (atomic_exchange_explicit(&woken, 1, memory_order_acq_rel) == 0) partyline_loops_turn_wake();
  return 0;
}

int partyline_loops_osip_woken(void) { return atomic_exchange_explicit(&woken, 0, memory_order_acq_rel); }

void partyline_loops_osip_run(void) {
  osip_t *osip = me->osip;
  osip_timers_ict_execute(osip);
  osip_timers_ist_execute(osip);
  osip_timers_nict_execute(osip);
  osip_timers_nist_execute(osip);
  osip_ict_execute(osip);
  osip_nict_execute(osip);
  osip_ist_execute(osip);
  osip_nist_execute(osip);
}

int64_t partyline_loops_osip_deadline(void) {
  struct timeval left;
  osip_timers_gettimeout(me->osip, &left);
  return partyline_psp_clock() + (int64_t)left.tv_sec * 1000000 + left.tv_usec;
}

int psp_osip_release(psp_osip_t *osip) {
  LOOPS_COUNT(psp_osip_release);
  if (osip == NULL) return -1;
  osip->exit_flag = 1; /* its turns end with the requests' loop */
  return 0;
}

static void free_all(osip_list_t *transactions) {
  osip_transaction_t *transaction;
  while ((transaction = osip_list_get(transactions, 0)) != NULL) osip_transaction_free(transaction);
}

void psp_osip_free(psp_osip_t *osip) {
  LOOPS_COUNT(psp_osip_free);
  if (osip == NULL) return;
  osip->exit_flag = 1;
  partyline_loops_turn_close(); /* no turn runs from here on */
  free_all(&osip->osip->osip_ict_transactions);
  free_all(&osip->osip->osip_nict_transactions);
  free_all(&osip->osip->osip_ist_transactions);
  free_all(&osip->osip->osip_nist_transactions);
  ppl_pipe_close(osip->wakeup);
  osip_release(osip->osip);
  osip_free(osip);
  me = NULL;
  partyline_loops_turn_free();
  partyline_loops_stop();
}

int psp_osip_set_delay(psp_osip_t *osip, int delay) {
  LOOPS_COUNT(psp_osip_set_delay);
  if (osip == NULL) return -1;
  osip->delay = delay;
  return 0;
}

int psp_core_lock(void) {
  LOOPS_COUNT(psp_core_lock);
  return osip_mutex_lock(core->gl_lock);
}

int psp_core_unlock(void) {
  LOOPS_COUNT(psp_core_unlock);
  return osip_mutex_unlock(core->gl_lock);
}
