/* The osip thread: timers and state machines of all transactions, one turn per wake-up, under the global lock. */
#include "host.h"

#include <string.h>
#include <sys/select.h>

static void *osip_timers_thread(void *arg) {
  psp_osip_t *me = arg;
  for (;;) {
    struct timeval limit;
    osip_timers_gettimeout(me->osip, &limit);
    int in = ppl_pipe_get_read_descr(me->wakeup);
    fd_set set;
    FD_ZERO(&set);
    FD_SET(in, &set);
    if (select(in + 1, &set, NULL, NULL, &limit) > 0 && FD_ISSET(in, &set)) {
      char bytes[50];
      int n = ppl_pipe_read(me->wakeup, bytes, sizeof bytes);
      if (n == 1 && bytes[0] == 'q') return NULL;
    }
    psp_core_lock();
    osip_timers_ict_execute(me->osip);
    osip_timers_ist_execute(me->osip);
    osip_timers_nict_execute(me->osip);
    osip_timers_nist_execute(me->osip);
    osip_ict_execute(me->osip);
    osip_nict_execute(me->osip);
    osip_ist_execute(me->osip);
    osip_nist_execute(me->osip);
    psp_core_unlock();
    if (me->exit_flag == 1) return NULL;
  }
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
    {OSIP_ICT_STATUS_1XX_RECEIVED, psp_core_cb_rcv1xx},
    {OSIP_ICT_STATUS_2XX_RECEIVED, psp_core_cb_rcv2xx},
    {OSIP_ICT_STATUS_3XX_RECEIVED, psp_core_cb_rcv3xx},
    {OSIP_ICT_STATUS_4XX_RECEIVED, psp_core_cb_rcv4xx},
    {OSIP_ICT_STATUS_5XX_RECEIVED, psp_core_cb_rcv5xx},
    {OSIP_ICT_STATUS_6XX_RECEIVED, psp_core_cb_rcv6xx},
    {OSIP_NICT_STATUS_1XX_RECEIVED, psp_core_cb_rcv1xx},
    {OSIP_NICT_STATUS_2XX_RECEIVED, psp_core_cb_rcv2xx},
    {OSIP_NICT_STATUS_3XX_RECEIVED, psp_core_cb_rcv3xx},
    {OSIP_NICT_STATUS_4XX_RECEIVED, psp_core_cb_rcv4xx},
    {OSIP_NICT_STATUS_5XX_RECEIVED, psp_core_cb_rcv5xx},
    {OSIP_NICT_STATUS_6XX_RECEIVED, psp_core_cb_rcv6xx},
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
  osip_t *osip;
  if (osip_init(&osip) != 0) return -1;
  osip_set_cb_send_message(osip, psp_core_cb_snd_message);
  osip_set_kill_transaction_callback(osip, OSIP_ICT_KILL_TRANSACTION, psp_core_cb_ict_kill_transaction);
  osip_set_kill_transaction_callback(osip, OSIP_IST_KILL_TRANSACTION, psp_core_cb_ist_kill_transaction);
  osip_set_kill_transaction_callback(osip, OSIP_NICT_KILL_TRANSACTION, psp_core_cb_nict_kill_transaction);
  osip_set_kill_transaction_callback(osip, OSIP_NIST_KILL_TRANSACTION, psp_core_cb_nist_kill_transaction);
  for (int type = 0; type < OSIP_TRANSPORT_ERROR_CALLBACK_COUNT; type++)
    osip_set_transport_error_callback(osip, type, psp_core_cb_transport_error);
  for (size_t i = 0; i < sizeof callbacks / sizeof *callbacks; i++)
    osip_set_message_callback(osip, callbacks[i].type, callbacks[i].function);

  psp_osip_t *new = osip_malloc(sizeof *new);
  if (new == NULL) goto failed;
  memset(new, 0, sizeof *new);
  new->osip = osip;
  new->delay = delay;
  new->wakeup = ppl_pipe();
  if (new->wakeup == NULL) goto failed;
  *out = new;
  new->timers = osip_thread_create(20000, osip_timers_thread, new);
  if (new->timers != NULL) return 0;
  ppl_pipe_close(new->wakeup);
  *out = NULL;
failed:
  osip_free(new);
  osip_release(osip);
  return -1;
}

static int put(psp_osip_t *me, char what) { return ppl_pipe_write(me->wakeup, &what, 1) == 1 ? 0 : -1; }

int psp_osip_wakeup(psp_osip_t *me) { return me == NULL ? -1 : put(me, 'w'); }

int psp_osip_release(psp_osip_t *me) {
  if (me == NULL) return -1;
  me->exit_flag = 1;
  if (me->timers == NULL) return 0;
  if (put(me, 'q') != 0 || osip_thread_join(me->timers) != 0) return -1;
  osip_free(me->timers);
  me->timers = NULL;
  return 0;
}

static void free_all(osip_list_t *transactions) {
  osip_transaction_t *transaction;
  while ((transaction = osip_list_get(transactions, 0)) != NULL) osip_transaction_free(transaction);
}

void psp_osip_free(psp_osip_t *me) {
  if (me == NULL) return;
  psp_osip_release(me);
  free_all(&me->osip->osip_ict_transactions);
  free_all(&me->osip->osip_nict_transactions);
  free_all(&me->osip->osip_ist_transactions);
  free_all(&me->osip->osip_nist_transactions);
  ppl_pipe_close(me->wakeup);
  osip_release(me->osip);
  osip_free(me);
}

int psp_osip_set_delay(psp_osip_t *me, int delay) {
  if (me == NULL) return -1;
  me->delay = delay;
  return 0;
}
