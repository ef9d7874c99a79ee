/* Whole flows through the four transaction types, step by step, with each timer from A to K. */
#include "trace.h"

static osip_transaction_t *removed[256];
static int removed_count;

static void remove_it(int type, osip_transaction_t *tr)
{
    (void)type;
    say("  remove %d\n", osip_remove_transaction(stack, tr));
    removed[removed_count++] = tr;
}

static void begin(const char *name)
{
    say("== %s\n", name);
    on_kill = remove_it;
    on_send = NULL;
    on_message = NULL;
}

static void finish(void)
{
    int i;

    for (i = 0; i < removed_count; i++)
        say("  free %d\n", osip_transaction_free(removed[i]));
    removed_count = 0;
    for (int kind = 0; kind < 4; kind++)
        while (osip_list_size(list_of(kind)) > 0)
            osip_transaction_free(osip_list_get(list_of(kind), 0));
    show_lists();
}

static const int statuses[] = { 180, 200, 302, 404, 500, 603 };

static void ist_flows(void)
{
    osip_transaction_t *tr;
    char branch[32];

    for (unsigned i = 0; i < sizeof statuses / sizeof statuses[0]; i++) {
        begin("incoming INVITE");
        snprintf(branch, sizeof branch, "z9hG4bKist%u", i);
        tr = deliver(parse(request("INVITE", branch, "ist", 1, NULL)));
        step("invite", 0);
        answer(tr, 100);
        step("trying", 10);
        deliver(parse(request("INVITE", branch, "ist", 1, NULL)));
        step("again", 100);
        answer(tr, statuses[i]);
        step("answered", 0);
        deliver(parse(request("INVITE", branch, "ist", 1, NULL)));
        step("again", 100);
        /* G goes off, twice as long each time; then the ACK, or H. */
        step("G", 450);
        step("G", 1000);
        step("G", 2000);
        if (i % 2) {
            deliver(parse(request("ACK", branch, "ist", 1, "b1")));
            step("ack", 1);
            deliver(parse(request("ACK", branch, "ist", 1, "b1")));
            step("ack again", 1);
            step("before I", 4900);
            step("I", 200);
        } else {
            for (int n = 0; n < 9; n++)
                step("until H", 4000);
        }
        finish();
    }
}

static void nist_flows(void)
{
    static const char *methods[] = { "REGISTER", "BYE", "OPTIONS", "INFO", "CANCEL", "NOTIFY", "SUBSCRIBE", "MESSAGE" };
    osip_transaction_t *tr;

    for (unsigned i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        begin(methods[i]);
        tr = deliver(parse(request(methods[i], "z9hG4bKnist", "nist", 1, NULL)));
        step("request", 0);
        deliver(parse(request(methods[i], "z9hG4bKnist", "nist", 1, NULL)));
        step("again, unanswered", 500);
        if (i % 2) {
            answer(tr, 100);
            step("trying", 1);
            deliver(parse(request(methods[i], "z9hG4bKnist", "nist", 1, NULL)));
            step("again, trying", 500);
        }
        answer(tr, statuses[i % 6] < 200 ? 200 : statuses[i % 6]);
        step("answered", 1);
        deliver(parse(request(methods[i], "z9hG4bKnist", "nist", 1, NULL)));
        step("again, answered", 500);
        step("before J", 31000);
        step("J", 1001);
        deliver(parse(request(methods[i], "z9hG4bKnist", "nist", 1, NULL)));
        step("a new one with the old branch", 1);
        finish();
    }
}

static void ict_flows(void)
{
    osip_transaction_t *tr;
    osip_event_t *event;
    osip_message_t *sent;
    char branch[32];

    for (unsigned i = 0; i < sizeof statuses / sizeof statuses[0]; i++) {
        begin("outgoing INVITE");
        snprintf(branch, sizeof branch, "z9hG4bKict%u", i);
        tr = start_client(request("INVITE", branch, "ict", 1, NULL), ICT);
        sent = message(request("INVITE", branch, "ict", 1, NULL));
        step("invite", 0);
        step("A", 501);
        step("A", 1001);
        if (i % 2) {
            event = incoming_response(sent, 180);
            deliver(event);
            step("ringing", 10);
            step("no A any more", 5000);
        }
        deliver(incoming_response(sent, statuses[i]));
        step("answered", 10);
        deliver(incoming_response(sent, statuses[i]));
        step("answered again", 100);
        step("before D", 31000);
        step("D", 2000);
        osip_message_free(sent);
        finish();
    }
    begin("INVITE without an answer");
    tr = start_client(request("INVITE", "z9hG4bKsilent", "ict", 1, NULL), ICT);
    for (int n = 0; n < 12; n++)
        step("A, then B", 3000);
    (void)tr;
    finish();
}

static void nict_flows(void)
{
    static const char *methods[] = { "REGISTER", "BYE", "OPTIONS", "INFO", "CANCEL", "NOTIFY", "SUBSCRIBE", "MESSAGE" };
    osip_message_t *sent;

    for (unsigned i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        begin(methods[i]);
        start_client(request(methods[i], "z9hG4bKnict", "nict", 1, NULL), NICT);
        sent = message(request(methods[i], "z9hG4bKnict", "nict", 1, NULL));
        step("request", 0);
        step("E", 501);
        step("E", 1001);
        if (i % 2) {
            deliver(incoming_response(sent, 100));
            step("trying", 1);
            step("E at T2", 4001);
        }
        deliver(incoming_response(sent, statuses[i % 6] < 200 ? 200 : statuses[i % 6]));
        step("answered", 1);
        deliver(incoming_response(sent, 200));
        step("answered again", 1);
        step("before K", 4500);
        step("K", 600);
        osip_message_free(sent);
        finish();
    }
    begin("request without an answer");
    start_client(request("OPTIONS", "z9hG4bKsilent", "nict", 1, NULL), NICT);
    for (int n = 0; n < 12; n++)
        step("E, then F", 3000);
    finish();
}

static void matching(void)
{
    osip_transaction_t *tr;

    begin("RFC 2543 matching");
    deliver(parse(request("REGISTER", NULL, "old", 1, NULL)));
    step("no branch", 0);
    deliver(parse(request("REGISTER", NULL, "old", 1, NULL)));
    step("again", 0);
    deliver(parse(request("REGISTER", NULL, "old", 2, NULL)));
    step("next CSeq", 0);
    deliver(parse(request("REGISTER", "old", "old", 1, NULL)));
    step("branch without cookie", 0);
    deliver(parse(request("REGISTER", "old", "old", 1, NULL)));
    step("again", 0);
    deliver(parse(request("REGISTER", "old", "other", 1, NULL)));
    step("other Call-ID", 0);
#ifndef CRASHES_ON_BRANCH_WITHOUT_VALUE
    deliver(parse(request("REGISTER", "", "old", 1, NULL)));
    step("branch without value", 0);
#endif
    finish();

    begin("same branch");
    tr = deliver(parse(request("INVITE", "z9hG4bKsame", "same", 1, NULL)));
    deliver(parse(request("REGISTER", "z9hG4bKsame", "same", 1, NULL)));
    deliver(parse(request("CANCEL", "z9hG4bKsame", "same", 1, NULL)));
    deliver(parse(request("REGISTER", "z9hG4bKsame", "same", 2, NULL)));
    deliver(parse(request("REGISTER", "z9hG4bKsame", "elsewhere", 1, NULL)));
    step("four, sent-by differs for one", 0);
    answer(tr, 487);
    step("cancelled", 1);
    deliver(parse(request("ACK", "z9hG4bKsame", "same", 1, "b1")));
    step("ack", 1);
    deliver(parse(request("ACK", "z9hG4bKother", "same", 1, "b1")));
    step("ack for nobody", 1);
    finish();

    begin("merged requests");
    deliver(parse(request("OPTIONS", "z9hG4bKm1", "merged", 1, NULL)));
    deliver(parse(request("OPTIONS", "z9hG4bKm2", "merged", 1, NULL)));
    step("two", 0);
    finish();

    begin("broken");
    deliver(parse("REGISTER sip:x SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bKx\r\nFrom: <sip:a@b>\r\nTo: <sip:a@b>\r\n"
                  "CSeq: 1 INVITE\r\nCall-ID: 1\r\n\r\n"));
#ifndef CRASHES_ON_FAILED_INIT
    deliver(parse("REGISTER sip:x SIP/2.0\r\nFrom: <sip:a@b>\r\nTo: <sip:a@b>\r\nCSeq: 1 REGISTER\r\nCall-ID: 1\r\n\r\n"));
#endif
    deliver(parse("SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP h;branch=z9hG4bKx\r\nFrom: <sip:a@b>\r\nTo: <sip:a@b>\r\n"
                  "CSeq: 1 INVITE\r\nCall-ID: 1\r\n\r\n"));
    deliver(parse("nonsense\r\n\r\n"));
    step("broken", 0);
    say("  null %d %d %d %d\n", osip_find_transaction_and_add_event(stack, NULL), osip_transaction_add_event(NULL, NULL),
        osip_remove_transaction(stack, NULL), osip_transaction_free(NULL));
    say("  null %d %d\n", osip_create_transaction(stack, NULL) == NULL, osip_transaction_free2(NULL));
    finish();
}

/* The lengths are public: a program may set them before they start to count. */
static void short_timers(void)
{
    osip_transaction_t *tr;
    osip_message_t *sent;

    begin("shortened A, B");
    tr = start_client(request("INVITE", "z9hG4bKsa", "s", 1, NULL), ICT);
    tr->ict_context->timer_a_length = 20;
    tr->ict_context->timer_b_length = 300;
    osip_gettimeofday(&tr->ict_context->timer_b_start, NULL);
    tr->ict_context->timer_b_start.tv_usec += 300000;
    for (int n = 0; n < 14; n++)
        step("A, then B", 25);
    finish();

    begin("shortened D");
    tr = start_client(request("INVITE", "z9hG4bKsd", "s", 1, NULL), ICT);
    tr->ict_context->timer_d_length = 100;
    sent = message(request("INVITE", "z9hG4bKsd", "s", 1, NULL));
    step("invite", 0);
    deliver(incoming_response(sent, 486));
    step("busy", 1);
    step("before D", 99);
    step("D", 2);
    osip_message_free(sent);
    finish();

    begin("shortened G, H, I");
    for (int acked = 0; acked < 2; acked++) {
        tr = deliver(parse(request("INVITE", "z9hG4bKsg", "s", 1, NULL)));
        tr->ist_context->timer_g_length = 20;
        tr->ist_context->timer_h_length = 300;
        tr->ist_context->timer_i_length = 50;
        step("invite", 0);
        answer(tr, 404);
        for (int n = 0; n < 3; n++)
            step("G", 25);
        if (acked) {
            deliver(parse(request("ACK", "z9hG4bKsg", "s", 1, "b1")));
            step("ack", 1);
            step("before I", 49);
        }
        for (int n = 0; n < 14; n++)
            step("until H, or I", 25);
        finish();
    }

    begin("shortened E, F");
    tr = start_client(request("OPTIONS", "z9hG4bKse", "s", 1, NULL), NICT);
    tr->nict_context->timer_e_length = 20;
    tr->nict_context->timer_f_length = 300;
    osip_gettimeofday(&tr->nict_context->timer_f_start, NULL);
    tr->nict_context->timer_f_start.tv_usec += 300000;
    for (int n = 0; n < 14; n++)
        step("E, then F", 25);
    finish();

    begin("shortened J, K");
    tr = start_client(request("OPTIONS", "z9hG4bKsk", "s", 1, NULL), NICT);
    tr->nict_context->timer_k_length = 50;
    sent = message(request("OPTIONS", "z9hG4bKsk", "s", 1, NULL));
    tr = deliver(parse(request("OPTIONS", "z9hG4bKsj", "s", 1, NULL)));
    tr->nist_context->timer_j_length = 100;
    step("both", 0);
    deliver(incoming_response(sent, 200));
    answer(tr, 200);
    step("answered", 1);
    step("before K", 49);
    step("K", 2);
    step("before J", 48);
    step("J", 2);
    osip_message_free(sent);
    finish();
}

static void cancels(void)
{
    osip_transaction_t *invite, *cancel;
    osip_message_t *sent, *stop;

    begin("CANCEL comes in");
    invite = deliver(parse(request("INVITE", "z9hG4bKcan", "can", 1, NULL)));
    step("invite", 0);
    answer(invite, 180);
    step("ringing", 10);
    cancel = deliver(parse(request("CANCEL", "z9hG4bKcan", "can", 1, NULL)));
    step("cancel", 10);
    answer(cancel, 200);
    answer(invite, 487);
    step("both answered", 0);
    deliver(parse(request("CANCEL", "z9hG4bKcan", "can", 1, NULL)));
    step("cancel again", 100);
    deliver(parse(request("ACK", "z9hG4bKcan", "can", 1, "b1")));
    step("ack", 1);
    step("I", 5001);
    step("J", 28000);
    finish();

    begin("CANCEL goes out");
    start_client(request("INVITE", "z9hG4bKcon", "con", 1, NULL), ICT);
    sent = message(request("INVITE", "z9hG4bKcon", "con", 1, NULL));
    step("invite", 0);
    deliver(incoming_response(sent, 183));
    step("progress", 10);
    start_client(request("CANCEL", "z9hG4bKcon", "con", 1, NULL), NICT);
    stop = message(request("CANCEL", "z9hG4bKcon", "con", 1, NULL));
    step("cancel", 10);
    deliver(incoming_response(stop, 200));
    deliver(incoming_response(sent, 487));
    step("both answered", 1);
    deliver(incoming_response(sent, 487));
    step("487 again", 100);
    step("K", 5001);
    step("D", 28000);
    osip_message_free(sent);
    osip_message_free(stop);
    finish();
}

/* Only with osip2 4 and later, and not in the headers before. */
int set_reserved1(osip_transaction_t *, void *) __asm__("osip_transaction_set_reserved1") __attribute__((weak));
int set_reserved6(osip_transaction_t *, void *) __asm__("osip_transaction_set_reserved6") __attribute__((weak));
void *get_reserved1(osip_transaction_t *) __asm__("osip_transaction_get_reserved1") __attribute__((weak));
void *get_reserved6(osip_transaction_t *) __asm__("osip_transaction_get_reserved6") __attribute__((weak));

static int refuse(osip_transaction_t *tr, osip_message_t *m)
{
    (void)tr;
    (void)m;
    return -1;
}

static void errors(void)
{
    osip_transaction_t *tr;

    begin("transport errors");
    on_send = refuse;
    start_client(request("INVITE", "z9hG4bKe1", "e", 1, NULL), ICT);
    start_client(request("OPTIONS", "z9hG4bKe2", "e", 1, NULL), NICT);
    tr = deliver(parse(request("INVITE", "z9hG4bKe3", "e", 1, NULL)));
    step("sent", 0);
    answer(tr, 486);
    tr = deliver(parse(request("REGISTER", "z9hG4bKe4", "e", 1, NULL)));
    step("answered", 1);
    answer(tr, 200);
    step("answered", 1);
    step("later", 40000);
    finish();
}

/* ---- order ---- */

static osip_transaction_t *row[8];

static void poke(int type, osip_transaction_t *tr, osip_message_t *m)
{
    (void)m;
    if (type != OSIP_NIST_OPTIONS_RECEIVED || tr != row[3])
        return;
    /* While the fourth runs: one before it, one behind it, itself, and a new one. */
    answer(row[1], 200);
    answer(row[6], 200);
    answer(row[3], 200);
    row[7] = deliver(parse(request("OPTIONS", "z9hG4bKnew", "row", 1, NULL)));
    say("  out %d\n", osip_remove_transaction(stack, row[5]));
}

static void order(void)
{
    char branch[32];

    begin("order");
    for (int i = 0; i < 7; i++) {
        snprintf(branch, sizeof branch, "z9hG4bKrow%d", i);
        row[i] = deliver(parse(request("OPTIONS", branch, "row", 1, NULL)));
        if (i != 3 && i != 5) {
            say(" nist %d\n", osip_nist_execute(stack));
        }
    }
    on_message = poke;
    say(" nist %d\n", osip_nist_execute(stack));
    show_lists();
    say(" nist %d\n", osip_nist_execute(stack));
    show_lists();
    say(" nist %d\n", osip_nist_execute(stack));
    on_message = NULL;
    osip_transaction_free(row[5]);
    finish();
}

/* ---- what programs do themselves ---- */

static void own_hands(void)
{
    osip_transaction_t *tr, *other;
    osip_fifo_t *fifo;
    osip_event_t *event;
    int used = 0;

    begin("timers and fifos of the program's own");
    tr = deliver(parse(request("REGISTER", "z9hG4bKown", "own", 1, NULL)));
    tr->your_instance = &tr;
    if (set_reserved1 && set_reserved6) {
        set_reserved1(tr, &other);
        set_reserved6(tr, &fifo);
    }
    step("request", 0);
    answer(tr, 200);
    step("answered", 0);
    tr->nist_context->timer_j_start.tv_sec -= 20;
    show_timeout();
    step("J moved", 11000);
    step("J", 1001);
    say("  kept %d\n", tr->your_instance == &tr);
    if (get_reserved1 && get_reserved6)
        say("  kept %d %d\n", get_reserved1(tr) == &other, get_reserved6(tr) == &fifo);

    tr = deliver(parse(request("REGISTER", "z9hG4bKff", "own", 2, NULL)));
    step("request", 0);
    fifo = osip_malloc(sizeof *fifo);
    osip_fifo_init(fifo);
    osip_fifo_free(tr->transactionff);
    tr->transactionff = fifo;
    answer(tr, 486);
    step("through a new fifo", 1);
    osip_fifo_free(tr->transactionff);
    tr->transactionff = osip_malloc(sizeof *fifo);
    osip_fifo_init(tr->transactionff);
    event = parse(request("REGISTER", "z9hG4bKff", "own", 2, NULL));
    say("  straight %d\n", osip_fifo_add(tr->transactionff, event));
    run_timers();
    step("straight into a new fifo", 1);
    tr->nist_context->timer_j_start.tv_sec = -1;
    step("without J", 40000);

    memset(&tr->record, 'x', sizeof tr->record);
    finish();
    tr = deliver(parse(request("REGISTER", "z9hG4bKff2", "own", 3, NULL)));
    for (size_t i = 0; i < sizeof tr->record; i++)
        used |= ((unsigned char *)&tr->record)[i];
    say("  record of the next %d, created %d\n", used, tr->birth_time != 0);
    finish();

    begin("removed, freed later");
    tr = deliver(parse(request("REGISTER", "z9hG4bKr1", "r", 1, NULL)));
    other = deliver(parse(request("REGISTER", "z9hG4bKr2", "r", 1, NULL)));
    say("  %d %d\n", osip_remove_transaction(stack, tr), osip_remove_transaction(stack, tr));
    step("one of two", 0);
    deliver(parse(request("REGISTER", "z9hG4bKr1", "r", 1, NULL)));
    step("a new one", 0);
    say("  add %d\n", osip_transaction_add_event(tr, parse(request("REGISTER", "z9hG4bKr1", "r", 1, NULL))));
    step("nothing for the removed one", 0);
    say("  %d %d\n", osip_transaction_free(tr), osip_transaction_free(other));
    finish();
}

int main(void)
{
    open_stack();
    show_timeout();
    ist_flows();
    nist_flows();
    ict_flows();
    nict_flows();
    short_timers();
    cancels();
    matching();
    errors();
    order();
    own_hands();
    show_timeout();
    osip_release(stack);
    printf("%lu lines\n", lines);
    return 0;
}
