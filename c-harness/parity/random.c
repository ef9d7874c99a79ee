/* Random events from a seed, each seed in a stack of its own: random FIRST COUNT STEPS [-v]. */
#include "trace.h"

static uint64_t state;
static int allow_surgery = 1;

static unsigned draw(unsigned below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (unsigned)((state >> 20) % below);
}

/* What callbacks draw from: the order of callbacks is part of what is compared. */
static uint64_t inner;

static unsigned draw_inner(unsigned below)
{
    inner = inner * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)((inner >> 33) % below);
}

#define LIVE 512
static osip_transaction_t *live[LIVE];
static int alive;
static osip_transaction_t *garbage[LIVE * 16];
static int dead;

static void keep(osip_transaction_t *tr)
{
    if (!tr)
        return;
    if (alive < LIVE)
        live[alive++] = tr;
}

/* Into the garbage, once: a transaction may end in a callback and be killed after that. */
static void lose(osip_transaction_t *tr, int collect)
{
    for (int i = 0; i < alive; i++)
        if (live[i] == tr) {
            if (collect)
                garbage[dead++] = tr;
            memmove(&live[i], &live[i + 1], (size_t)(--alive - i) * sizeof live[0]);
            return;
        }
}

static int known(osip_transaction_t *tr)
{
    for (int i = 0; i < alive; i++)
        if (live[i] == tr)
            return 1;
    return 0;
}

static int put_back(osip_transaction_t *tr)
{
    switch ((int)tr->ctx_type) {
    case ICT:
        return __osip_add_ict(stack, tr);
    case IST:
        return __osip_add_ist(stack, tr);
    case NICT:
        return __osip_add_nict(stack, tr);
    default:
        return __osip_add_nist(stack, tr);
    }
}

static int sends;

static int random_send(osip_transaction_t *tr, osip_message_t *m)
{
    (void)tr;
    (void)m;
    sends++;
    return draw_inner(40) == 0 ? -1 : 0;
}

static void random_kill(int type, osip_transaction_t *tr)
{
    (void)type;
    say("  remove %d\n", osip_remove_transaction(stack, tr));
    lose(tr, 1);
}

static int server(osip_transaction_t *tr)
{
    return tr->ctx_type == IST || tr->ctx_type == NIST;
}

/* An answer that the state machine knows what to do with; others it frees. */
static int some_status(void)
{
    static const int codes[] = { 100, 180, 200, 200, 200, 302, 404, 486, 500, 603 };
    return codes[draw(sizeof codes / sizeof codes[0])];
}

static void random_message(int type, osip_transaction_t *tr, osip_message_t *m)
{
    (void)type;
    (void)tr;
    (void)m;
    /* Events for others while the call runs: some further down its list, some before. */
    if (alive && draw_inner(4) == 0) {
        osip_transaction_t *other = live[draw_inner((unsigned)alive)];
        if (server(other) && other->orig_request)
            answer(other, draw_inner(2) ? 180 : 486);
    }
    if (draw_inner(12) == 0) {
        char branch[64];
        snprintf(branch, sizeof branch, "z9hG4bK-in%u", draw_inner(1u << 30));
        keep(start_client(request("OPTIONS", branch, "inner", 1, NULL), NICT));
    }
    if (alive > 3 && draw_inner(30) == 0) {
        osip_transaction_t *other = live[draw_inner((unsigned)alive)];
        if (other != tr) {
            say("  remove from callback %d: %d\n", other->transactionid, osip_remove_transaction(stack, other));
            if (draw_inner(3))
                lose(other, 1);
            else
                say("  back %d\n", put_back(other));
        }
    }
}

static const char *methods[] = { "INVITE", "REGISTER", "OPTIONS", "BYE", "SUBSCRIBE", "CANCEL", "MESSAGE", "ACK" };

static const char *random_request(void)
{
    char branch[64], call[32];
    unsigned which = draw(24);
    const char *at = branch;

    snprintf(call, sizeof call, "c%u", draw(6));
    if (which < 2)
        at = NULL;
#ifndef CRASHES_ON_BRANCH_WITHOUT_VALUE
    else if (which < 3)
        at = "";
#endif
    else if (which < 7)
        snprintf(branch, sizeof branch, "old%u", draw(20));
    else
        snprintf(branch, sizeof branch, "z9hG4bK%u", draw(60));
    return request(methods[draw(10) < 4 ? 0 : draw(8)], at, call, (int)draw(4) + 1, draw(3) ? NULL : "b1");
}

static void write_timer(osip_transaction_t *tr)
{
    struct timeval at = { (now_us + (int64_t)draw(900000) * 1000 - 200000000) / 1000000, draw(1000000) };

    /* In a longer list what a program writes is found some calls later: docs/differences.md. */
    if (osip_list_size(list_of((int)tr->ctx_type)) > 64)
        return;
    if (draw(5) == 0)
        at.tv_sec = -1;
    if (tr->nist_context)
        tr->nist_context->timer_j_start = at;
    if (tr->ist_context)
        *(draw(2) ? &tr->ist_context->timer_g_start : &tr->ist_context->timer_h_start) = at;
    if (tr->nict_context)
        *(draw(2) ? &tr->nict_context->timer_e_start : &tr->nict_context->timer_k_start) = at;
    if (tr->ict_context)
        *(draw(2) ? &tr->ict_context->timer_a_start : &tr->ict_context->timer_d_start) = at;
    say("  timer of %d\n", tr->transactionid);
}

static void act(void)
{
    osip_transaction_t *tr = alive ? live[draw((unsigned)alive)] : NULL;
    osip_event_t *event;
    char branch[64];

    switch (draw(22)) {
    case 0: case 1: case 2: case 3: case 4: case 5:
        event = parse(random_request());
        /* Asked twice, and only once to add. */
        if (event && draw(4) == 0) {
            osip_transaction_t *found = __osip_find_transaction(stack, event, 0);
            say("  asked: %d\n", found ? found->transactionid : -1);
        }
        keep(deliver(event));
        break;
    case 6: case 7: case 8:
        if (tr && server(tr))
            answer(tr, some_status());
        break;
    case 9: case 10:
        snprintf(branch, sizeof branch, draw(9) ? "z9hG4bKc%u" : "oldc%u", draw(4000));
        if (draw(2))
            keep(start_client(request("INVITE", branch, "out", 3, NULL), ICT));
        else
            keep(start_client(request(methods[1 + draw(4)], draw(20) ? branch : NULL, "out", 3, NULL), NICT));
        break;
    case 11: case 12: case 13:
        if (tr && !server(tr) && tr->orig_request) {
            event = incoming_response(tr->orig_request, some_status());
            if (event)
                deliver(event);
        }
        break;
    case 14:
        if (tr && tr->ctx_type == IST && tr->orig_request) {
            osip_message_t *m;
            osip_message_clone(tr->orig_request, &m);
            osip_free(m->sip_method);
            m->sip_method = osip_strdup("ACK");
            osip_free(m->cseq->method);
            m->cseq->method = osip_strdup("ACK");
            event = osip_new_outgoing_sipmessage(m);
            event->type = RCV_REQACK;
            keep(deliver(event));
        }
        break;
    case 15:
        if (tr && draw(3) == 0)
            write_timer(tr);
        break;
    case 16:
        /* An event put straight into the fifo. */
        if (tr && tr->ctx_type == NIST && tr->orig_request) {
            event = osip_new_outgoing_sipmessage(response_to(tr->orig_request, 200));
            event->transactionid = tr->transactionid;
            say("  straight %d\n", osip_fifo_add(tr->transactionff, event));
        }
        break;
    case 17:
        if (tr && draw(4) == 0) {
            say("  take out %d: %d", tr->transactionid, osip_remove_transaction(stack, tr));
            say(" again %d\n", osip_remove_transaction(stack, tr));
            if (draw(2)) {
                say("  back %d\n", put_back(tr));
            } else {
                lose(tr, 0);
                say("  free %d\n", draw(2) ? osip_transaction_free(tr) : osip_transaction_free2(tr));
            }
        }
        break;
    case 18:
        /* The lists are public: some programs use them. */
        if (allow_surgery && draw(4) == 0) {
            osip_list_t *list = list_of((int)draw(4));
            int size = osip_list_size(list), at;
            if (size > 0) {
                at = (int)draw((unsigned)size);
                tr = osip_list_get(list, at);
                osip_list_remove(list, at);
                if (draw(2) || !known(tr)) {
                    osip_list_add(list, tr, draw(2) ? -1 : 0);
                } else {
                    lose(tr, 1);
                }
                say("  surgery on %d\n", tr->transactionid);
            }
        }
        break;
    case 19:
        if (draw(2))
            now_us += (int64_t)draw(40000) * 1000 + draw(1000);
        else
            now_us += draw(700000);
        break;
    case 20:
        show_timeout();
        if (draw(2))
            run_timers();
        break;
    default:
        if (tr && draw(6) == 0) {
            osip_event_t *kill = osip_new_outgoing_sipmessage(message(request("INFO", "z9hG4bKkill", "k", 1, NULL)));
            osip_message_free(kill->sip);
            kill->sip = NULL;
            kill->type = KILL_TRANSACTION;
            say("  kill event %d\n", osip_transaction_add_event(tr, kill));
        }
    }
    if (draw(3) == 0) {
        switch (draw(6)) {
        case 0: say(" ict %d\n", osip_ict_execute(stack)); break;
        case 1: say(" ist %d\n", osip_ist_execute(stack)); break;
        case 2: say(" nict %d\n", osip_nict_execute(stack)); break;
        case 3: say(" nist %d\n", osip_nist_execute(stack)); break;
        default: run_execute();
        }
    }
    if (draw(4) == 0)
        run_timers();
    if (draw(3) == 0)
        while (dead)
            osip_transaction_free(garbage[--dead]);
}

static void one(unsigned seed, unsigned steps)
{
    state = 88172645463325252u ^ ((uint64_t)seed * 0x9e3779b97f4a7c15u);
    inner = seed;
    now_us = 1000000000;
    digest = 1469598103934665603u;
    open_stack();
    on_send = random_send;
    on_kill = random_kill;
    on_message = random_message;
    for (unsigned i = 0; i < steps; i++) {
        say("step %u\n", i);
        act();
        if (i % 8 == 7) {
            show_timeout();
            show_lists();
        }
        if (alive > LIVE - 64)
            break;
    }
    while (dead)
        osip_transaction_free(garbage[--dead]);
    while (alive)
        osip_transaction_free(live[--alive]);
    show_lists();
    osip_release(stack);
}

int main(int argc, char **argv)
{
    unsigned first = argc > 1 ? (unsigned)atoi(argv[1]) : 1, count = argc > 2 ? (unsigned)atoi(argv[2]) : 10;
    unsigned steps = argc > 3 ? (unsigned)atoi(argv[3]) : 200;

    quiet = !(argc > 4 && strcmp(argv[4], "-v") == 0);
    for (unsigned seed = first; seed < first + count; seed++) {
        lines = 0;
        sends = 0;
        one(seed, steps);
        printf("seed %u: %016llx, %lu lines, %d sent\n", seed, (unsigned long long)digest, lines, sends);
    }
    return 0;
}
