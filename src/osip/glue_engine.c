/* The loops around osip2's state machine and the program's send callback. They stand here and not in Rust because a callback
 * may leave them by pthread_exit, osip_thread_exit or cancellation: the handler then puts the engine right while C frames
 * unwind. */
#include <pthread.h>
#include "glue_osip.h"

#pragma weak osip_transaction_execute

struct partyline_step {
    osip_transaction_t *transaction;
    osip_event_t *event;
};

/* `next` fills the step and returns 1, or returns 0 when the call is over. */
HIDDEN void partyline_glue_execute(void *call, int (*next)(void *, struct partyline_step *), void (*leave)(void *))
{
    struct partyline_step step;

    pthread_cleanup_push(leave, call);
    while (next(call, &step))
        osip_transaction_execute(step.transaction, step.event);
    pthread_cleanup_pop(1);
}

HIDDEN void partyline_glue_resend(void *call, int (*next)(void *, struct partyline_resend *), void (*leave)(void *))
{
    struct partyline_resend resend;

    pthread_cleanup_push(leave, call);
    while (next(call, &resend))
        resend.osip->cb_send_message(NULL, resend.message, resend.dest, resend.port, resend.sock);
    pthread_cleanup_pop(1);
}
