/* What libpartyline.so gives to libpartyline_partysip.a and to the plugins in c-harness/plugins. Not for others: it may change
 * with every version. Times are microseconds of the monotonic clock. */
#ifndef PARTYLINE_PSP_H
#define PARTYLINE_PSP_H

#include <partyline.h>

#include <stdatomic.h>

/* Starts the pool that runs the loops, or counts one more user; partyline_psp_stop() counts one less, and the last ends it. The
 * names and counters are read for PARTYLINE_REPORT until the program ends. */
int partyline_psp_start(const char *const *names, const atomic_ullong *counts, size_t count);
void partyline_psp_stop(void);

/* A turn: run() is called after every wake, by one thread at a time, and at the time that its last call returned (-1: none). Wakes
 * while it is queued are one wake; one while it runs brings one more run. After partyline_psp_turn_stop() it never runs, and wakes
 * do nothing. NULL is no turn. */
const void *partyline_psp_turn_new(int64_t (*run)(void *), void *arg);
void partyline_psp_turn_wake(const void *turn);
void partyline_psp_turn_stop(const void *turn);
void partyline_psp_turn_free(const void *turn);

/* ready() is called when fd can be read, by one thread at a time, until partyline_psp_unwatch() has returned. */
int partyline_psp_watch(int fd, void (*ready)(void *arg, int fd), void *arg);
void partyline_psp_unwatch(int fd);

/* Hooks beside the loops: one at a time per key, or any number. -1: the bound is reached, the hook will not run. */
const void *partyline_psp_strands_new(int keyed);
int partyline_psp_strands_run(const void *strands, uint64_t key, void (*hook)(void *), void *arg);
void partyline_psp_strands_free(const void *strands);

/* The requests that are alive, and which of them are to be looked at. Under the global lock. */
void partyline_psp_live_put(const void *request, const void *const *transactions, size_t count, int64_t deadline,
                            int waits_for_a_name, uint64_t cancel_key); /* 0: no CANCEL concerns it */
void partyline_psp_live_drop(const void *request);
int partyline_psp_live_changed(const void *transaction); /* 1: one of ours */
void partyline_psp_live_mark(const void *request); /* NULL: those that wait for a name */
void *partyline_psp_live_find(uint64_t cancel_key, size_t n); /* the newest first; NULL behind the last */
void *partyline_psp_live_next(int64_t now);
int64_t partyline_psp_live_deadline(void);
void partyline_psp_live_clear(void);

/* Between 1 and 0 what this thread sends is collected. */
void partyline_psp_collect(int on);
int partyline_psp_send(partyline_engine *engine, int family, const void *address, uint16_t port, const void *bytes, size_t length);
int64_t partyline_psp_clock(void);

/* Decides a REGISTER on the calling thread, which may wait for the database. Returns the status of its answer, or a negative code;
 * `headers` receives what the answer needs besides the bindings, each line ending in CRLF. Not in the mode write_through. */
int partyline_psp_register(partyline_registrar *registrar, const char *text, size_t length, const char *address, uint16_t port,
                           char *headers, size_t capacity);

#endif
