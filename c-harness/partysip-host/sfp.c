/* The request loop. Every turn asks eight questions about every request that is alive, as partysip's does. */
#include "host.h"

#include <string.h>
#include <sys/select.h>

int pspm_sfp_init(pspm_sfp_t **out) {
  pspm_sfp_t *new = osip_malloc(sizeof *new);
  if (new == NULL) return -1;
  memset(new, 0, sizeof *new);
  if (module_init(&new->module, MOD_THREAD, "sfp") != 0) {
    osip_free(new);
    return -1;
  }
  osip_fifo_t **fifos[] = {&new->sip_ack, &new->osip_message_traffic, &new->sfull_request, &new->sfull_cancels};
  for (int i = 0; i < 4; i++) {
    *fifos[i] = osip_malloc(sizeof **fifos[i]);
    if (*fifos[i] != NULL) osip_fifo_init(*fifos[i]);
  }
  new->broken_transactions = osip_malloc(sizeof *new->broken_transactions);
  if (new->broken_transactions != NULL) osip_list_init(new->broken_transactions);
  for (sfp_inc_func_tab_t **table = &new->rcv_invites; table <= &new->rcv_unknowns; table++) *table = sfp_inc_func_tab_new();
  for (sfp_fwd_func_tab_t **table = &new->fwd_invites; table <= &new->rcv_6xxs; table++) *table = sfp_func_tab_new();
  for (sfp_snd_func_tab_t **table = &new->snd_1xxs; table <= &new->snd_6xxs; table++) *table = sfp_snd_func_tab_new();
  *out = new;
  return 0;
}

static void free_transaction(osip_transaction_t *transaction) {
  if (transaction->state == NIST_TERMINATED || transaction->state == IST_TERMINATED) osip_transaction_free2(transaction);
  else osip_transaction_free(transaction);
}

void pspm_sfp_free(pspm_sfp_t *sfp) {
  if (sfp == NULL) return;
  void *element;
  for (sfp_inc_func_tab_t **table = &sfp->rcv_invites; table <= &sfp->rcv_unknowns; table++) sfp_inc_func_tab_free(*table);
  for (sfp_fwd_func_tab_t **table = &sfp->fwd_invites; table <= &sfp->rcv_6xxs; table++) sfp_func_tab_free(*table);
  for (sfp_snd_func_tab_t **table = &sfp->snd_1xxs; table <= &sfp->snd_6xxs; table++) sfp_snd_func_tab_free(*table);
  module_free(sfp->module);
  while ((element = osip_fifo_tryget(sfp->osip_message_traffic)) != NULL) free_transaction(element);
  while ((element = osip_fifo_tryget(sfp->sfull_cancels)) != NULL) free_transaction(element);
  while ((element = osip_fifo_tryget(sfp->sip_ack)) != NULL) osip_message_free(element);
  while ((element = osip_fifo_tryget(sfp->sfull_request)) != NULL) psp_request_free(element);
  osip_fifo_free(sfp->osip_message_traffic);
  osip_fifo_free(sfp->sfull_cancels);
  osip_fifo_free(sfp->sip_ack);
  osip_fifo_free(sfp->sfull_request);
  while ((element = osip_list_get(sfp->broken_transactions, 0)) != NULL) {
    osip_list_remove(sfp->broken_transactions, 0);
    free_transaction(element);
  }
  osip_free(sfp->broken_transactions);
  while (sfp->psp_requests != NULL) {
    psp_request_t *request = sfp->psp_requests;
    PSP_REMOVE(sfp->psp_requests, request);
    psp_request_free(request);
  }
  while (sfp->sfp_plugins != NULL) {
    sfp_plugin_t *plugin = sfp->sfp_plugins;
    PSP_REMOVE(sfp->sfp_plugins, plugin);
    osip_free(plugin);
  }
  osip_free(sfp);
}

int pspm_sfp_release(pspm_sfp_t *sfp) { return module_release(sfp->module) != 0 ? -1 : 0; }

int pspm_sfp_start(pspm_sfp_t *sfp, void *(*loop)(void *), void *arg) { return module_start(sfp->module, loop, arg); }

int psp_core_load_sfp_plugin(sfp_plugin_t **out, psp_plugin_t *plugin) {
  sfp_plugin_t *new = osip_malloc(sizeof *new);
  if (new == NULL) return -1;
  memset(new, 0, sizeof *new);
  new->psp_plugin = plugin;
  PSP_ADD(core->sfp->sfp_plugins, new);
  *out = new;
  return 0;
}

static void ask_all(pspm_sfp_t *sfp) {
  static psp_event_t *(*const questions[])(psp_request_t *) = {
      pspm_sfp_test_received_1xx,           pspm_sfp_test_received_2xx,
      pspm_sfp_test_received_3456xx,        pspm_sfp_new_location_received,
      pspm_sfp_need_start_fallback_location, pspm_sfp_need_timeout_nofinalanswer,
      pspm_sfp_need_timeout_noanswer,       pspm_sfp_need_timeout_close,
  };
  psp_request_t *next;
  for (psp_request_t *request = sfp->psp_requests; request != NULL; request = next) {
    next = request->next;
    for (size_t i = 0; i < sizeof questions / sizeof *questions; i++) {
      psp_event_t *event = questions[i](request);
      if (event != NULL) psp_request_execute(request, event);
    }
  }
  for (psp_request_t *request = sfp->psp_requests; request != NULL; request = next) {
    next = request->next;
    if (request->state == PROXY_CLOSED) {
      PSP_REMOVE(sfp->psp_requests, request);
      psp_request_free(request);
    }
  }
}

int pspm_sfp_execute(pspm_sfp_t *sfp, int seconds, int microseconds, int max) {
  if (sfp == NULL) return -1;
  for (;;) {
    int wake = ppl_pipe_get_read_descr(sfp->module->wakeup);
    if (wake <= 1) return -1;
    fd_set set;
    FD_ZERO(&set);
    FD_SET(wake, &set);
    struct timeval limit = {seconds, microseconds};
    max--;
    if (select(wake + 1, &set, NULL, NULL, seconds == -1 || microseconds == -1 ? NULL : &limit) > 0) {
      char bytes[50];
      int n = ppl_pipe_read(sfp->module->wakeup, bytes, sizeof bytes);
      if (n >= 1 && memchr(bytes, 'q', (size_t)n) != NULL) return 1;
    }
    psp_core_lock();
    void *element;
    while ((element = osip_fifo_tryget(sfp->sip_ack)) != NULL) pspm_sfp_inc_dispatch_ack(sfp, element);
    while ((element = osip_fifo_tryget(sfp->osip_message_traffic)) != NULL) pspm_sfp_inc_dispatch_traffic(sfp, element);
    while ((element = osip_fifo_tryget(sfp->sfull_cancels)) != NULL) dispatch_cancel_event(sfp, element);
    while ((element = osip_fifo_tryget(sfp->sfull_request)) != NULL) {
      psp_request_t *request = element;
      psp_request_execute(request, __psp_event_new(EVT_RCV_REQUEST));
      PSP_ADD(sfp->psp_requests, request);
    }
    ask_all(sfp);
    psp_core_unlock();
    if (max == 0) return 0;
  }
}

static const char *branch_of(osip_via_t *via) {
  osip_generic_param_t *branch = NULL;
  if (via != NULL) osip_via_param_get_byname(via, "branch", &branch);
  return branch != NULL ? branch->gvalue : NULL;
}

/* All requests that are alive are looked through, as partysip does; by the branch alone here. */
void dispatch_cancel_event(pspm_sfp_t *sfp, osip_transaction_t *cancel) {
  osip_message_t *response;
  const char *branch = branch_of(osip_list_get(&cancel->orig_request->vias, 0));
  psp_request_t *request = sfp->psp_requests;
  for (; request != NULL; request = request->next) {
    const char *other = request->inc_tr != NULL ? branch_of(request->inc_tr->topvia) : NULL;
    if (branch != NULL && other != NULL && strcmp(branch, other) == 0) break;
  }
  osip_list_add(sfp->broken_transactions, cancel, 0);
  int late = request == NULL || request->state == PROXY_CALLING || request->inc_tr->state == IST_COMPLETED ||
             request->inc_tr->state == IST_TERMINATED;
  if (osip_msg_build_response(&response, late ? 481 : 200, cancel->orig_request) != 0) return;
  osip_event_t *event = osip_new_outgoing_sipmessage(response);
  if (event == NULL) return;
  event->transactionid = cancel->transactionid;
  osip_transaction_add_event(cancel, event);
  psp_osip_wakeup(core->psp_osip);
  if (!late) psp_request_execute(request, __psp_event_new(EVT_RCV_CANCEL));
}

static psp_event_t *answered(psp_request_t *request, int from, int to, int type) {
  if (request->state != PROXY_CALLING && request->state != PROXY_PROCEEDING) return NULL;
  sfp_branch_t *lists[] = {request->branch_notanswered, request->branch_answered};
  for (int i = 0; i < 2; i++)
    for (sfp_branch_t *branch = lists[i]; branch != NULL; branch = branch->next) {
      osip_message_t *response = branch->out_tr != NULL ? branch->out_tr->last_response : NULL;
      if (response == NULL || response->status_code < from || response->status_code >= to ||
          response->status_code <= branch->last_code_forwarded)
        continue;
      psp_event_t *event = __psp_event_new(type);
      if (event != NULL) event->branchid = branch->branchid;
      return event;
    }
  return NULL;
}

psp_event_t *pspm_sfp_test_received_1xx(psp_request_t *request) { return answered(request, 100, 200, EVT_RCV_STATUS_1XX); }

psp_event_t *pspm_sfp_test_received_2xx(psp_request_t *request) { return answered(request, 200, 300, EVT_RCV_STATUS_2XX); }

psp_event_t *pspm_sfp_test_received_3456xx(psp_request_t *request) {
  return answered(request, 300, 700, EVT_RCV_STATUS_3456XX);
}

/* Locations are never looked up here. */
psp_event_t *pspm_sfp_new_location_received(psp_request_t *request) {
  for (location_t *location = request->locations; location != NULL; location = location->next)
    if (location->url == NULL) return __psp_event_new(EVT_NEW_LOCATION);
  return NULL;
}

static int over(const struct timeval *at, const struct timeval *now) { return at->tv_sec != -1 && timercmp(now, at, >); }

psp_event_t *pspm_sfp_need_start_fallback_location(psp_request_t *request) {
  struct timeval now;
  gettimeofday(&now, NULL);
  if (request->fallback_locations == NULL || (request->state != PROXY_CALLING && request->state != PROXY_PROCEEDING)) return NULL;
  return over(&request->timer_noanswer_start, &now) || over(&request->timer_nofinalanswer_start, &now)
             ? __psp_event_new(EVT_FALLBACK_LOCATION)
             : NULL;
}

psp_event_t *pspm_sfp_need_timeout_noanswer(psp_request_t *request) {
  struct timeval now;
  gettimeofday(&now, NULL);
  if (request->state != PROXY_PRE_CALLING && request->state != PROXY_CALLING) return NULL;
  return over(&request->timer_noanswer_start, &now) ? __psp_event_new(TIMEOUT_NOANSWER) : NULL;
}

psp_event_t *pspm_sfp_need_timeout_nofinalanswer(psp_request_t *request) {
  struct timeval now;
  gettimeofday(&now, NULL);
  if (request->state != PROXY_PROCEEDING) return NULL;
  return over(&request->timer_nofinalanswer_start, &now) ? __psp_event_new(TIMEOUT_NOFINALANSWER) : NULL;
}

static int running(const sfp_branch_t *branches) {
  for (; branches != NULL; branches = branches->next)
    if (branches->out_tr != NULL && branches->out_tr->state != NICT_TERMINATED && branches->out_tr->state != ICT_TERMINATED)
      return 1;
  return 0;
}

psp_event_t *pspm_sfp_need_timeout_close(psp_request_t *request) {
  struct timeval now;
  gettimeofday(&now, NULL);
  if (request->state != PROXY_CLOSING && request->state != PROXY_PROCEEDING) return NULL;
  if (request->state == PROXY_CLOSING) {
    if (request->inc_tr == NULL) return __psp_event_new(TIMEOUT_CLOSE);
    if (!running(request->branch_notanswered) && !running(request->branch_answered) && !running(request->branch_completed) &&
        !running(request->branch_cancelled) &&
        (request->inc_tr->state == NIST_TERMINATED || request->inc_tr->state == IST_TERMINATED))
      return __psp_event_new(TIMEOUT_CLOSE);
  }
  return over(&request->timer_close_start, &now) ? __psp_event_new(TIMEOUT_CLOSE) : NULL;
}

#define WALK(table, hooks, call)                                                                                    \
  do {                                                                                                              \
    __typeof__((table)->first) levels[] = {(table)->really_first, (table)->first, (table)->middle, (table)->last,   \
                                           (table)->really_last};                                                   \
    for (int level = 0; level < 5; level++)                                                                         \
      for (__typeof__((table)->first) hook = levels[level]; hook != NULL; hook = hook->next) {                      \
        call;                                                                                                       \
        if (request->flag & PSP_STOP) return 0;                                                                     \
      }                                                                                                             \
  } while (0)

int pspm_sfp_call_plugins_for_request(pspm_sfp_t *sfp, psp_request_t *request, sfp_branch_t *branch) {
  (void)branch;
  WALK(sfp->fwd_unknowns, hook, hook->callback(request));
  return 0;
}

int pspm_sfp_call_plugins_for_rcv_response(pspm_sfp_t *sfp, psp_request_t *request, sfp_branch_t *branch) {
  (void)branch;
  if (request == NULL || request->inc_tr == NULL || request->inc_tr->last_response == NULL) return -1;
  int class = request->inc_tr->last_response->status_code / 100;
  if (class < 1 || class > 6) return -1;
  WALK((&sfp->rcv_1xxs)[class - 1], hook, hook->callback(request));
  return 0;
}

int pspm_sfp_call_plugins_for_snd_response(pspm_sfp_t *sfp, psp_request_t *request, osip_message_t *response) {
  int class = response->status_code / 100;
  if (class < 1 || class > 6) return -1;
  WALK((&sfp->snd_1xxs)[class - 1], hook, hook->callback(request, response));
  return 0;
}
