/* The loop around osip2's state machine. It stands here and not in Rust because a callback may leave it by
 * pthread_exit, osip_thread_exit or cancellation: the handler then puts the engine right while C frames unwind. */
#include <pthread.h>
#include "glue_osip.h"

#pragma weak osip_transaction_execute

/* engine/execute.rs: fills the two pointers and returns 1, or returns 0 when the call is over. */
struct partyline_step {
    osip_transaction_t *transaction;
    osip_event_t *event;
};
int partyline_execute_next(void *call, struct partyline_step *step);
void partyline_execute_leave(void *call);

HIDDEN void partyline_glue_execute(void *call)
{
    struct partyline_step step;

    pthread_cleanup_push(partyline_execute_leave, call);
    while (partyline_execute_next(call, &step))
        osip_transaction_execute(step.transaction, step.event);
    pthread_cleanup_pop(1);
}
