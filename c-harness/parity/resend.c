/* Retransmissions of 200 and ACK: scripted, then at random from a seed, each seed in a stack of its own.
 * resend FIRST COUNT STEPS [-v] */
#include "trace.h"

#define LIVE 64
static osip_dialog_t *dialogs[LIVE];
static osip_message_t *acks[LIVE];
static int alive;

static uint64_t state;

static unsigned draw(unsigned below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (unsigned)((state >> 20) % below);
}

static void show(void)
{
    osip_list_t *list = &stack->ixt_retransmissions;
    __node_t *node = list->node;
    osip_list_iterator_t it;
    ixt_t *ixt;
    int n = 0;

    say("  resends %d:", osip_list_size(list));
    for (ixt = osip_list_get_first(list, &it); osip_list_iterator_has_elem(it); ixt = osip_list_get_next(&it), n++) {
        say(" %s/%d/%d", ixt->dialog ? ixt->dialog->call_id : "-", ixt->counter, ixt->interval);
        if (node->element != ixt || osip_list_get(list, n) != ixt)
            say(" BROKEN");
        node = (__node_t *)node->next;
    }
    say("%s\n", node ? " LONGER" : "");
}

static void run(const char *what, int64_t milliseconds)
{
    say("%s (+%ld ms)\n", what, (long)milliseconds);
    now_us += milliseconds * 1000;
    show_timeout();
    osip_retransmissions_execute(stack);
    show_timeout();
    show();
}

/* An INVITE that was answered with 200: the dialog, and the ACK that will end it. */
static osip_message_t *establish(const char *call, int cseq)
{
    char branch[64];
    osip_message_t *invite, *ok;
    osip_dialog_t *dialog = NULL;

    snprintf(branch, sizeof branch, "z9hG4bK%s", call);
    invite = message(request("INVITE", branch, call, cseq, NULL));
    ok = response_to(invite, 200);
    osip_message_set_contact(ok, "<sip:bob@10.0.0.9:5070>");
    say("  dialog %d\n", osip_dialog_init_as_uas(&dialog, invite, ok));
    dialogs[alive] = dialog;
    acks[alive++] = message(request("ACK", branch, call, cseq, "b1"));
    osip_message_free(invite);
    return ok;
}

static void end(int at)
{
    osip_dialog_free(dialogs[at]);
    osip_message_free(acks[at]);
    alive--;
    memmove(&dialogs[at], &dialogs[at + 1], (size_t)(alive - at) * sizeof dialogs[0]);
    memmove(&acks[at], &acks[at + 1], (size_t)(alive - at) * sizeof acks[0]);
}

static int place_of(osip_dialog_t *dialog)
{
    for (int i = 0; i < alive; i++)
        if (dialogs[i] == dialog)
            return i;
    return -1;
}

static void clear(void)
{
    while (alive) {
        osip_stop_retransmissions_from_dialog(stack, dialogs[0]);
        end(0);
    }
}

static void scripted(void)
{
    osip_message_t *ok, *other;
    osip_dialog_t *found;
    ixt_t *ixt;

    open_stack();
    say("== 200 until the counter ends\n");
    ok = establish("a", 1);
    osip_start_200ok_retransmissions(stack, dialogs[0], ok, 5);
    osip_message_free(ok);
    run("at once", 0);
    run("before", 509);
    run("on the dot", 1);
    run("after", 1);
    for (int i = 0; i < 14; i++)
        run("next", 2000);
    clear();

    say("== two of one Call-ID, and the CSeq\n");
    ok = establish("b", 1);
    osip_start_200ok_retransmissions(stack, dialogs[0], ok, 5);
    osip_message_free(ok);
    ok = establish("b", 2);
    osip_start_200ok_retransmissions(stack, dialogs[1], ok, 6);
    osip_message_free(ok);
    ok = establish("c", 1);
    osip_start_200ok_retransmissions(stack, dialogs[2], ok, 7);
    run("three", 600);
    other = message(request("ACK", "z9hG4bKx", "elsewhere", 1, "b1"));
    say("  stop elsewhere %d\n", place_of(osip_stop_200ok_retransmissions(stack, other)));
    osip_message_free(other);
    found = osip_stop_200ok_retransmissions(stack, acks[0]);
    say("  stop %d\n", place_of(found));
    run("one less", 1200);
    found = osip_stop_200ok_retransmissions(stack, acks[0]);
    say("  stop again %d\n", place_of(found));
    show();
    found = osip_stop_200ok_retransmissions(stack, acks[1]);
    say("  stop the other %d\n", place_of(found));
    run("one left", 3000);

    say("== ACK, several of one dialog\n");
    osip_start_ack_retransmissions(stack, dialogs[2], acks[2], (char *)"10.0.0.7", 5099, 8);
    osip_start_ack_retransmissions(stack, dialogs[2], acks[2], (char *)"10.0.0.8", 5098, 9);
    osip_start_200ok_retransmissions(stack, dialogs[1], ok, 3);
    osip_message_free(ok);
    run("four", 600);
    osip_stop_retransmissions_from_dialog(stack, dialogs[2]);
    run("one dialog's are gone", 1100);
    osip_stop_retransmissions_from_dialog(stack, NULL);
    clear();
    run("none", 100);

    say("== by hand\n");
    for (int i = 0; i < 4; i++) {
        char call[8];
        snprintf(call, sizeof call, "h%d", i);
        ok = establish(call, 1);
        osip_start_200ok_retransmissions(stack, dialogs[i], ok, i);
        osip_message_free(ok);
    }
    show();
    ixt = osip_list_get(&stack->ixt_retransmissions, 1);
    osip_list_remove(&stack->ixt_retransmissions, 1);
    run("taken out", 600);
    osip_list_add(&stack->ixt_retransmissions, ixt, -1);
    run("back at the end", 100);
    ixt->start.tv_sec += 100;
    run("put off", 2000);
    ixt->start.tv_sec -= 200;
    run("moved up", 1);
    ixt->counter = 1;
    run("the last", 5000);
    run("gone", 5000);
    clear();
    show();
    osip_release(stack);
}

static void one(unsigned seed, unsigned steps)
{
    char call[16];
    int at;

    state = 88172645463325252u ^ ((uint64_t)seed * 0x9e3779b97f4a7c15u);
    now_us = 1000000000;
    digest = 1469598103934665603u;
    open_stack();
    for (unsigned i = 0; i < steps; i++) {
        at = alive ? (int)draw((unsigned)alive) : -1;
        say("step %u\n", i);
        switch (draw(12)) {
        case 0: case 1: case 2:
            if (alive < LIVE - 1) {
                osip_message_t *ok;
                snprintf(call, sizeof call, "r%u", draw(6));
                ok = establish(call, 1 + (int)draw(2));
                osip_start_200ok_retransmissions(stack, dialogs[alive - 1], ok, (int)draw(9));
                osip_message_free(ok);
            }
            break;
        case 3:
            if (at >= 0)
                osip_start_ack_retransmissions(stack, dialogs[at], acks[at], (char *)"10.0.0.7", 5099, (int)draw(9));
            break;
        case 4: case 5:
            if (at >= 0)
                say("  stop %d\n", place_of(osip_stop_200ok_retransmissions(stack, acks[at])));
            break;
        case 6:
            if (at >= 0) {
                osip_stop_retransmissions_from_dialog(stack, dialogs[at]);
                if (draw(2))
                    end(at);
            }
            break;
        case 7: {
            osip_list_t *list = &stack->ixt_retransmissions;
            int size = osip_list_size(list);
            if (size > 0 && draw(2)) {
                int place = (int)draw((unsigned)size);
                ixt_t *ixt = osip_list_get(list, place);
                if (draw(2)) {
                    osip_list_remove(list, place);
                    osip_list_add(list, ixt, draw(2) ? -1 : 0);
                } else {
                    ixt->start.tv_sec += (int)draw(20) - 10;
                }
            }
            break;
        }
        default:
            run("time", draw(3) ? (int64_t)draw(900) : (int64_t)draw(9000));
        }
        if (i % 8 == 7)
            show();
    }
    clear();
    show();
    osip_release(stack);
}

int main(int argc, char **argv)
{
    unsigned first = argc > 1 ? (unsigned)atoi(argv[1]) : 1, count = argc > 2 ? (unsigned)atoi(argv[2]) : 10;
    unsigned steps = argc > 3 ? (unsigned)atoi(argv[3]) : 200;

    scripted();
    quiet = !(argc > 4 && strcmp(argv[4], "-v") == 0);
    for (unsigned seed = first; seed < first + count; seed++) {
        lines = 0;
        one(seed, steps);
        printf("seed %u: %016llx, %lu lines\n", seed, (unsigned long long)digest, lines);
    }
    return 0;
}
