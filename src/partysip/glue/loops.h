/* libpartyline_partysip.a: what its files share. They are C because they read partysip's structures and call its functions; which
 * thread runs what, and which request is looked at, is libpartyline.so's (src/partysip/).
 *
 * One turn, on one thread at a time and under the global lock, is osip2's loop and the requests' loop in one:
 *
 *   timers and state machines ─▶ new requests: hooks ─▶ request state machine ─▶ what changed or is due ─▶ again while woken
 *
 * and when it ends, what was sent leaves in batches.
 */
#ifndef PARTYLINE_LOOPS_H
#define PARTYLINE_LOOPS_H

#include <partyline/partysip.h>

#include "../psp.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

/* Count, so that the report can show that a name was taken over. */
#define LOOPS_COUNTED(X)                                                                                                 \
  X(module_init) X(module_free) X(module_release) X(module_start) X(module_set_flag) X(module_wakeup)                     \
  X(psp_osip_init) X(psp_osip_free) X(psp_osip_wakeup) X(psp_osip_release) X(psp_osip_set_delay)                          \
  X(psp_core_lock) X(psp_core_unlock) X(pspm_tlp_execute) X(pspm_sfp_execute) X(pspm_sfp_inc_call_plugins)                \
  X(dispatch_cancel_event) X(pspm_sfp_call_plugins_for_request) X(pspm_sfp_call_plugins_for_rcv_response) X(pspm_sfp_call_plugins_for_snd_response) \
  X(hooks_in_turn) X(hooks_beside) X(requests_taken) X(requests_looked_at) X(refused)
enum loops_count {
#define X(name) LOOPS_##name,
  LOOPS_COUNTED(X)
#undef X
  LOOPS_COUNTS
};
extern atomic_ullong partyline_loops_counts[LOOPS_COUNTS];
#define LOOPS_COUNT(name) atomic_fetch_add_explicit(&partyline_loops_counts[LOOPS_##name], 1, memory_order_relaxed)

/* A module_t with what is ours behind it; every module_t comes from our module_init. */
struct loops_module {
  module_t module;
  pthread_mutex_t mutex;
  pthread_cond_t told;
  atomic_int inside; /* a loop of ours runs for it */
  int quit;
  void (*wake)(void);
};

int partyline_loops_start(void); /* 0 when the pool is there */
void partyline_loops_stop(void);

/* The thread that has entered a loop sleeps here until it is told to quit, or for as long as is said (NULL: for ever). */
void partyline_loops_enter(struct loops_module *module, void (*wake)(void));
int partyline_loops_sleep(struct loops_module *module, const struct timeval *limit); /* 1: quit */
void partyline_loops_leave(struct loops_module *module);

/* hooks.c */
uint64_t partyline_loops_hash(const char *text, uint64_t seed, int lower);

/* cancel.c */
uint64_t partyline_loops_cancel_key(const psp_request_t *request); /* 0: no CANCEL concerns it */

/* osip.c */
void partyline_loops_osip_run(void); /* one turn of the transactions; under the global lock */
int64_t partyline_loops_osip_deadline(void);
int partyline_loops_osip_woken(void); /* asks and forgets */

/* sfp.c */
void partyline_loops_turn_wake(void);
int partyline_loops_turn_open(void);
void partyline_loops_turn_close(void); /* no turn runs after this */
void partyline_loops_turn_free(void);

/* hooks.c */
enum loops_policy { LOOPS_SERIAL, LOOPS_KEYED_CALL_ID, LOOPS_KEYED_AOR, LOOPS_PARALLEL };
struct loops_plugin {
  enum loops_policy policy;
  const void *strands;
};
void partyline_loops_hooks_open(pspm_sfp_t *sfp);
void partyline_loops_hooks_close(void);
/* Calls the hooks of a new request. 1: they are through (or the request waits for none); 0: some run beside, and the request comes
 * back by partyline_loops_hooks_back(); -1: a bound is reached. */
int partyline_loops_hooks_call(pspm_sfp_t *sfp, psp_request_t *request, int *code);
psp_request_t *partyline_loops_hooks_back(int *code);
sfp_inc_func_tab_t *partyline_loops_table(pspm_sfp_t *sfp, const osip_message_t *message);
int partyline_loops_hooks_beside(void); /* how many run beside now */
void partyline_loops_hooks_wait(void);  /* until none does */

#endif
