/* The n-th allocation of osip2 and of what stands in for it fails, for every n: fail_alloc [EVERY]
 *
 * Each n runs in a child of its own, in two ways: that one allocation fails, or it and all behind it. A child may end
 * well or with an error that it handles. It may also crash inside libosip2 itself, which does not look at every result
 * of its own allocations: these places are counted and printed, they are stock's. A crash anywhere else is a failure,
 * and so is a child that hangs. EVERY: only each EVERY-th n. Runs on stock as well, where nothing of ours is to blame. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <execinfo.h>
#include <link.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>
#include <osip2/osip.h>
#include <osipparser2/osip_port.h>

/* ---- the hook ---- */

static long fail_at, asked;
static int armed, and_on, injected;
static osip_malloc_func_t *behind_malloc;
static osip_realloc_func_t *behind_realloc;
static osip_free_func_t *behind_free;

static int refuse(void)
{
    if (!armed)
        return 0;
    asked++;
    if (asked == fail_at || (and_on && asked > fail_at)) {
        injected = 1;
        return 1;
    }
    return 0;
}

static void *hook_malloc(size_t size)
{
    return refuse() ? NULL : behind_malloc ? behind_malloc(size) : malloc(size);
}

static void *hook_realloc(void *block, size_t size)
{
    return refuse() ? NULL : behind_realloc ? behind_realloc(block, size) : realloc(block, size);
}

static void hook_free(void *block)
{
    if (behind_free)
        behind_free(block);
    else
        free(block);
}

/* ---- what a child says of its end ---- */

struct end {
    char how;           /* 'o' ended, 'c' crashed */
    char injected;      /* an allocation was refused */
    char object[64];    /* of a crash: the file and the function */
    char function[96];
};

static int to_parent;

static void name(void *address, struct end *end)
{
    Dl_info info;
    ElfW(Sym) *symbol = NULL;
    const char *file;

    snprintf(end->object, sizeof end->object, "nowhere");
    snprintf(end->function, sizeof end->function, "%p", address);
    if (!dladdr1(address, &info, (void **)&symbol, RTLD_DL_SYMENT) || !info.dli_fname)
        return;
    snprintf(end->function, sizeof end->function, "static, at 0x%zx", (size_t)((char *)address - (char *)info.dli_fbase));
    file = strrchr(info.dli_fname, '/');
    snprintf(end->object, sizeof end->object, "%.60s", file ? file + 1 : info.dli_fname);
    if (info.dli_sname) {
        /* A static function has no name here, only its place in the file. */
        if (symbol && (char *)address < (char *)info.dli_saddr + symbol->st_size)
            snprintf(end->function, sizeof end->function, "%.80s", info.dli_sname);
    }
}

static void crashed(int signal, siginfo_t *info, void *context)
{
    void *frames[32];
    struct end end = {.how = 'c', .injected = (char)injected};
    void *at = (void *)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    int n;

    (void)info;
    name(at, &end);
    if (signal == SIGALRM)
        snprintf(end.object, sizeof end.object, "hangs");
    else if (strncmp(end.object, "libc.so", 7) == 0) {
        /* In strlen and its like: who called it. A call through NULL lands here too, as "nowhere". */
        int past = 0;

        n = backtrace(frames, 32);
        for (int i = 0; i < n; i++) {
            if (frames[i] == at) {
                past = 1;
                continue;
            }
            if (!past)
                continue;
            name((char *)frames[i] - 1, &end);
            if (strncmp(end.object, "libc.so", 7) != 0)
                break;
        }
    }
    if (write(to_parent, &end, sizeof end) != (ssize_t)sizeof end)
        _exit(3);
    _exit(0);
}

/* ---- the messages ---- */

static const char REGISTER[] =
    "REGISTER sip:example.test SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:5062;rport;branch=z9hG4bKreg\r\nMax-Forwards: 70\r\n"
    "From: \"Alice\" <sip:alice@example.test>;tag=1\r\nTo: <sip:alice@example.test>\r\nCall-ID: fail@here\r\n"
    "CSeq: 7 REGISTER\r\nContact: \"A\" <sip:alice@127.0.0.1:5062;transport=udp>;expires=60;q=0.5\r\n"
    "Authorization: Digest username=\"alice\", realm=\"example.test\", nonce=\"n\", uri=\"sip:example.test\","
    " response=\"0123456789abcdef0123456789abcdef\", algorithm=MD5, cnonce=\"c\", qop=auth, nc=00000001\r\n"
    "User-Agent: fail\r\nSupported: path\r\nAllow: INVITE, ACK\r\nExpires: 60\r\nContent-Length: 0\r\n\r\n";

static const char INVITE[] =
    "INVITE sip:bob@example.test SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:5062;branch=z9hG4bKinv\r\n"
    "Via: SIP/2.0/TCP 10.0.0.1;branch=z9hG4bKtwo;received=10.0.0.2\r\nMax-Forwards: 70\r\n"
    "Record-Route: <sip:proxy.example.test;lr>\r\nRoute: <sip:other.example.test;lr>\r\n"
    "From: <sip:alice@example.test>;tag=1\r\nTo: \"Bob\" <sip:bob@example.test>\r\nCall-ID: invite@here\r\n"
    "CSeq: 1 INVITE\r\nContact: <sip:alice@127.0.0.1:5062>\r\nAccept: application/sdp\r\nAllow: INVITE\r\n"
    "X-Own: something\r\nContent-Type: application/sdp\r\nContent-Length: 117\r\n\r\n"
    "v=0\r\no=alice 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0 8\r\n"
    "a=rtpmap:0 PCMU/8000\r\n\r\n";

static int64_t now_us = 1000000000;

int osip_gettimeofday(struct timeval *tp, void *tz)
{
    (void)tz;
    tp->tv_sec = now_us / 1000000;
    tp->tv_usec = now_us % 1000000;
    return 0;
}

static void no_trace(const char *file, int line, osip_trace_level_t level, const char *format, va_list list)
{
    (void)file;
    (void)line;
    (void)level;
    (void)format;
    (void)list;
}

static osip_message_t *parsed(const char *text)
{
    osip_message_t *m = NULL;

    if (osip_message_init(&m) != 0 || !m)
        return NULL;
    if (osip_message_parse(m, text, strlen(text)) != 0) {
        osip_message_free(m);
        return NULL;
    }
    return m;
}

static void arm(void)
{
    armed = 1;
}

static void disarm(void)
{
    armed = 0;
}

/* ---- scenarios: what the program itself does is careful, it looks at every result ---- */

static void parse(const char *text)
{
    arm();
    osip_message_t *m = parsed(text);
    osip_message_free(m);
}

static void copy(const char *text)
{
    osip_message_t *m = parsed(text), *other = NULL;

    arm();
    if (osip_message_clone(m, &other) == 0)
        osip_message_free(other);
    osip_message_free(m);
}

static void serialise(const char *text)
{
    osip_message_t *m = parsed(text);
    char *out = NULL;
    size_t length = 0;

    osip_message_force_update(m);
    arm();
    if (osip_message_to_str(m, &out, &length) == 0)
        osip_free(out);
    osip_message_free(m);
}

static osip_t *stack;
static osip_transaction_t *ended[16];
static int ended_count;

static osip_message_t *response_to(osip_message_t *request, int status)
{
    osip_message_t *m = NULL;
    osip_via_t *via;

    if (!request || osip_message_init(&m) != 0 || !m)
        return NULL;
    osip_message_set_version(m, osip_strdup("SIP/2.0"));
    osip_message_set_status_code(m, status);
    osip_message_set_reason_phrase(m, osip_strdup("Reason"));
    for (int i = 0; (via = osip_list_get(&request->vias, i)) != NULL; i++) {
        osip_via_t *other = NULL;

        if (osip_via_clone(via, &other) != 0 || !other)
            goto failed;
        if (osip_list_add(&m->vias, other, -1) < 0) {
            osip_via_free(other);
            goto failed;
        }
    }
    if (osip_from_clone(request->from, &m->from) != 0 || osip_to_clone(request->to, &m->to) != 0
        || osip_call_id_clone(request->call_id, &m->call_id) != 0 || osip_cseq_clone(request->cseq, &m->cseq) != 0)
        goto failed;
    if (status > 100) {
        char *tag = osip_strdup("b1");

        if (!tag || osip_to_set_tag(m->to, tag) != 0)
            goto failed;
    }
    return m;
failed:
    osip_message_free(m);
    return NULL;
}

static void answer(osip_transaction_t *tr, int status)
{
    osip_message_t *m = response_to(tr->orig_request, status);
    osip_event_t *event = m ? osip_new_outgoing_sipmessage(m) : NULL;

    if (!event) {
        osip_message_free(m);
        return;
    }
    event->transactionid = tr->transactionid;
    osip_transaction_add_event(tr, event);
}

static int on_send(osip_transaction_t *tr, osip_message_t *m, char *host, int port, int sock)
{
    char *out = NULL;
    size_t length = 0;

    (void)tr;
    (void)host;
    (void)port;
    (void)sock;
    if (osip_message_to_str(m, &out, &length) != 0)
        return -1;
    osip_free(out);
    return 0;
}

static void on_message(int type, osip_transaction_t *tr, osip_message_t *m)
{
    (void)m;
    if (type == OSIP_NIST_REGISTER_RECEIVED || type == OSIP_IST_INVITE_RECEIVED) {
        answer(tr, 100);
        answer(tr, type == OSIP_IST_INVITE_RECEIVED ? 486 : 200);
    }
}

static void on_end(int type, osip_transaction_t *tr)
{
    (void)type;
    osip_remove_transaction(stack, tr);
    if (ended_count < 16)
        ended[ended_count++] = tr;
}

static int open_stack(void)
{
    if (osip_init(&stack) != 0 || !stack)
        return -1;
    osip_set_cb_send_message(stack, on_send);
    for (int i = 0; i < OSIP_MESSAGE_CALLBACK_COUNT; i++)
        osip_set_message_callback(stack, i, on_message);
    for (int i = 0; i < OSIP_KILL_CALLBACK_COUNT; i++)
        osip_set_kill_transaction_callback(stack, i, on_end);
    return 0;
}

static void run(int turns, int milliseconds)
{
    struct timeval wait;

    for (int i = 0; i < turns; i++) {
        osip_timers_ict_execute(stack);
        osip_timers_ist_execute(stack);
        osip_timers_nict_execute(stack);
        osip_timers_nist_execute(stack);
        osip_ict_execute(stack);
        osip_ist_execute(stack);
        osip_nict_execute(stack);
        osip_nist_execute(stack);
        osip_timers_gettimeout(stack, &wait);
        now_us += milliseconds * 1000;
    }
}

static void close_stack(void)
{
    osip_list_t *lists[] = {&stack->osip_ict_transactions, &stack->osip_ist_transactions,
                            &stack->osip_nict_transactions, &stack->osip_nist_transactions};

    disarm();
    while (ended_count > 0)
        osip_transaction_free(ended[--ended_count]);
    for (int i = 0; i < 4; i++)
        while (osip_list_size(lists[i]) > 0)
            osip_transaction_free(osip_list_get(lists[i], 0));
    osip_release(stack);
}

static void deliver(const char *text)
{
    osip_event_t *event = osip_parse(text, strlen(text));
    osip_transaction_t *tr;

    if (!event)
        return;
    if (osip_find_transaction_and_add_event(stack, event) == 0)
        return;
    tr = EVT_IS_INCOMINGREQ(event) ? osip_create_transaction(stack, event) : NULL;
    if (tr && osip_transaction_add_event(tr, event) == 0)
        return;
    osip_message_free(event->sip);
    osip_free(event);
}

static void server(const char *text)
{
    if (open_stack() != 0)
        return;
    arm();
    deliver(text);
    run(2, 10);
    deliver(text);
    run(4, 700);
    run(14, 5000);
    close_stack();
}

static void client(const char *text)
{
    osip_message_t *m = parsed(text), *kept = parsed(text);
    osip_transaction_t *tr = NULL;
    osip_event_t *event;

    if (open_stack() != 0)
        return;
    arm();
    if (osip_transaction_init(&tr, MSG_IS_INVITE(m) ? ICT : NICT, stack, m) == 0 && tr) {
        /* Freed with the event, or with the transaction that has taken it over. */
        event = osip_new_outgoing_sipmessage(m);
        if (event) {
            osip_transaction_add_event(tr, event);
            run(4, 600);
            for (int status = 180; status <= 404; status += 224) {
                osip_message_t *response = response_to(kept, status);
                char *out = NULL;
                size_t length = 0;

                if (response && osip_message_to_str(response, &out, &length) == 0) {
                    char *copied = strndup(out, length);

                    osip_free(out);
                    deliver(copied);
                    free(copied);
                }
                osip_message_free(response);
                run(2, 10);
            }
            run(14, 5000);
        }
    }
    close_stack();
}

static void stack_itself(const char *text)
{
    (void)text;
    arm();
    if (open_stack() != 0)
        return;
    run(1, 1);
    disarm();
    osip_release(stack);
}

static const struct scenario {
    const char *name;
    void (*run)(const char *);
    const char *text;
} scenarios[] = {
    {"parse REGISTER", parse, REGISTER},         {"clone REGISTER", copy, REGISTER},
    {"serialise REGISTER", serialise, REGISTER}, {"parse INVITE", parse, INVITE},
    {"clone INVITE", copy, INVITE},              {"serialise INVITE", serialise, INVITE},
    {"osip_init", stack_itself, ""},             {"server REGISTER", server, REGISTER},
    {"server INVITE", server, INVITE},           {"client REGISTER", client, REGISTER},
    {"client INVITE", client, INVITE},
};

/* ---- the parent ---- */

static struct place {
    struct end end;
    const char *scenario;
    int times;
} places[512];
static int place_count, bad;

static void count(const struct end *end, const char *scenario, long n)
{
    int stock = strncmp(end->object, "libosip2.so", 11) == 0 || strncmp(end->object, "libosipparser2.so", 17) == 0;

    if (!stock || getenv("FAIL_ALLOC_VERBOSE"))
        printf("%s: %s, n %ld%s: %s in %s\n", stock ? "stock" : "FAILURE", scenario, n, and_on ? " and on" : "",
               end->function, end->object);
    bad += !stock;
    for (int i = 0; i < place_count; i++)
        if (strcmp(places[i].end.function, end->function) == 0 && strcmp(places[i].end.object, end->object) == 0) {
            places[i].times++;
            return;
        }
    places[place_count].end = *end;
    places[place_count].scenario = scenario;
    places[place_count++].times = 1;
}

/* Returns whether an allocation was refused: if not, there are no more. */
static int one(const struct scenario *scenario, long n)
{
    int ends[2], status = 0;
    struct end end;
    pid_t child;

    fflush(stdout);
    if (pipe(ends) != 0 || (child = fork()) < 0) {
        perror("fork");
        exit(2);
    }
    if (child == 0) {
        static char other_stack[65536];
        stack_t own = {.ss_sp = other_stack, .ss_size = sizeof other_stack};
        struct sigaction action = {.sa_sigaction = crashed, .sa_flags = SA_SIGINFO | SA_ONSTACK};
        int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGALRM};

        to_parent = ends[1];
        close(ends[0]);
        sigaltstack(&own, NULL);
        for (int i = 0; i < 5; i++)
            sigaction(signals[i], &action, NULL);
        alarm(20);
        fail_at = n;
        scenario->run(scenario->text);
        memset(&end, 0, sizeof end);
        end.how = 'o';
        end.injected = (char)injected;
        if (write(to_parent, &end, sizeof end) != (ssize_t)sizeof end)
            _exit(3);
        _exit(0);
    }
    close(ends[1]);
    if (read(ends[0], &end, sizeof end) != (ssize_t)sizeof end) {
        /* Ended without a word: abort, for the pool has found a misuse. */
        memset(&end, 0, sizeof end);
        end.how = 'c';
        end.injected = 1;
        snprintf(end.object, sizeof end.object, "ended without a word");
    }
    close(ends[0]);
    waitpid(child, &status, 0);
    if (end.how == 'c') {
        if (WIFSIGNALED(status))
            snprintf(end.function, sizeof end.function, "signal %d", WTERMSIG(status));
        count(&end, scenario->name, n);
    }
    return end.injected;
}

int main(int argc, char **argv)
{
    long every = argc > 1 ? atol(argv[1]) : 1;
    void *frames[4];
    int total = 0;

    /* Once here, where it may allocate. */
    backtrace(frames, 4);
    osip_trace_initialize_func(END_TRACE_LEVEL, no_trace);
    parser_init();
    behind_malloc = osip_malloc_func;
    behind_realloc = osip_realloc_func;
    behind_free = osip_free_func;
    osip_set_allocators(hook_malloc, hook_realloc, hook_free);
    for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++) {
        const struct scenario *scenario = &scenarios[i];
        int ran[2] = {0, 0}, crashes = 0;

        for (int i = 0; i < place_count; i++)
            crashes -= places[i].times;
        for (and_on = 0; and_on < 2; and_on++)
            for (long n = 1; one(scenario, n); n += every)
                ran[and_on]++;
        for (int i = 0; i < place_count; i++)
            crashes += places[i].times;
        printf("%-20s %4d allocations, each refused alone and with all behind it; %d crashes\n", scenario->name, ran[0],
               crashes);
        if (ran[0] < 1)
            bad++;
        total += ran[0] + ran[1];
    }
    for (int i = 0; i < place_count; i++)
        printf("crash in %s %s: %d times, first in %s\n", places[i].end.object, places[i].end.function, places[i].times,
               places[i].scenario);
    printf("fail_alloc: %s: %d runs, %d places in libosip2, %d failures\n", bad ? "FAILED" : "ok", total,
           place_count, bad);
    return bad != 0;
}
