/* pspm_sfp_execute: the requests' loop, and the turn that it shares with osip2's. */
#include "loops.h"

#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <time.h>

/* Rounds of one turn before the lock is given away and what was sent leaves. */
#define ROUNDS 16

static pspm_sfp_t *sfp_of_turn;
static const void *_Atomic turn; /* stays valid until psp_osip_free: a transport's threads may wake it until then */
static atomic_int sfp_woken;
static _Thread_local int in_turn;

/* As module_wakeup of the requests' module finds it: the fifos have something, or a name was found. */
static void wake(void) {
  if (atomic_exchange_explicit(&sfp_woken, 1, memory_order_acq_rel) == 0) partyline_loops_turn_wake();
}

void partyline_loops_turn_wake(void) {
  if (!in_turn) partyline_psp_turn_wake(atomic_load_explicit(&turn, memory_order_acquire));
}

static int64_t until(const struct timeval *at, const struct timeval *now, int64_t clock) {
  if (at->tv_sec == -1) return -1;
  int64_t left = ((int64_t)at->tv_sec - now->tv_sec) * 1000000 + ((int64_t)at->tv_usec - now->tv_usec);
  return clock + left + 1; /* partysip asks whether it is later, not whether it is time */
}

static int64_t sooner(int64_t a, int64_t b) { return a < 0 ? b : b < 0 || a < b ? a : b; }

/* When a timer of the request fires that its state asks about. */
static int64_t deadline_of(const psp_request_t *request) {
  struct timeval now;
  gettimeofday(&now, NULL);
  int64_t clock = partyline_psp_clock(), due = -1;
  int fallback = request->fallback_locations != NULL;
  if (request->state == PROXY_PRE_CALLING || request->state == PROXY_CALLING || (request->state == PROXY_PROCEEDING && fallback))
    due = sooner(due, until(&request->timer_noanswer_start, &now, clock));
  if (request->state == PROXY_PROCEEDING || (request->state == PROXY_CALLING && fallback))
    due = sooner(due, until(&request->timer_nofinalanswer_start, &now, clock));
  if (request->state == PROXY_CLOSING || request->state == PROXY_PROCEEDING)
    due = sooner(due, until(&request->timer_close_start, &now, clock));
  return due;
}

/* A branch's transaction, and the branch behind it. What stands before them has a member whose type was not to be found out
 * (ppl_time_t), so partysip's own function is asked once where it puts a transaction. */
#pragma weak sfp_branch_set_transaction
static size_t shift_of_branch(void) {
  static size_t shift = SIZE_MAX;
  if (shift != SIZE_MAX) return shift;
  shift = 0;
  if (sfp_branch_set_transaction == NULL) return shift;
  _Alignas(sfp_branch_t) char probe[sizeof(sfp_branch_t) + 64] = {0};
  osip_transaction_t *mark = (osip_transaction_t *)probe, *found;
  sfp_branch_set_transaction((sfp_branch_t *)probe, mark);
  for (size_t at = offsetof(sfp_branch_t, out_tr); at + sizeof found <= sizeof probe; at += sizeof found) {
    memcpy(&found, probe + at, sizeof found);
    if (found == mark) {
      shift = at - offsetof(sfp_branch_t, out_tr);
      break;
    }
  }
  return shift;
}

static const sfp_branch_t *shifted(const sfp_branch_t *branch) {
  return branch == NULL ? NULL : (const sfp_branch_t *)((const char *)branch + shift_of_branch());
}

/* What a request waits for, after an event. */
static void note(psp_request_t *request) {
  const void *transactions[64];
  size_t count = 0;
  if (request->inc_tr != NULL) transactions[count++] = request->inc_tr;
  const sfp_branch_t *const lists[] = {request->branch_notanswered, request->branch_answered, request->branch_completed,
                                 request->branch_cancelled};
  int waits = request->locations != NULL && request->state != PROXY_CLOSING;
  for (int i = 0; i < 4; i++)
    for (const sfp_branch_t *branch = shifted(lists[i]); branch != NULL; branch = shifted(branch->next))
      if (branch->out_tr == NULL) continue;
      else if (count < sizeof transactions / sizeof *transactions) transactions[count++] = branch->out_tr;
      else waits = 1; /* more branches than are kept: looked at at every wake-up */
  osip_message_t *message = psp_request_get_request(request);
  int invite = message != NULL && MSG_IS_INVITE(message);
  partyline_psp_live_put(request, transactions, count, deadline_of(request),
                         (waits ? PARTYLINE_PSP_WAITS : 0) | (invite ? PARTYLINE_PSP_INVITE : 0));
}

static void look_at(pspm_sfp_t *sfp, psp_request_t *request) {
  static psp_event_t *(*const questions[])(psp_request_t *) = {
      pspm_sfp_test_received_1xx,            pspm_sfp_test_received_2xx,
      pspm_sfp_test_received_3456xx,         pspm_sfp_new_location_received,
      pspm_sfp_need_start_fallback_location, pspm_sfp_need_timeout_nofinalanswer,
      pspm_sfp_need_timeout_noanswer,        pspm_sfp_need_timeout_close,
  };
  LOOPS_COUNT(requests_looked_at);
  /* partysip asks all eight again in its next turn, which comes at once; here until nothing answers any more. */
  for (int answered = 1, rounds = 0; answered && rounds < 64 && request->state != PROXY_CLOSED; rounds++) {
    answered = 0;
    for (size_t i = 0; i < sizeof questions / sizeof *questions; i++) {
      psp_event_t *event = questions[i](request);
      if (event == NULL) continue;
      psp_request_execute(request, event);
      answered = 1;
    }
  }
  if (request->state != PROXY_CLOSED) {
    note(request);
    return;
  }
  partyline_psp_live_drop(request);
  PSP_REMOVE(sfp->psp_requests, request);
  psp_request_free(request);
}

/* The request state machine begins: what partysip does with an element of sfull_request. */
static void begin(pspm_sfp_t *sfp, psp_request_t *request) {
  if (request->flag & PSP_SEQ_MODE) {
    location_t *next = request->locations != NULL ? request->locations->next : NULL;
    for (location_t *location = next; location != NULL; location = next) {
      next = location->next;
      PSP_REMOVE(request->locations, location);
      PSP_ADD(request->fallback_locations, location);
    }
  }
  if (request->fallback_locations != NULL && request->timer_nofinalanswer_length > 60 * 1000)
    request->timer_nofinalanswer_length = 60 * 1000;
  int ack = request->inc_ack != NULL;
  psp_request_execute(request, __psp_event_new(EVT_RCV_REQUEST));
  if (ack) return; /* forwarded, and freed with that */
  PSP_ADD(sfp->psp_requests, request);
  /* Whatever is true of it already is seen in this turn, as in partysip's. */
  look_at(sfp, request);
}

/* What is through its hooks. */
static void settle(pspm_sfp_t *sfp, psp_request_t *request, int code) {
  if (code == 1) {
    /* The plugin's bound is reached: said, not silence. */
    LOOPS_COUNT(refused);
    psp_request_set_uas_status(request, 503);
    psp_request_set_mode(request, PSP_UAS_MODE);
  } else if (code == -2) {
    psp_request_free(request);
    return;
  }
  pspm_sfp_inc_dispatch_psp_request(sfp, request);
}

static void take(pspm_sfp_t *sfp, osip_transaction_t *transaction, osip_message_t *ack) {
  psp_request_t *request;
  LOOPS_COUNT(requests_taken);
  if (psp_request_init(&request, transaction, ack) != 0) {
    if (ack != NULL) osip_message_free(ack);
    return;
  }
  int code = 0, done = partyline_loops_hooks_call(sfp, request, &code);
  if (done != 0) settle(sfp, request, done < 0 ? 1 : code);
}

static void flush_users(void) {
  static time_t flushed;
  time_t now = time(NULL);
  if (flushed == 0) flushed = now;
  if (core->recovery_delay == -1 || now - flushed <= core->recovery_delay) return;
  ppl_uinfo_flush_dbm();
  flushed = now;
}

static void requests(pspm_sfp_t *sfp, int woken) {
  void *element;
  psp_request_t *request;
  int code, new = 0;
  while ((element = osip_fifo_tryget(sfp->sip_ack)) != NULL) take(sfp, NULL, element);
  while ((element = osip_fifo_tryget(sfp->osip_message_traffic)) != NULL) take(sfp, element, NULL), new = 1;
  while ((request = partyline_loops_hooks_back(&code)) != NULL) settle(sfp, request, code);
  if (new) flush_users();
  while ((element = osip_fifo_tryget(sfp->sfull_cancels)) != NULL) {
    dispatch_cancel_event(sfp, element);
    partyline_psp_live_mark(PARTYLINE_PSP_INVITE);
  }
  while ((element = osip_fifo_tryget(sfp->sfull_request)) != NULL) begin(sfp, element);
  if (woken) partyline_psp_live_mark(PARTYLINE_PSP_WAITS);
  while ((request = partyline_psp_live_next(partyline_psp_clock())) != NULL) look_at(sfp, request);
}

static int64_t run(void *arg) {
  pspm_sfp_t *sfp = arg;
  int more = 1;
  in_turn = 1;
  partyline_psp_collect(1);
  psp_core_lock();
  for (int round = 0; round < ROUNDS; round++) {
    /* Forgotten before the fifos are read: what is put in after that wakes again. */
    int woken = atomic_exchange_explicit(&sfp_woken, 0, memory_order_acq_rel);
    more = partyline_loops_osip_woken() || woken;
    if (!more && round > 0) break;
    partyline_loops_osip_run();
    requests(sfp, woken);
  }
  int64_t due = sooner(partyline_loops_osip_deadline(), partyline_psp_live_deadline());
  psp_core_unlock();
  partyline_psp_collect(0);
  in_turn = 0;
  /* A wake-up by this thread only left its mark. */
  if (more) partyline_loops_turn_wake();
  return due;
}

int partyline_loops_turn_open(void) {
  const void *made = atomic_load(&turn);
  if (made == NULL) {
    made = partyline_psp_turn_new(run, sfp_of_turn);
    if (made == NULL) return -1;
    atomic_store_explicit(&turn, made, memory_order_release);
  }
  partyline_psp_turn_wake(made);
  return 0;
}

void partyline_loops_turn_close(void) { partyline_psp_turn_stop(atomic_load(&turn)); }

void partyline_loops_turn_free(void) { partyline_psp_turn_free(atomic_exchange(&turn, NULL)); }

/* As many turns as are asked for, on the caller's thread. */
static int bounded(pspm_sfp_t *sfp, const struct timeval *limit, int max) {
  for (; max > 0; max--) {
    struct pollfd in = {ppl_pipe_get_read_descr(sfp->module->wakeup), POLLIN, 0};
    char bytes[50];
    if (poll(&in, 1, limit == NULL ? -1 : (int)(limit->tv_sec * 1000 + limit->tv_usec / 1000)) > 0) {
      int n = ppl_pipe_read(sfp->module->wakeup, bytes, sizeof bytes);
      if (n >= 1 && bytes[0] == 'q') return 1;
    }
    run(sfp);
  }
  return 0;
}

int pspm_sfp_execute(pspm_sfp_t *sfp, int seconds, int microseconds, int max) {
  LOOPS_COUNT(pspm_sfp_execute);
  if (sfp == NULL) return -1;
  struct timeval limit = {seconds, microseconds};
  struct loops_module *own = (struct loops_module *)sfp->module;
  partyline_loops_hooks_open(sfp);
  if (max > 0) return bounded(sfp, seconds == -1 || microseconds == -1 ? NULL : &limit, max);
  sfp_of_turn = sfp;
  partyline_loops_enter(own, wake);
  if (partyline_loops_turn_open() != 0) {
    partyline_loops_leave(own);
    return -1;
  }
  partyline_loops_sleep(own, NULL);
  partyline_loops_turn_close();
  /* Hooks that run beside hold requests: these come back, and go on. */
  do {
    partyline_loops_hooks_wait();
    run(sfp);
  } while (partyline_loops_hooks_beside() > 0);
  partyline_loops_hooks_close();
  partyline_psp_live_clear();
  partyline_loops_leave(own);
  return 1;
}
