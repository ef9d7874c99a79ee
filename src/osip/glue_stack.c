/* The clock, osip_t and its public lists. */
#include <pthread.h>
#include "glue_osip.h"

#pragma weak osip_mutex_init
#pragma weak osip_mutex_destroy
#pragma weak osip_mutex_lock
#pragma weak osip_mutex_unlock
#pragma weak parser_init
/* In 3.x it is libc's. */
#ifndef osip_gettimeofday
#pragma weak osip_gettimeofday
#endif

extern int parser_init(void);
/* Only up to 3.x: later the state machines need no table. */
WEAK extern void __ict_load_fsm(void);
WEAK extern void __ist_load_fsm(void);
WEAK extern void __nict_load_fsm(void);
WEAK extern void __nist_load_fsm(void);

HIDDEN void *partyline_alloc(size_t size)
{
    return osip_malloc(size);
}

HIDDEN void partyline_release(void *block)
{
    osip_free(block);
}

HIDDEN void partyline_glue_now(int64_t *sec, int64_t *usec)
{
    struct timeval now;

#ifdef osip_gettimeofday
    gettimeofday(&now, NULL);
#else
    if (osip_gettimeofday)
        osip_gettimeofday(&now, NULL);
    else
        gettimeofday(&now, NULL);
#endif
    *sec = now.tv_sec;
    *usec = now.tv_usec;
}

HIDDEN const int partyline_glue_bad_parameter = BAD_PARAMETER;
HIDDEN const int partyline_glue_no_memory = NO_MEMORY;

/* ---- osip_t ---- */

#ifdef PARTYLINE_OSIP_MUTEXES
static void **mutex_of(osip_t *osip, int kind)
{
    /* void * in some versions and struct osip_mutex * in others: the address is all that is used. */
    switch (kind) {
    case ICT:
        return (void **)(void *)&osip->ict_fastmutex;
    case IST:
        return (void **)(void *)&osip->ist_fastmutex;
    case NICT:
        return (void **)(void *)&osip->nict_fastmutex;
    case NIST:
        return (void **)(void *)&osip->nist_fastmutex;
    case IXT:
        return (void **)(void *)&osip->ixt_fastmutex;
    default:
        return (void **)(void *)&osip->id_mutex;
    }
}
#else
/* In 3.x one mutex of each kind serves all osip_t, and a program reaches it through osip_*_lock, which are ours as well. */
static void *mutexes[ID + 1];

static void **mutex_of(osip_t *osip, int kind)
{
    (void)osip;
    return &mutexes[kind];
}
#endif

HIDDEN osip_list_t *partyline_glue_list(osip_t *osip, int kind)
{
    switch (kind) {
    case ICT:
        return &osip->osip_ict_transactions;
    case IST:
        return &osip->osip_ist_transactions;
    case NICT:
        return &osip->osip_nict_transactions;
    case NIST:
        return &osip->osip_nist_transactions;
    default:
        return &osip->ixt_retransmissions;
    }
}

HIDDEN int partyline_glue_lock(osip_t *osip, int kind)
{
    return osip_mutex_lock((struct osip_mutex *)*mutex_of(osip, kind));
}

HIDDEN int partyline_glue_unlock(osip_t *osip, int kind)
{
    return osip_mutex_unlock((struct osip_mutex *)*mutex_of(osip, kind));
}

static void begin(void)
{
    parser_init();
    if (__ict_load_fsm && __ist_load_fsm && __nict_load_fsm && __nist_load_fsm) {
        __ict_load_fsm();
        __ist_load_fsm();
        __nict_load_fsm();
        __nist_load_fsm();
    }
#ifndef PARTYLINE_OSIP_MUTEXES
    for (int kind = ICT; kind <= ID; kind++)
        mutexes[kind] = osip_mutex_init();
#endif
}

HIDDEN int partyline_glue_osip_new(osip_t **out)
{
    static pthread_once_t begun = PTHREAD_ONCE_INIT;
    osip_t *osip;

    pthread_once(&begun, begin);
    *out = osip = (osip_t *)osip_malloc(sizeof *osip);
    if (!osip)
        return NO_MEMORY;
    memset(osip, 0, sizeof *osip);
#ifdef PARTYLINE_OSIP_MUTEXES
    for (int kind = ICT; kind <= ID; kind++)
        *mutex_of(osip, kind) = osip_mutex_init();
#endif
#ifdef PARTYLINE_OSIP_ID
    osip->transactionid = 1;
#endif
    return 0;
}

HIDDEN void partyline_glue_osip_free(osip_t *osip)
{
#ifdef PARTYLINE_OSIP_MUTEXES
    for (int kind = ICT; kind <= ID; kind++)
        osip_mutex_destroy((struct osip_mutex *)*mutex_of(osip, kind));
#endif
    osip_free(osip);
}

/* The next transaction's id. */
HIDDEN int partyline_glue_next_id(osip_t *osip)
{
    int id;
#ifndef PARTYLINE_OSIP_ID
    static int id_of_all = 1;
#endif

    partyline_glue_lock(osip, ID);
#ifdef PARTYLINE_OSIP_ID
    id = osip->transactionid++;
#else
    id = id_of_all++;
#endif
    partyline_glue_unlock(osip, ID);
    return id;
}

/* ---- the public lists ---- */

HIDDEN int partyline_glue_list_count(osip_list_t *list)
{
    return __atomic_load_n(&list->nb_elt, __ATOMIC_RELAXED);
}

/* Under the mutex; the count alone is also read without it. */
static void count_to(osip_list_t *list, int count)
{
    __atomic_store_n(&list->nb_elt, count, __ATOMIC_RELAXED);
}

HIDDEN void *partyline_glue_list_head(osip_list_t *list)
{
    return list->node;
}

HIDDEN struct partyline_node *partyline_glue_list_append(osip_list_t *list, struct partyline_node *tail, void *element)
{
    struct partyline_node *node = osip_malloc(sizeof *node);

    if (!node)
        return NULL;
    node->node.next = NULL;
    node->node.element = element;
    node->prev = tail;
    if (tail)
        tail->node.next = &node->node;
    else
        list->node = &node->node;
    count_to(list, list->nb_elt + 1);
    return node;
}

/* At the head; all nodes of the list are ours. */
HIDDEN struct partyline_node *partyline_glue_list_prepend(osip_list_t *list, void *element)
{
    struct partyline_node *node = osip_malloc(sizeof *node);
    struct partyline_node *next = (struct partyline_node *)(void *)list->node;

    if (!node)
        return NULL;
    node->node.next = list->node;
    node->node.element = element;
    node->prev = NULL;
    if (next)
        next->prev = node;
    list->node = &node->node;
    count_to(list, list->nb_elt + 1);
    return node;
}

HIDDEN void partyline_glue_list_unlink(osip_list_t *list, struct partyline_node *node)
{
    struct partyline_node *next = (struct partyline_node *)(void *)node->node.next;

    if (node->prev)
        node->prev->node.next = node->node.next;
    else
        list->node = node->node.next;
    if (next)
        next->prev = node->prev;
    count_to(list, list->nb_elt - 1);
    osip_free(node);
}

HIDDEN void *partyline_glue_node_prev(struct partyline_node *node)
{
    return node->prev;
}

HIDDEN void *partyline_glue_node_next(__node_t *node)
{
    return node->next;
}

HIDDEN void *partyline_glue_node_element(__node_t *node)
{
    return node->element;
}

/* Takes the whole chain off a list, which the caller then builds anew: nodes that a program put in have no back link. */
HIDDEN void *partyline_glue_list_take(osip_list_t *list, int *count)
{
    void *first = list->node;

    *count = list->nb_elt;
    list->node = NULL;
    count_to(list, 0);
    return first;
}
