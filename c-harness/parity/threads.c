/* Several threads execute, add and look up at once. What one transaction sees has to be in order, and no two threads may
 * be in its callbacks at the same time; at the end every request has been answered once. threads [REQUESTS] */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/time.h>
#include <osip2/osip.h>
#include <osip2/osip_dialog.h>
#include <osip2/osip_mt.h>
#include <osipparser2/osip_port.h>

#define ADDERS 2
#define RUNNERS 3

static osip_t *stack;
static int per_adder = 2000;
static atomic_int received, answered, killed, overlaps, adders_left, repeated;

struct mark {
    atomic_int inside;
};

static void enter(osip_transaction_t *tr)
{
    struct mark *mark = osip_transaction_get_your_instance(tr);

    if (atomic_fetch_add(&mark->inside, 1) != 0)
        atomic_fetch_add(&overlaps, 1);
}

static void leave(osip_transaction_t *tr)
{
    struct mark *mark = osip_transaction_get_your_instance(tr);

    atomic_fetch_sub(&mark->inside, 1);
}

static int on_send(osip_transaction_t *tr, osip_message_t *m, char *host, int port, int sock)
{
    (void)m;
    (void)host;
    (void)port;
    (void)sock;
    enter(tr);
    sched_yield();
    leave(tr);
    return 0;
}

static void on_request(int type, osip_transaction_t *tr, osip_message_t *request)
{
    osip_message_t *m;
    osip_via_t *via;
    osip_event_t *event;

    (void)type;
    enter(tr);
    atomic_fetch_add(&received, 1);
    for (int n = 0; n < 2; n++) {
        osip_message_init(&m);
        osip_message_set_version(m, osip_strdup("SIP/2.0"));
        osip_message_set_status_code(m, n ? 200 : 100);
        osip_message_set_reason_phrase(m, osip_strdup("R"));
        osip_via_clone(osip_list_get(&request->vias, 0), &via);
        osip_list_add(&m->vias, via, -1);
        osip_from_clone(request->from, &m->from);
        osip_to_clone(request->to, &m->to);
        osip_call_id_clone(request->call_id, &m->call_id);
        osip_cseq_clone(request->cseq, &m->cseq);
        event = osip_new_outgoing_sipmessage(m);
        event->transactionid = tr->transactionid;
        osip_transaction_add_event(tr, event);
    }
    leave(tr);
}

static void on_again(int type, osip_transaction_t *tr, osip_message_t *m)
{
    (void)type;
    (void)m;
    enter(tr);
    atomic_fetch_add(&repeated, 1);
    leave(tr);
}

static void on_answer(int type, osip_transaction_t *tr, osip_message_t *m)
{
    (void)type;
    (void)m;
    enter(tr);
    atomic_fetch_add(&answered, 1);
    /* Before the state machine starts timer J: it ends at once. */
    tr->nist_context->timer_j_length = 0;
    leave(tr);
}

static pthread_mutex_t ended_lock = PTHREAD_MUTEX_INITIALIZER;
static osip_transaction_t **ended;
static int ended_count;

static void on_kill(int type, osip_transaction_t *tr)
{
    (void)type;
    enter(tr);
    osip_remove_transaction(stack, tr);
    atomic_fetch_add(&killed, 1);
    pthread_mutex_lock(&ended_lock);
    ended[ended_count++] = tr;
    pthread_mutex_unlock(&ended_lock);
    leave(tr);
}

static void *add(void *arg)
{
    char text[512];

    for (int n = 0; n < per_adder; n++)
        for (int again = 0; again < 2; again++) {
            osip_event_t *event;
            osip_transaction_t *tr;
            int length = snprintf(text, sizeof text,
                                  "REGISTER sip:h SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:5062;branch=z9hG4bK%d-%d\r\n"
                                  "From: <sip:a@h>;tag=1\r\nTo: <sip:a@h>\r\nCall-ID: %d\r\nCSeq: 1 REGISTER\r\n"
                                  "Content-Length: 0\r\n\r\n", (int)(intptr_t)arg, n, n);

            event = osip_parse(text, (size_t)length);
            if (again) {
                if (osip_find_transaction_and_add_event(stack, event) != 0) {
                    osip_message_free(event->sip);
                    osip_free(event);
                }
                continue;
            }
            tr = osip_create_transaction(stack, event);
            osip_transaction_set_your_instance(tr, calloc(1, sizeof(struct mark)));
            osip_transaction_add_event(tr, event);
        }
    atomic_fetch_sub(&adders_left, 1);
    return NULL;
}

static void *run(void *arg)
{
    (void)arg;
    while (atomic_load(&adders_left) > 0 || atomic_load(&killed) < ADDERS * per_adder) {
        struct timeval wait;

        osip_timers_nist_execute(stack);
        osip_nist_execute(stack);
        osip_timers_gettimeout(stack, &wait);
    }
    return NULL;
}

/* A thread may leave from a callback: others go on with what it had. */
static int leave_from_callback;

static void on_leave(int type, osip_transaction_t *tr, osip_message_t *m)
{
    (void)type;
    (void)tr;
    (void)m;
    if (leave_from_callback == 1)
        pthread_exit(NULL);
    else if (leave_from_callback == 3)
        osip_thread_exit();
    else if (leave_from_callback == 2) {
        pthread_cancel(pthread_self());
        pthread_testcancel();
    }
}

static void *once(void *arg)
{
    (void)arg;
    osip_nist_execute(stack);
    return &leave_from_callback;
}

static void leaving(int how)
{
    pthread_t thread;
    osip_event_t *event;
    osip_transaction_t *tr;
    void *result = NULL;
    char text[512];
    int length = snprintf(text, sizeof text,
                          "OPTIONS sip:h SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:5062;branch=z9hG4bKleave%d\r\n"
                          "From: <sip:a@h>;tag=1\r\nTo: <sip:a@h>\r\nCall-ID: l\r\nCSeq: 1 OPTIONS\r\n"
                          "Content-Length: 0\r\n\r\n", how);

    leave_from_callback = how;
    event = osip_parse(text, (size_t)length);
    tr = osip_create_transaction(stack, event);
    osip_transaction_add_event(tr, event);
    event = osip_parse(text, (size_t)length);
    osip_transaction_add_event(tr, event);
    osip_set_message_callback(stack, OSIP_NIST_OPTIONS_RECEIVED, on_leave);
    pthread_create(&thread, NULL, once, NULL);
    pthread_join(thread, &result);
    printf("left from a callback %d: %s, %d waiting\n", how, result == &leave_from_callback ? "no" : "yes",
           osip_fifo_size(tr->transactionff));
    leave_from_callback = 0;
    osip_nist_execute(stack);
    printf("then %d waiting, state %d\n", osip_fifo_size(tr->transactionff), tr->state);
    osip_transaction_free(tr);
}

/* The same out of the send callback of a retransmission, which another thread then goes on with. */
static int resent;

static int send_and_leave(osip_transaction_t *tr, osip_message_t *m, char *host, int port, int sock)
{
    (void)tr;
    (void)m;
    (void)host;
    (void)port;
    (void)sock;
    resent++;
    if (leave_from_callback)
        pthread_exit(NULL);
    return 0;
}

static void *resend_once(void *arg)
{
    (void)arg;
    osip_retransmissions_execute(stack);
    return &leave_from_callback;
}

static void leaving_a_resend(void)
{
    static const char ack[] = "ACK sip:h SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:5062;branch=z9hG4bKr\r\n"
                              "From: <sip:a@h>;tag=1\r\nTo: <sip:a@h>;tag=2\r\nCall-ID: r\r\nCSeq: 1 ACK\r\n\r\n";
    osip_message_t *m;
    pthread_t thread;
    void *result = NULL;
    struct timeval wait;
    ixt_t *ixt;

    osip_message_init(&m);
    osip_message_parse(m, ack, sizeof ack - 1);
    osip_set_cb_send_message(stack, send_and_leave);
    for (int i = 0; i < 2; i++) {
        osip_start_ack_retransmissions(stack, NULL, m, (char *)"127.0.0.1", 5062, 1);
        ixt = osip_list_get(&stack->ixt_retransmissions, 0);
        ixt->start.tv_sec -= 1;
    }
    leave_from_callback = 1;
    pthread_create(&thread, NULL, resend_once, NULL);
    pthread_join(thread, &result);
    leave_from_callback = 0;
    printf("left from a resend: %s, %d sent, %d listed\n", result == &leave_from_callback ? "no" : "yes", resent,
           osip_list_size(&stack->ixt_retransmissions));
    osip_timers_gettimeout(stack, &wait);
    osip_retransmissions_execute(stack);
    printf("then %d sent, due at once %d\n", resent, wait.tv_sec == 0 && wait.tv_usec == 0);
    osip_stop_retransmissions_from_dialog(stack, NULL);
    printf("stopped: %d listed\n", osip_list_size(&stack->ixt_retransmissions));
    osip_message_free(m);
    osip_set_cb_send_message(stack, on_send);
}

/* A thread that waits for a fifo may be cancelled; the fifo then goes on. */
static void *wait_for_fifo(void *arg)
{
    return osip_fifo_get(arg);
}

static void cancelling_a_wait(void)
{
    osip_fifo_t *ff = osip_malloc(sizeof *ff);
    pthread_t thread;
    void *result = NULL;
    int element = 5;

    osip_fifo_init(ff);
    pthread_create(&thread, NULL, wait_for_fifo, ff);
    pthread_cancel(thread);
    pthread_join(thread, &result);
    osip_fifo_add(ff, &element);
    printf("wait cancelled: %s, then %d\n", result == PTHREAD_CANCELED ? "yes" : "no", *(int *)osip_fifo_get(ff));
    osip_fifo_free(ff);
}

int main(int argc, char **argv)
{
    pthread_t adders[ADDERS], runners[RUNNERS];

    if (argc > 1)
        per_adder = atoi(argv[1]);
    alarm(240);
    osip_init(&stack);
    osip_set_cb_send_message(stack, on_send);
    leaving(1);
    leaving(2);
    leaving(3);
    leaving_a_resend();
    cancelling_a_wait();
    osip_set_message_callback(stack, OSIP_NIST_REGISTER_RECEIVED, on_request);
    osip_set_message_callback(stack, OSIP_NIST_REQUEST_RECEIVED_AGAIN, on_again);
    osip_set_message_callback(stack, OSIP_NIST_STATUS_2XX_SENT, on_answer);
    osip_set_kill_transaction_callback(stack, OSIP_NIST_KILL_TRANSACTION, on_kill);
    ended = calloc((size_t)(ADDERS * per_adder), sizeof *ended);
    adders_left = ADDERS;
    for (int i = 0; i < ADDERS; i++)
        pthread_create(&adders[i], NULL, add, (void *)(intptr_t)i);
    for (int i = 0; i < RUNNERS; i++)
        pthread_create(&runners[i], NULL, run, NULL);
    for (int i = 0; i < ADDERS; i++)
        pthread_join(adders[i], NULL);
    for (int i = 0; i < RUNNERS; i++)
        pthread_join(runners[i], NULL);
    for (int i = 0; i < ended_count; i++) {
        free(osip_transaction_get_your_instance(ended[i]));
        osip_transaction_free(ended[i]);
    }
    free(ended);
    printf("received %d answered %d killed %d overlaps %d alive %d\n", received, answered, killed, overlaps,
           osip_list_size(&stack->osip_nist_transactions));
    osip_release(stack);
    return received != ADDERS * per_adder || answered != received || killed != received || overlaps != 0;
}
