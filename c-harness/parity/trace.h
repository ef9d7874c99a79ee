/* What the parity programs share: a clock of their own, callbacks that print, messages. One program is built and run
 * twice, on stock libosip2 and with libpartyline.so preloaded; what it prints has to be the same. */
#ifndef PARITY_TRACE_H
#define PARITY_TRACE_H

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <osip2/osip.h>
#include <osip2/osip_dialog.h>
#include <osipparser2/osip_port.h>

#define UNUSED __attribute__((unused))

/* Where stock osip2 itself crashes, nothing can be compared: left out by name. MAX_LEN is in 3.x only, OSIP_BADPARAMETER
 * since 3.1. */
#ifdef MAX_LEN
#define CRASHES_ON_BRANCH_WITHOUT_VALUE /* strlen(NULL) in the matching predicates */
#ifdef OSIP_BADPARAMETER
#define CRASHES_ON_FAILED_INIT /* osip_transaction_init frees what has no osip_t yet through that osip_t */
#endif
#endif

/* Exported by libosip2, in no public header. */
int __osip_add_ict(osip_t *, osip_transaction_t *);
int __osip_add_ist(osip_t *, osip_transaction_t *);
int __osip_add_nict(osip_t *, osip_transaction_t *);
int __osip_add_nist(osip_t *, osip_transaction_t *);

/* ---- time: osip2 asks this clock, for the definition in the program comes first ---- */

static int64_t now_us = 1000000000;

int osip_gettimeofday(struct timeval *tp, void *tz)
{
    (void)tz;
    tp->tv_sec = now_us / 1000000;
    tp->tv_usec = now_us % 1000000;
    return 0;
}

/* ---- trace ---- */

static int quiet;
static uint64_t digest = 1469598103934665603u;
static unsigned long lines;

static void say(const char *format, ...)
{
    char text[1024];
    va_list list;
    int n;

    va_start(list, format);
    n = vsnprintf(text, sizeof text, format, list);
    va_end(list);
    for (int i = 0; i < n && i < (int)sizeof text - 1; i++)
        digest = (digest ^ (unsigned char)text[i]) * 1099511628211u;
    lines++;
    if (!quiet)
        fputs(text, stdout);
}

static const char *method_of(osip_message_t *m)
{
    return !m ? "-" : MSG_IS_REQUEST(m) ? m->sip_method : "response";
}

/* ---- the stack under test ---- */

static osip_t *stack;
static int (*on_send)(osip_transaction_t *, osip_message_t *);
static void (*on_message)(int, osip_transaction_t *, osip_message_t *);
static void (*on_kill)(int, osip_transaction_t *);

static int cb_send(osip_transaction_t *tr, osip_message_t *m, char *host, int port, int sock)
{
    int code = on_send ? on_send(tr, m) : 0;

    say("  send tr %d state %d %s %d to %s:%d sock %d -> %d\n", tr ? tr->transactionid : -1, tr ? (int)tr->state : -1,
        method_of(m), m->status_code, host ? host : "-", port, sock, code);
    return code;
}

static void cb_message(int type, osip_transaction_t *tr, osip_message_t *m)
{
    say("  message %d tr %d kind %d state %d %s %d\n", type, tr->transactionid, tr->ctx_type, tr->state, method_of(m),
        m ? m->status_code : -1);
    if (on_message)
        on_message(type, tr, m);
}

static void cb_kill(int type, osip_transaction_t *tr)
{
    say("  kill %d tr %d state %d completed %s\n", type, tr->transactionid, tr->state, tr->completed_time ? "set" : "no");
    if (on_kill)
        on_kill(type, tr);
}

static void cb_error(int type, osip_transaction_t *tr, int error)
{
    say("  error %d tr %d state %d code %d\n", type, tr->transactionid, tr->state, error);
}

static void no_trace(const char *file, int line, osip_trace_level_t level, const char *format, va_list list)
{
    (void)file;
    (void)line;
    (void)level;
    (void)format;
    (void)list;
}

UNUSED static void open_stack(void)
{
    int i;

    /* Stock complains of each transaction that it walks past. The type has no const in older versions. */
    osip_trace_initialize_func(0, (void *)no_trace);
    say("init %d\n", osip_init(&stack));
    osip_set_cb_send_message(stack, cb_send);
    for (i = 0; i < OSIP_MESSAGE_CALLBACK_COUNT; i++)
        osip_set_message_callback(stack, i, cb_message);
    for (i = 0; i < OSIP_KILL_CALLBACK_COUNT; i++)
        osip_set_kill_transaction_callback(stack, i, cb_kill);
    for (i = 0; i < OSIP_TRANSPORT_ERROR_CALLBACK_COUNT; i++)
        osip_set_transport_error_callback(stack, i, cb_error);
}

UNUSED static osip_list_t *list_of(int kind)
{
    return kind == ICT ? &stack->osip_ict_transactions : kind == IST ? &stack->osip_ist_transactions
         : kind == NICT ? &stack->osip_nict_transactions : &stack->osip_nist_transactions;
}

/* The public lists as a program sees them, walked by hand and by osip2's iterator. */
UNUSED static void show_lists(void)
{
    for (int kind = 0; kind < 4; kind++) {
        osip_list_t *list = list_of(kind);
        osip_list_iterator_t it;
        osip_transaction_t *tr;
        __node_t *node = list->node;
        int n = 0;

        say("  list %d of %d:", kind, osip_list_size(list));
        for (tr = osip_list_get_first(list, &it); osip_list_iterator_has_elem(it); tr = osip_list_get_next(&it), n++) {
            say(" %d/%d/%d", tr->transactionid, tr->state, osip_fifo_size(tr->transactionff));
            if (node->element != tr || osip_list_get(list, n) != tr)
                say(" BROKEN");
            node = (__node_t *)node->next;
        }
        say("%s\n", node ? " LONGER" : "");
    }
}

UNUSED static void show_timeout(void)
{
    struct timeval tv = { -5, -5 };

    osip_timers_gettimeout(stack, &tv);
    say("  timeout %ld.%06ld\n", (long)tv.tv_sec, (long)tv.tv_usec);
}

UNUSED static void run_execute(void)
{
    say("  execute %d %d %d %d\n", osip_ict_execute(stack), osip_ist_execute(stack), osip_nict_execute(stack),
        osip_nist_execute(stack));
}

UNUSED static void run_timers(void)
{
    osip_timers_ict_execute(stack);
    osip_timers_ist_execute(stack);
    osip_timers_nict_execute(stack);
    osip_timers_nist_execute(stack);
}

/* ---- messages ---- */

static char text[4096];

/* A branch of NULL: no branch parameter; "": one without a value. */
static const char *request(const char *method, const char *branch, const char *call, int cseq, const char *to_tag)
{
    char via[256] = "";

    if (branch)
        snprintf(via, sizeof via, *branch ? ";branch=%s" : ";branch", branch);
    snprintf(text, sizeof text,
             "%s sip:bob@127.0.0.1:5070 SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.%d:5062%s\r\nMax-Forwards: 70\r\n"
             "From: <sip:alice@example.org>;tag=a%d\r\nTo: <sip:bob@example.org>%s%s\r\nCall-ID: %s@here\r\n"
             "CSeq: %d %s\r\nContact: <sip:alice@10.0.0.1:5062>\r\nContent-Length: 0\r\n\r\n",
             method, cseq % 3, via, cseq % 2, to_tag ? ";tag=" : "", to_tag ? to_tag : "", call, cseq, method);
    return text;
}

UNUSED static osip_event_t *parse(const char *from)
{
    osip_event_t *event = osip_parse(from, strlen(from));

    if (!event)
        say("  unparsable\n");
    return event;
}

UNUSED static osip_message_t *message(const char *from)
{
    osip_message_t *m;

    osip_message_init(&m);
    if (osip_message_parse(m, from, strlen(from)) != 0) {
        osip_message_free(m);
        return NULL;
    }
    return m;
}

UNUSED static osip_message_t *response_to(osip_message_t *req, int status)
{
    osip_message_t *m;
    osip_via_t *via, *copy;
    osip_generic_param_t *tag = NULL;

    osip_message_init(&m);
    osip_message_set_version(m, osip_strdup("SIP/2.0"));
    osip_message_set_status_code(m, status);
    osip_message_set_reason_phrase(m, osip_strdup("Reason"));
    for (int i = 0; (via = osip_list_get(&req->vias, i)) != NULL; i++) {
        osip_via_clone(via, &copy);
        osip_list_add(&m->vias, copy, -1);
    }
    osip_from_clone(req->from, &m->from);
    osip_to_clone(req->to, &m->to);
    osip_to_get_tag(m->to, &tag);
    if (!tag && status > 100)
        osip_to_set_tag(m->to, osip_strdup("b1"));
    osip_call_id_clone(req->call_id, &m->call_id);
    osip_cseq_clone(req->cseq, &m->cseq);
    return m;
}

/* What the network hands in: an event from the text of a response. */
UNUSED static osip_event_t *incoming_response(osip_message_t *req, int status)
{
    osip_message_t *m = response_to(req, status);
    char *out = NULL;
    size_t length = 0;
    osip_event_t *event = NULL;

    if (osip_message_to_str(m, &out, &length) == 0) {
        event = osip_parse(out, length);
        osip_free(out);
    }
    osip_message_free(m);
    return event;
}

UNUSED static void drop_event(osip_event_t *event)
{
    if (event) {
        osip_message_free(event->sip);
        osip_free(event);
    }
}

/* As servers do it: to a transaction that is there, else to a new one. */
UNUSED static osip_transaction_t *deliver(osip_event_t *event)
{
    osip_transaction_t *tr;

    if (!event)
        return NULL;
    if (osip_find_transaction_and_add_event(stack, event) == 0) {
        say("  found for %d: %d\n", event->type, event->transactionid);
        return NULL;
    }
    if (!EVT_IS_INCOMINGREQ(event)) {
        say("  nobody for %d\n", event->type);
        drop_event(event);
        return NULL;
    }
    tr = osip_create_transaction(stack, event);
    if (!tr) {
        say("  no transaction for %d\n", event->type);
        drop_event(event);
        return NULL;
    }
    say("  created %d kind %d state %d event %d\n", tr->transactionid, tr->ctx_type, tr->state, event->transactionid);
    osip_transaction_set_in_socket(tr, 7);
    osip_transaction_set_out_socket(tr, 7);
    say("  add %d\n", osip_transaction_add_event(tr, event));
    return tr;
}

UNUSED static osip_transaction_t *start_client(const char *from, int kind)
{
    osip_transaction_t *tr = NULL;
    osip_message_t *m = message(from);
    int code;

    if (!m)
        return NULL;
    code = osip_transaction_init(&tr, kind, stack, m);
    say("  client %d -> %d id %d\n", kind, code, tr ? tr->transactionid : -1);
    if (code != 0) {
        osip_message_free(m);
        return NULL;
    }
    osip_transaction_set_out_socket(tr, 9);
    osip_transaction_add_event(tr, osip_new_outgoing_sipmessage(m));
    return tr;
}

UNUSED static void answer(osip_transaction_t *tr, int status)
{
    osip_event_t *event;

    if (!tr->orig_request)
        return;
    event = osip_new_outgoing_sipmessage(response_to(tr->orig_request, status));
    event->transactionid = tr->transactionid;
    say("  answer %d to %d: %d\n", status, tr->transactionid, osip_transaction_add_event(tr, event));
}

UNUSED static void step(const char *what, int64_t milliseconds)
{
    say("%s (+%ld ms)\n", what, (long)milliseconds);
    now_us += milliseconds * 1000;
    run_timers();
    show_timeout();
    run_execute();
    show_timeout();
    show_lists();
}

#endif
