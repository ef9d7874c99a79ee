/* Reads and writes the fields of osip_transaction_t and osip_event_t for the engine, and calls osip2. */
#include "glue_osip.h"

#pragma weak osip_mutex_init
#pragma weak osip_mutex_destroy
#pragma weak osip_mutex_lock
#pragma weak osip_mutex_unlock
#pragma weak osip_uri_param_get_byname
#pragma weak osip_list_get
#pragma weak osip_via_clone
#pragma weak osip_via_free
#pragma weak osip_from_clone
#pragma weak osip_from_free
#pragma weak osip_to_clone
#pragma weak osip_to_free
#pragma weak osip_call_id_clone
#pragma weak osip_call_id_free
#pragma weak osip_cseq_clone
#pragma weak osip_cseq_free
#pragma weak osip_message_free
/* In 3.x these are libc's. */
#ifndef osip_gettimeofday
#pragma weak osip_gettimeofday
#pragma weak osip_getsystemtime
#endif
#pragma weak parser_init
#pragma weak osip_transaction_execute

extern int parser_init(void);
WEAK extern int __osip_ict_init(osip_ict_t **, osip_t *, osip_message_t *);
WEAK extern int __osip_ist_init(osip_ist_t **, osip_t *, osip_message_t *);
WEAK extern int __osip_nict_init(osip_nict_t **, osip_t *, osip_message_t *);
WEAK extern int __osip_nist_init(osip_nist_t **, osip_t *, osip_message_t *);
WEAK extern int __osip_ict_free(osip_ict_t *);
WEAK extern int __osip_ist_free(osip_ist_t *);
WEAK extern int __osip_nict_free(osip_nict_t *);
WEAK extern int __osip_nist_free(osip_nist_t *);
WEAK extern int __osip_transaction_matching_response_osip_to_xict_17_1_3(osip_transaction_t *, osip_message_t *);
WEAK extern int __osip_transaction_matching_request_osip_to_xist_17_2_3(osip_transaction_t *, osip_message_t *);
WEAK extern osip_event_t *__osip_ict_need_timer_a_event(osip_ict_t *, state_t, int);
WEAK extern osip_event_t *__osip_ict_need_timer_b_event(osip_ict_t *, state_t, int);
WEAK extern osip_event_t *__osip_ict_need_timer_d_event(osip_ict_t *, state_t, int);
WEAK extern osip_event_t *__osip_ist_need_timer_g_event(osip_ist_t *, state_t, int);
WEAK extern osip_event_t *__osip_ist_need_timer_h_event(osip_ist_t *, state_t, int);
WEAK extern osip_event_t *__osip_ist_need_timer_i_event(osip_ist_t *, state_t, int);
WEAK extern osip_event_t *__osip_nict_need_timer_e_event(osip_nict_t *, state_t, int);
WEAK extern osip_event_t *__osip_nict_need_timer_f_event(osip_nict_t *, state_t, int);
WEAK extern osip_event_t *__osip_nict_need_timer_k_event(osip_nict_t *, state_t, int);
WEAK extern osip_event_t *__osip_nist_need_timer_j_event(osip_nist_t *, state_t, int);

/* Whether the osip2 that is loaded has all that the engine calls. */
HIDDEN int partyline_glue_osip_complete(void)
{
    return osip_mutex_init && osip_mutex_destroy && osip_mutex_lock && osip_mutex_unlock && osip_uri_param_get_byname
        && osip_list_get && osip_via_clone && osip_via_free && osip_from_clone && osip_from_free && osip_to_clone
        && osip_to_free && osip_call_id_clone && osip_call_id_free && osip_cseq_clone && osip_cseq_free
        && osip_message_free && parser_init && osip_transaction_execute && __osip_ict_init && __osip_ist_init
        && __osip_nict_init && __osip_nist_init && __osip_ict_free && __osip_ist_free && __osip_nict_free
        && __osip_nist_free && __osip_transaction_matching_response_osip_to_xict_17_1_3
        && __osip_transaction_matching_request_osip_to_xist_17_2_3 && __osip_ict_need_timer_a_event
        && __osip_ict_need_timer_b_event && __osip_ict_need_timer_d_event && __osip_ist_need_timer_g_event
        && __osip_ist_need_timer_h_event && __osip_ist_need_timer_i_event && __osip_nict_need_timer_e_event
        && __osip_nict_need_timer_f_event && __osip_nict_need_timer_k_event && __osip_nist_need_timer_j_event
        && partyline_glue_resend_complete();
}

static time_t birth(void)
{
#ifndef osip_gettimeofday
    if (osip_getsystemtime)
        return osip_getsystemtime(NULL);
#endif
    return time(NULL);
}

/* ---- osip_transaction_t ---- */

HIDDEN const size_t partyline_glue_transaction_size = sizeof(osip_transaction_t);
#ifdef PARTYLINE_SRV_RECORD
HIDDEN const size_t partyline_glue_idle_from = offsetof(osip_transaction_t, record);
HIDDEN const size_t partyline_glue_idle_to = offsetof(osip_transaction_t, record) + sizeof(osip_srv_record_t);
#else
HIDDEN const size_t partyline_glue_idle_from = 0;
HIDDEN const size_t partyline_glue_idle_to = 0;
#endif

HIDDEN int partyline_glue_kind(osip_transaction_t *tr)
{
    return tr->ctx_type;
}

HIDDEN int partyline_glue_id(osip_transaction_t *tr)
{
    return tr->transactionid;
}

HIDDEN void *partyline_glue_config(osip_transaction_t *tr)
{
    return tr->config;
}

HIDDEN int partyline_glue_pending(osip_transaction_t *tr)
{
    return partyline_fifo_count(tr->transactionff);
}

HIDDEN void *partyline_glue_next_event(osip_transaction_t *tr)
{
    return partyline_fifo_take(tr->transactionff);
}

HIDDEN void *partyline_glue_fifo(osip_transaction_t *tr)
{
    return tr->transactionff;
}

HIDDEN void partyline_glue_fetch_side(void *side)
{
    __builtin_prefetch(side);
}

/* What `partyline_glue_deadline` will read, fetched in two steps: the fields, then what they point at. */
HIDDEN void partyline_glue_fetch(osip_transaction_t *tr)
{
    __builtin_prefetch(&tr->transactionff);
    __builtin_prefetch(&tr->state);
    __builtin_prefetch(&tr->nist_context);
}

HIDDEN void partyline_glue_fetch_context(osip_transaction_t *tr)
{
    switch ((int)tr->ctx_type) {
    case ICT:
        if (tr->ict_context)
            __builtin_prefetch(&tr->ict_context->timer_b_start);
        return;
    case IST:
        if (tr->ist_context)
            __builtin_prefetch(&tr->ist_context->timer_h_start);
        return;
    case NICT:
        if (tr->nict_context)
            __builtin_prefetch(&tr->nict_context->timer_f_start);
        return;
    default:
        if (tr->nist_context)
            __builtin_prefetch(&tr->nist_context->timer_j_start);
    }
}

static const char *branch_of(osip_via_t *via)
{
    osip_generic_param_t *branch = NULL;

    if (!via)
        return NULL;
    osip_uri_param_get_byname(&via->via_params, (char *)"branch", &branch);
    return branch ? branch->gvalue : NULL;
}

HIDDEN void partyline_glue_transaction_key(osip_transaction_t *tr, const char **branch, const char **call)
{
    *branch = branch_of(tr->topvia);
    *call = tr->callid ? tr->callid->number : NULL;
}

/* The caller has checked that the request has a Call-ID and has zeroed the transaction. On failure it frees it. */
HIDDEN int partyline_glue_transaction_init(osip_transaction_t *tr, int kind, osip_t *osip, osip_message_t *request,
                                           void *side)
{
    osip_via_t *via;
    int error;

    tr->birth_time = birth();
#ifdef PARTYLINE_CREATED_TIME
    osip_gettimeofday(&tr->created_time, NULL);
#endif
    tr->transactionid = partyline_glue_next_id(osip);
    tr->ctx_type = kind;
    tr->config = osip;
    via = (osip_via_t *)osip_list_get(&request->vias, 0);
    if (!via)
        return SYNTAX_ERROR;
    if ((error = osip_via_clone(via, &tr->topvia)) != 0) {
        tr->topvia = NULL;
        return error;
    }
    if ((error = osip_from_clone(request->from, &tr->from)) != 0) {
        tr->from = NULL;
        return error;
    }
    if ((error = osip_to_clone(request->to, &tr->to)) != 0) {
        tr->to = NULL;
        return error;
    }
    if ((error = osip_call_id_clone(request->call_id, &tr->callid)) != 0) {
        tr->callid = NULL;
        return error;
    }
    if ((error = osip_cseq_clone(request->cseq, &tr->cseq)) != 0) {
        tr->cseq = NULL;
        return error;
    }
    tr->transactionff = partyline_fifo_new(side);
    if (!tr->transactionff)
        return NO_MEMORY;
    switch (kind) {
    case ICT:
        tr->state = ICT_PRE_CALLING;
        return __osip_ict_init(&tr->ict_context, osip, request);
    case IST:
        tr->state = IST_PRE_PROCEEDING;
        return __osip_ist_init(&tr->ist_context, osip, request);
    case NICT:
        tr->state = NICT_PRE_TRYING;
        return __osip_nict_init(&tr->nict_context, osip, request);
    default:
        tr->state = NIST_PRE_TRYING;
        return __osip_nist_init(&tr->nist_context, osip, request);
    }
}

HIDDEN int partyline_glue_has_call_id(osip_message_t *request)
{
    return request && request->call_id && request->call_id->number;
}

/* All that hangs on a transaction; not the transaction itself. */
HIDDEN void partyline_glue_transaction_clear(osip_transaction_t *tr)
{
    osip_event_t *event;

    switch ((int)tr->ctx_type) {
    case ICT:
        __osip_ict_free(tr->ict_context);
        break;
    case IST:
        __osip_ist_free(tr->ist_context);
        break;
    case NICT:
        __osip_nict_free(tr->nict_context);
        break;
    default:
        __osip_nist_free(tr->nist_context);
        break;
    }
    if (tr->transactionff) {
        while ((event = partyline_fifo_take(tr->transactionff)) != NULL) {
            osip_message_free(event->sip);
            osip_free(event);
        }
        partyline_fifo_drop(tr->transactionff);
    }
    osip_message_free(tr->orig_request);
    osip_message_free(tr->last_response);
    osip_message_free(tr->ack);
    osip_via_free(tr->topvia);
    osip_from_free(tr->from);
    osip_to_free(tr->to);
    osip_call_id_free(tr->callid);
    osip_cseq_free(tr->cseq);
}

/* ---- timers ---- */

static void earlier(struct deadline *least, const struct timeval *timer)
{
    if (timer->tv_sec == -1)
        return;
    if (timer->tv_sec < least->sec || (timer->tv_sec == least->sec && timer->tv_usec < least->usec)) {
        least->sec = timer->tv_sec;
        least->usec = timer->tv_usec;
    }
}

/* The earliest of the timers that the state lets run; INT64_MAX: none. */
HIDDEN void partyline_glue_deadline(osip_transaction_t *tr, struct deadline *least)
{
    least->sec = least->usec = INT64_MAX;
    switch ((int)tr->ctx_type) {
    case ICT:
        if (!tr->ict_context)
            return;
        if (tr->state == ICT_CALLING) {
            earlier(least, &tr->ict_context->timer_b_start);
            earlier(least, &tr->ict_context->timer_a_start);
        }
        if (tr->state == ICT_COMPLETED)
            earlier(least, &tr->ict_context->timer_d_start);
        return;
    case IST:
        if (!tr->ist_context)
            return;
        if (tr->state == IST_CONFIRMED)
            earlier(least, &tr->ist_context->timer_i_start);
        if (tr->state == IST_COMPLETED) {
            earlier(least, &tr->ist_context->timer_h_start);
            earlier(least, &tr->ist_context->timer_g_start);
        }
        return;
    case NICT:
        if (!tr->nict_context)
            return;
        if (tr->state == NICT_COMPLETED)
            earlier(least, &tr->nict_context->timer_k_start);
        if (tr->state == NICT_PROCEEDING || tr->state == NICT_TRYING) {
            earlier(least, &tr->nict_context->timer_f_start);
            earlier(least, &tr->nict_context->timer_e_start);
        }
        return;
    default:
        if (tr->nist_context && tr->state == NIST_COMPLETED)
            earlier(least, &tr->nist_context->timer_j_start);
    }
}

/* The event of the first timer, in osip2's order, that osip2 itself finds expired. */
HIDDEN void *partyline_glue_timer_event(osip_transaction_t *tr)
{
    osip_event_t *event;
    int id = tr->transactionid;

    switch ((int)tr->ctx_type) {
    case ICT:
        event = __osip_ict_need_timer_b_event(tr->ict_context, tr->state, id);
        if (!event)
            event = __osip_ict_need_timer_a_event(tr->ict_context, tr->state, id);
        return event ? event : __osip_ict_need_timer_d_event(tr->ict_context, tr->state, id);
    case IST:
        event = __osip_ist_need_timer_i_event(tr->ist_context, tr->state, id);
        if (!event)
            event = __osip_ist_need_timer_h_event(tr->ist_context, tr->state, id);
        return event ? event : __osip_ist_need_timer_g_event(tr->ist_context, tr->state, id);
    case NICT:
        event = __osip_nict_need_timer_k_event(tr->nict_context, tr->state, id);
        if (!event)
            event = __osip_nict_need_timer_f_event(tr->nict_context, tr->state, id);
        return event ? event : __osip_nict_need_timer_e_event(tr->nict_context, tr->state, id);
    default:
        return __osip_nist_need_timer_j_event(tr->nist_context, tr->state, id);
    }
}

/* ---- events ---- */

HIDDEN int partyline_glue_event_view(osip_event_t *event, struct partyline_event *view)
{
    osip_message_t *sip;
    const char *method;
    int invite, ack, request;

    if (!event || !event->sip || !event->sip->cseq)
        return 0;
    sip = event->sip;
    method = sip->cseq->method;
    invite = strcmp(method, "INVITE") == 0;
    ack = strcmp(method, "ACK") == 0;
    request = MSG_IS_REQUEST(sip);
    view->id = event->transactionid;
    view->branch = view->call = NULL;
    view->kind = -1;
    if (EVT_IS_INCOMINGMSG(event)) {
        if (request)
            view->kind = invite || ack ? IST : NIST;
        else
            view->kind = invite ? ICT : NICT;
    } else if (EVT_IS_OUTGOINGMSG(event)) {
        if (request)
            view->kind = invite || ack ? ICT : NICT;
        else
            view->kind = invite ? IST : NIST;
    }
    return 1;
}

/* How the event is to be looked up in a list, and under which key. */
HIDDEN int partyline_glue_event_key(osip_event_t *event, struct partyline_event *view)
{
    view->kind = -1;
    view->id = event->transactionid;
    view->branch = view->call = NULL;
    view->dir = EVT_IS_INCOMINGREQ(event) ? 0 : EVT_IS_INCOMINGRESP(event) ? 1 : 2;
    if (view->dir < 2 && event->sip) {
        view->branch = branch_of((osip_via_t *)osip_list_get(&event->sip->vias, 0));
        view->call = event->sip->call_id ? event->sip->call_id->number : NULL;
    }
    return view->dir;
}

HIDDEN int partyline_glue_matches(osip_transaction_t *tr, osip_event_t *event, int dir)
{
    if (dir == 0)
        return __osip_transaction_matching_request_osip_to_xist_17_2_3(tr, event->sip) == 0;
    if (dir == 1)
        return __osip_transaction_matching_response_osip_to_xict_17_1_3(tr, event->sip) == 0;
    return tr->transactionid == event->transactionid;
}

HIDDEN void partyline_glue_event_set_id(osip_event_t *event, int id)
{
    event->transactionid = id;
}

/* Which kind of transaction the event starts; -1: none. */
HIDDEN int partyline_glue_event_starts(osip_event_t *event, osip_message_t **request)
{
    osip_message_t *sip;

    if (!event || !event->sip)
        return -1;
    *request = sip = event->sip;
    if (MSG_IS_REQUEST(sip)) {
        if (!sip->cseq || !sip->cseq->method || !sip->sip_method || strcmp(sip->cseq->method, sip->sip_method) != 0)
            return -1;
    }
    if (MSG_IS_ACK(sip))
        return -1;
    if (EVT_IS_INCOMINGREQ(event))
        return strcmp(sip->cseq->method, "INVITE") == 0 ? IST : NIST;
    if (EVT_IS_OUTGOINGREQ(event))
        return strcmp(sip->cseq->method, "INVITE") == 0 ? ICT : NICT;
    return -1;
}
