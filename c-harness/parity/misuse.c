/* What a program must not do, and what costs most: on ours only, for stock frees twice or crashes. Each line says what came
 * of it; the program ends by itself and leaves nothing listed. */
#include "trace.h"

static osip_transaction_t *crowd[50000];
static int crowded;

static osip_transaction_t *registered(const char *format, int n)
{
    char branch[64];

    snprintf(branch, sizeof branch, format, n);
    return deliver(parse(request("REGISTER", branch, "misuse", 1, NULL)));
}

/* The first one's callback: takes all others off the list and frees them, itself twice. */
static void free_all(int type, osip_transaction_t *tr, osip_message_t *m)
{
    (void)type;
    (void)m;
    for (int i = 1; i < crowded; i++)
        osip_remove_transaction(stack, crowd[i]);
    for (int i = 1; i < crowded; i++)
        osip_transaction_free(crowd[i]);
    crowded = 0;
    printf("itself %d", osip_transaction_free(tr));
    printf(", again %d\n", osip_transaction_free2(tr));
}

static void ignore(int type, osip_transaction_t *tr, osip_message_t *m)
{
    (void)type;
    (void)tr;
    (void)m;
}

int main(void)
{
    osip_transaction_t *tr;
    osip_event_t *event;
    char branch[64];

    quiet = 1;
    open_stack();
    osip_set_message_callback(stack, OSIP_NIST_REGISTER_RECEIVED, ignore);
    /* Where a transaction is a block of osip_malloc (small, before osip2 4), nothing can tell. */
    if (sizeof(osip_transaction_t) > 8192) {
        tr = registered("z9hG4bKtwice%d", 0);
        osip_nist_execute(stack);
        printf("freed %d", osip_transaction_free(tr) == 0);
        printf(", again %d", osip_transaction_free(tr) == 0);
        printf(" %d", osip_transaction_free2(tr) == 0);
        printf(", removed %d", osip_remove_transaction(stack, tr) == 0);
        event = parse(request("REGISTER", "z9hG4bKtwice0", "misuse", 1, NULL));
        printf(", event %d", osip_transaction_add_event(tr, event) == 0);
        osip_message_free(event->sip);
        osip_free(event);
        printf(", other %d\n", registered("z9hG4bKother%d", 0) == tr);
        osip_nist_execute(stack);
        osip_transaction_free(tr);
    } else {
        printf("small\n");
    }
    osip_set_message_callback(stack, OSIP_NIST_REGISTER_RECEIVED, free_all);
    for (crowded = 0; crowded < (int)(sizeof crowd / sizeof crowd[0]); crowded++)
        crowd[crowded] = registered("z9hG4bKcrowd%d", crowded);
    osip_nist_execute(stack);
    snprintf(branch, sizeof branch, "z9hG4bKcrowd%d", 7);
    osip_set_message_callback(stack, OSIP_NIST_REGISTER_RECEIVED, ignore);
    tr = deliver(parse(request("REGISTER", branch, "misuse", 1, NULL)));
    osip_nist_execute(stack);
    printf("listed %d\n", osip_list_size(&stack->osip_nist_transactions));
    osip_transaction_free(tr);
    osip_release(stack);
    return 0;
}
