/* What the glue of the transaction engine shares. All references to osip2 are weak: see build.rs and weak.rs. */
#ifndef PARTYLINE_GLUE_OSIP_H
#define PARTYLINE_GLUE_OSIP_H

#include <stddef.h>
#include <stdint.h>
#include <sys/time.h>
#include <osip2/osip.h>

#define HIDDEN __attribute__((visibility("hidden")))

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
    void *side;
};

void *partyline_alloc(size_t size);
void partyline_release(void *block);
osip_fifo_t *partyline_fifo_new(void *owner);
void partyline_fifo_drop(osip_fifo_t *ff);

extern unsigned long partyline_list_removals;
void *partyline_fifo_take(osip_fifo_t *ff);
int partyline_fifo_count(osip_fifo_t *ff);

#endif
