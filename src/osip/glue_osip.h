/* What the glue of the transaction engine shares. All references to osip2 are weak: preloaded into a program without osip2
 * the library has to load. What versions lack is found out by build.rs, which defines PARTYLINE_* for what is there. */
#ifndef PARTYLINE_GLUE_OSIP_H
#define PARTYLINE_GLUE_OSIP_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <osip2/osip.h>

/* Until 3.0 every error was -1. */
#ifdef OSIP_BADPARAMETER
#define BAD_PARAMETER OSIP_BADPARAMETER
#define NO_MEMORY OSIP_NOMEM
#define SYNTAX_ERROR OSIP_SYNTAXERROR
#else
#define BAD_PARAMETER (-1)
#define NO_MEMORY (-1)
#define SYNTAX_ERROR (-1)
#endif

#define HIDDEN __attribute__((visibility("hidden")))
#define WEAK __attribute__((weak))

#define IXT (NIST + 1) /* beside the four lists of transactions: that of retransmissions */
#define ID (NIST + 2)  /* not a list: the mutex of the transaction ids */

/* osip_malloc and its kin are macros over these three in every version since 2.2. */
#pragma weak osip_malloc_func
#pragma weak osip_realloc_func
#pragma weak osip_free_func

/* The fields of an event that decide where it goes. */
struct partyline_event {
    int dir;            /* 0 incoming request, 1 incoming response, 2 outgoing, 3 none of them (timers, kill) */
    int kind;           /* the list it belongs to; -1: none */
    int id;             /* transactionid */
    const char *branch; /* of the topmost Via; NULL: none */
    const char *call;   /* the Call-ID's number; NULL: none */
};

/* A list node of ours: osip2's, and what makes removal O(1). */
struct partyline_node {
    __node_t node;
    struct partyline_node *prev;
};

void *partyline_alloc(size_t size);
void partyline_release(void *block);
osip_fifo_t *partyline_fifo_new(void *owner);
void partyline_fifo_drop(osip_fifo_t *ff);

struct partyline_removals {
    unsigned long count;
} __attribute__((aligned(64)));

extern struct partyline_removals partyline_list_removals[256];

static inline unsigned long *partyline_removals_of(const osip_list_t *list)
{
    return &partyline_list_removals[(uint64_t)(uintptr_t)list * UINT64_C(0x9e3779b97f4a7c15) >> 56].count;
}

void *partyline_fifo_take(osip_fifo_t *ff);
int partyline_fifo_count(osip_fifo_t *ff);

int partyline_glue_lock(osip_t *osip, int kind);
int partyline_glue_unlock(osip_t *osip, int kind);
int partyline_glue_next_id(osip_t *osip);
void partyline_glue_now(int64_t *sec, int64_t *usec);
int partyline_glue_resend_complete(void);

struct deadline {
    int64_t sec, usec;
};

/* What the send callback is called with. */
struct partyline_resend {
    osip_t *osip;
    osip_message_t *message;
    char *dest;
    int port, sock;
};

#endif
