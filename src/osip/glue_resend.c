/* Retransmissions of 200 and ACK: reads and writes their fields for the engine. */
#include "glue_osip.h"
#include <osip2/osip_dialog.h>

#pragma weak osip_message_clone
#pragma weak osip_message_free
#pragma weak osip_response_get_destination
#pragma weak osip_dialog_match_as_uas
#pragma weak osip_strdup
#pragma weak add_gettimeofday

extern void add_gettimeofday(struct timeval *at, int milliseconds);

HIDDEN int partyline_glue_resend_complete(void)
{
    return osip_message_clone && osip_message_free && osip_response_get_destination && osip_dialog_match_as_uas
        && osip_strdup && add_gettimeofday;
}

/* A 200 finds its destination itself; an ACK is told. */
HIDDEN ixt_t *partyline_glue_ixt_new(osip_dialog_t *dialog, osip_message_t *message, int is_ack, const char *dest, int port,
                                     int sock)
{
    ixt_t *ixt = (ixt_t *)osip_malloc(sizeof *ixt);
    int64_t sec, usec;

    if (!ixt)
        return NULL;
    memset(ixt, 0, sizeof *ixt);
    ixt->dialog = dialog;
    ixt->interval = DEFAULT_T1;
    partyline_glue_now(&sec, &usec);
    ixt->start.tv_sec = (time_t)sec;
    ixt->start.tv_usec = (suseconds_t)usec;
    add_gettimeofday(&ixt->start, DEFAULT_T1 + 10);
    ixt->counter = 10;
    ixt->port = 5060;
    ixt->sock = sock;
    osip_message_clone(message, is_ack ? &ixt->ack : &ixt->msg2xx);
    if (is_ack) {
        ixt->dest = osip_strdup(dest);
        ixt->port = port;
    } else {
        osip_response_get_destination(message, &ixt->dest, &ixt->port);
    }
    return ixt;
}

HIDDEN void partyline_glue_ixt_free(ixt_t *ixt)
{
    osip_message_free(ixt->ack);
    osip_message_free(ixt->msg2xx);
    osip_free(ixt->dest);
    osip_free(ixt);
}

HIDDEN void partyline_glue_ixt_read(ixt_t *ixt, void **dialog, struct deadline *start, int *counter)
{
    *dialog = ixt->dialog;
    start->sec = ixt->start.tv_sec;
    start->usec = ixt->start.tv_usec;
    *counter = ixt->counter;
}

/* One more is sent: the next is due twice as late, T2 at most. Returns 0 where there is nothing to send. */
HIDDEN int partyline_glue_ixt_send(ixt_t *ixt, struct partyline_resend *out)
{
    ixt->interval = ixt->interval > DEFAULT_T2 / 2 ? DEFAULT_T2 : ixt->interval * 2;
    add_gettimeofday(&ixt->start, ixt->interval);
    ixt->counter--;
    out->message = ixt->ack ? ixt->ack : ixt->msg2xx;
    out->dest = ixt->dest;
    out->port = ixt->port;
    out->sock = ixt->sock;
    return out->message != NULL;
}

HIDDEN const char *partyline_glue_dialog_call(osip_dialog_t *dialog)
{
    return dialog ? dialog->call_id : NULL;
}

HIDDEN const char *partyline_glue_message_call(osip_message_t *message)
{
    return message && message->call_id ? message->call_id->number : NULL;
}

/* Whether one is due at its time, or only after that. */
#ifdef DEFAULT_T1_TCP_PROGRESS /* since 5.0 */
HIDDEN const int partyline_glue_due_on_time = 1;
#else
HIDDEN const int partyline_glue_due_on_time = 0;
#endif

/* osip2's own decision. */
HIDDEN int partyline_glue_ixt_answered(ixt_t *ixt, osip_message_t *ack)
{
#ifdef DEFAULT_T1_TCP_PROGRESS /* since 5.0, and so is the look at the CSeq */
    osip_message_t *sent = ixt->msg2xx;

    if (!ack->cseq || !ack->cseq->number || !sent || !sent->cseq || !sent->cseq->number)
        return 0;
    if (strcmp(sent->cseq->number, ack->cseq->number) != 0)
        return 0;
#endif
    return osip_dialog_match_as_uas(ixt->dialog, ack) == 0;
}
