/* osip2's fifo: the public layout, with the tail and the owner in a block behind the mutex, where osip2 itself never
 * looks. What a program does to the queue with osip_list_* shows in the count, the head, a node behind the tail or the number
 * of removals, and the tail is then found anew. */
#include "glue_osip.h"

#pragma weak osip_mutex_lock
#pragma weak osip_mutex_unlock
#pragma weak osip_mutex_destroy
#pragma weak osip_sem_init
#pragma weak osip_sem_post
#pragma weak osip_sem_wait
#pragma weak osip_sem_trywait
#pragma weak osip_sem_destroy

#include <pthread.h>

struct lock {
    pthread_mutex_t mutex; /* first: osip_mutex_lock and osip_mutex_destroy take the address of the block */
    uintptr_t mark;        /* the block's own address, complemented: this is a lock of ours */
    __node_t *head, *tail; /* of the queue when we last changed it */
    int count;
    unsigned long removals;
    void *owner;
};

static unsigned long removals(const osip_fifo_t *ff)
{
    return __atomic_load_n(partyline_removals_of(&ff->queue), __ATOMIC_RELAXED);
}

static struct lock *lock_of(osip_fifo_t *ff)
{
    struct lock *lock = (struct lock *)(void *)ff->qislocked;
    return lock && lock->mark == ~(uintptr_t)lock ? lock : NULL;
}

static void remember(osip_fifo_t *ff, __node_t *tail)
{
    struct lock *lock = lock_of(ff);
    if (lock) {
        lock->head = ff->queue.node;
        lock->tail = tail;
        lock->count = ff->queue.nb_elt;
        lock->removals = removals(ff);
    }
}

static __node_t *last(osip_fifo_t *ff)
{
    struct lock *lock = lock_of(ff);
    __node_t *node = ff->queue.node;
    if (lock && lock->count == ff->queue.nb_elt && lock->head == node
        && lock->removals == removals(ff))
        node = lock->tail;
    while (node && node->next)
        node = (__node_t *)node->next;
    return node;
}

HIDDEN int partyline_fifo_setup(osip_fifo_t *ff, void *owner)
{
    struct lock *lock = partyline_alloc(sizeof *lock);
    if (lock) {
        pthread_mutex_init(&lock->mutex, NULL);
        lock->mark = ~(uintptr_t)lock;
        lock->head = lock->tail = NULL;
        lock->count = 0;
        lock->removals = removals(ff);
        lock->owner = owner;
    }
    ff->qislocked = (struct osip_mutex *)(void *)lock;
    ff->qisempty = osip_sem_init(0);
    ff->queue.nb_elt = 0;
    ff->queue.node = NULL;
    ff->state = osip_empty;
    return lock && ff->qisempty;
}

#ifdef PARTYLINE_FIFO_LIMIT
static int is_full(osip_fifo_t *ff)
{
    return ff->state == osip_full;
}

static osip_fifo_state state_after_adding(osip_fifo_t *ff)
{
    return ff->queue.nb_elt >= MAX_LEN ? osip_full : osip_ok;
}
#else
static int is_full(osip_fifo_t *ff)
{
    (void)ff;
    return 0;
}

#define state_after_adding(ff) osip_ok
#endif

/* Returns the owner, whom the caller tells, or NULL. `failed`: 1 where memory is short, 2 where the fifo has a limit that
 * is reached. */
HIDDEN void *partyline_fifo_put(osip_fifo_t *ff, void *element, int front, int *failed)
{
    struct lock *lock;
    void *owner;
    __node_t *node = partyline_alloc(sizeof *node);

    *failed = node == NULL;
    if (!node)
        return NULL;
    node->element = element;
    node->next = NULL;
    osip_mutex_lock(ff->qislocked);
    if (is_full(ff)) {
        osip_mutex_unlock(ff->qislocked);
        partyline_release(node);
        *failed = 2;
        return NULL;
    }
    if (front || ff->queue.nb_elt <= 0 || !ff->queue.node) {
        __node_t *tail = ff->queue.nb_elt > 0 ? last(ff) : NULL;
        node->next = ff->queue.nb_elt > 0 ? ff->queue.node : NULL;
        ff->queue.node = node;
        ff->queue.nb_elt++;
        remember(ff, tail ? tail : node);
    } else {
        last(ff)->next = node;
        ff->queue.nb_elt++;
        remember(ff, node);
    }
    ff->state = state_after_adding(ff);
    lock = lock_of(ff);
    owner = lock ? lock->owner : NULL;
    osip_sem_post(ff->qisempty);
    osip_mutex_unlock(ff->qislocked);
    return owner;
}

static void *pop(osip_fifo_t *ff)
{
    void *element = NULL;
    __node_t *node, *tail;

    osip_mutex_lock(ff->qislocked);
    node = ff->queue.node;
    if (ff->state != osip_empty && ff->queue.nb_elt > 0 && node) {
        tail = last(ff);
        element = node->element;
        ff->queue.node = node->next;
        ff->queue.nb_elt--;
        remember(ff, ff->queue.nb_elt > 0 ? tail : NULL);
        partyline_release(node);
    }
    ff->state = ff->queue.nb_elt <= 0 ? osip_empty : osip_ok;
    osip_mutex_unlock(ff->qislocked);
    return element;
}

HIDDEN void *partyline_fifo_take(osip_fifo_t *ff)
{
    return !ff || osip_sem_trywait(ff->qisempty) != 0 ? NULL : pop(ff);
}

HIDDEN void *partyline_fifo_wait(osip_fifo_t *ff)
{
    return osip_sem_wait(ff->qisempty) != 0 ? NULL : pop(ff);
}

HIDDEN int partyline_fifo_count(osip_fifo_t *ff)
{
    int count;

    if (!ff)
        return 0;
    osip_mutex_lock(ff->qislocked);
    count = ff->queue.nb_elt;
    osip_mutex_unlock(ff->qislocked);
    return count;
}

HIDDEN osip_fifo_t *partyline_fifo_new(void *owner)
{
    osip_fifo_t *ff = partyline_alloc(sizeof *ff);

    if (ff) {
        ff->nb_elt = 0;
        if (!partyline_fifo_setup(ff, owner)) {
            /* Without its semaphore a fifo gives nothing back. */
            partyline_fifo_drop(ff);
            return NULL;
        }
    }
    return ff;
}

HIDDEN void *partyline_fifo_owner(osip_fifo_t *ff)
{
    struct lock *lock = lock_of(ff);

    return lock ? lock->owner : NULL;
}

HIDDEN void partyline_fifo_drop(osip_fifo_t *ff)
{
    struct lock *lock = lock_of(ff);

    if (lock)
        lock->mark = 0;
    osip_mutex_destroy(ff->qislocked);
    osip_sem_destroy(ff->qisempty);
    partyline_release(ff);
}
