/* The plugin chain: order, methods, verdicts, policies, deferring, and what a callback may and may not do. */
#include "check.h"

static partyline_engine *engine;
static atomic_int inside[4], most[4], calls[4];
static int serial_last;
static atomic_int release_blocked, stale_refused;
static partyline_message *_Atomic kept;
static partyline_message *_Atomic stale;

static void enter(int which)
{
    int now = atomic_fetch_add(&inside[which], 1) + 1;
    int seen = atomic_load(&most[which]);
    while (now > seen && !atomic_compare_exchange_weak(&most[which], &seen, now))
        ;
    atomic_fetch_add(&calls[which], 1);
}

static void leave(int which)
{
    atomic_fetch_sub(&inside[which], 1);
}

/* Sees everything first; passes on. Checks the accessors. */
static int watch(void *user, partyline_message *message)
{
    const char *bytes;
    size_t length;
    char host[46];
    uint16_t port = 0;
    CHECK(user == &calls[0]);
    enter(0);
    OK(partyline_message_method(message, &bytes, &length));
    CHECK(length >= 3);
    OK(partyline_message_uri(message, &bytes, &length));
    CHECK(length > 4 && memcmp(bytes, "sip:", 4) == 0);
    partyline_uri uri = {.size = sizeof uri};
    OK(partyline_message_uri_parts(message, PARTYLINE_URI_TO, &uri));
    CHECK(uri.scheme_length == 3 && memcmp(uri.scheme, "sip", 3) == 0 && uri.user_length == 1 && *uri.user == 'a');
    CHECK(uri.host_length == 12 && memcmp(uri.host, "example.test", 12) == 0 && uri.port == 0);
    OK(partyline_message_uri_parts(message, PARTYLINE_URI_REQUEST, &uri));
    CHECK(uri.user == NULL && uri.user_length == 0);
    CHECK_CODE(partyline_message_uri_parts(message, 9, &uri), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_message_uri_parts(message, PARTYLINE_URI_FROM, NULL), PARTYLINE_EINVAL);
    uri.size = 1;
    CHECK_CODE(partyline_message_uri_parts(message, PARTYLINE_URI_FROM, &uri), PARTYLINE_EINVAL);
    OK(partyline_message_header(message, "call-ID", 0, &bytes, &length));
    OK(partyline_message_header(message, "VIA", 0, &bytes, &length));
    CHECK(length > 8 && memcmp(bytes, "SIP/2.0/", 8) == 0);
    CHECK_CODE(partyline_message_header(message, "Via", 1, &bytes, &length), PARTYLINE_ENOTFOUND);
    CHECK_CODE(partyline_message_header(message, "X-None", 0, &bytes, &length), PARTYLINE_ENOTFOUND);
    CHECK_CODE(partyline_message_header(message, NULL, 0, &bytes, &length), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_message_header(message, "To", 0, NULL, &length), PARTYLINE_EINVAL);
    OK(partyline_message_body(message, &bytes, &length));
    OK(partyline_message_text(message, &bytes, &length));
    CHECK(length > 100);
    OK(partyline_message_source(message, host, sizeof host, &port));
    CHECK(strcmp(host, "127.0.0.1") == 0 && port != 0);
    CHECK_CODE(partyline_message_source(message, host, 4, NULL), PARTYLINE_ETOOSMALL);
    CHECK_CODE(partyline_reply(message, 99, NULL, NULL, NULL, 0), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_reply(message, 200, NULL, "No-Line-End: x", NULL, 0), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_reply(message, 200, "with\r\nline end", NULL, NULL, 0), PARTYLINE_EINVAL);
    /* A token of an earlier callback is not good any more, wherever it is used. */
    partyline_message *old = atomic_load(&stale);
    if (old != NULL && partyline_message_body(old, &bytes, &length) == PARTYLINE_EINVAL)
        atomic_store(&stale_refused, 1);
    atomic_store(&stale, message);
    CHECK_CODE(partyline_engine_free(engine), PARTYLINE_ESTATE);
    leave(0);
    return PARTYLINE_NEXT;
}

/* OPTIONS: serial, and slow enough that two at once would be seen. Called in order of arrival. */
static int serial(void *user, partyline_message *message)
{
    const char *bytes;
    size_t length;
    (void)user;
    enter(1);
    OK(partyline_message_header(message, "CSeq", 0, &bytes, &length));
    CHECK(atoi(bytes) == ++serial_last || atoi(bytes) == 1);
    usleep(2000);
    OK(partyline_reply(message, 200, "Serial", "X-One: 1\r\nX-Two: 2\r\n", "body", 4));
    CHECK_CODE(partyline_reply(message, 200, NULL, NULL, NULL, 0), PARTYLINE_ESTATE);
    leave(1);
    return PARTYLINE_DONE;
}

/* MESSAGE: parallel; waits until two are inside. */
static int parallel(void *user, partyline_message *message)
{
    (void)user;
    enter(2);
    CHECK(reaches(&most[2], 2));
    OK(partyline_reply(message, 202, NULL, NULL, NULL, 0));
    leave(2);
    return PARTYLINE_DONE;
}

/* INFO blocks until it is released: the others go on meanwhile. */
static int block(void *user, partyline_message *message)
{
    (void)user;
    enter(3);
    CHECK(reaches(&release_blocked, 1));
    OK(partyline_reply(message, 200, NULL, NULL, NULL, 0));
    leave(3);
    return PARTYLINE_DONE;
}

/* NOTIFY is finished by another thread; PUBLISH is kept, then passed on to the end of the chain. */
static int keep(void *user, partyline_message *message)
{
    partyline_message *later;
    (void)user;
    OK(partyline_message_defer(message, &later));
    atomic_store(&kept, later);
    return PARTYLINE_PENDING;
}

static void *answer_later(void *final)
{
    partyline_message *later;
    const char *bytes;
    size_t length;
    while ((later = atomic_exchange(&kept, NULL)) == NULL)
        usleep(1000);
    OK(partyline_message_header(later, "Call-ID", 0, &bytes, &length));
    CHECK(length > 0);
    if (final == NULL) {
        OK(partyline_message_resume(later, PARTYLINE_NEXT));
    } else {
        OK(partyline_reply(later, 100, NULL, NULL, NULL, 0));
        OK(partyline_reply(later, 200, "Later", NULL, NULL, 0));
    }
    CHECK_CODE(partyline_reply(later, 200, NULL, NULL, NULL, 0), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_message_resume(later, PARTYLINE_NEXT), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_message_drop(later), PARTYLINE_EINVAL);
    return NULL;
}

static int wrong(void *user, partyline_message *message)
{
    (void)user;
    (void)message;
    return 4711;
}

static void add(const char *name, int policy, int phase, const char *methods, partyline_callback callback, void *user)
{
    partyline_plugin plugin = {.size = sizeof plugin, .version = 1, .policy = policy, .phase = phase, .name = name,
                               .methods = methods, .callback = callback, .user = user};
    OK(partyline_plugin_register(engine, &plugin));
}

int main(void)
{
    uint16_t port;
    char text[4096];
    OK(partyline_engine_new(&engine));
    OK(partyline_engine_set(engine, "threads.min", "2"));
    OK(partyline_engine_set(engine, "threads.max", "8"));
    OK(partyline_engine_set(engine, "log", "off"));
    /* First of its phase, so that the order at the plugin is the order of arrival at the socket. */
    add("serial", PARTYLINE_SERIAL, PARTYLINE_FIRST, "OPTIONS", serial, NULL);
    add("parallel", PARTYLINE_PARALLEL, PARTYLINE_NORMAL, "MESSAGE", parallel, NULL);
    add("block", PARTYLINE_PARALLEL, PARTYLINE_NORMAL, "INFO", block, NULL);
    add("keep", PARTYLINE_KEYED_CALL_ID, PARTYLINE_NORMAL, "NOTIFY,PUBLISH", keep, NULL);
    add("wrong", PARTYLINE_PARALLEL, PARTYLINE_LAST, "REFER", wrong, NULL);
    add("watch", PARTYLINE_PARALLEL, PARTYLINE_FIRST, NULL, watch, &calls[0]);
    OK(partyline_engine_listen(engine, "udp:127.0.0.1:0", &port));
    OK(partyline_engine_start(engine));
    int fd = client_socket(port);

    /* One after another, in the order of arrival, each answered once. */
    char seen[41] = {0};
    for (unsigned i = 1; i <= 40; i++) {
        int length = request(text, sizeof text, "OPTIONS", "a", "same", i, NULL, NULL);
        client_send(fd, text, (size_t)length);
    }
    for (unsigned i = 1; i <= 40; i++) {
        CHECK(client_receive(fd, text, sizeof text, 10000) > 0 && status_of(text) == 200);
        unsigned cseq = (unsigned)atoi(strstr(text, "CSeq: ") + 6);
        CHECK(cseq >= 1 && cseq <= 40 && !seen[cseq]);
        seen[cseq] = 1;
        CHECK(strstr(text, "SIP/2.0 200 Serial\r\n") && strstr(text, "X-Two: 2\r\n") && strstr(text, "\r\n\r\nbody"));
    }
    CHECK(atomic_load(&most[1]) == 1 && atomic_load(&calls[1]) == 40);

    /* Two at once, and others are served while one blocks. */
    for (unsigned i = 1; i <= 2; i++) {
        int length = request(text, sizeof text, "MESSAGE", "a", "m", i, NULL, NULL);
        client_send(fd, text, (size_t)length);
    }
    for (int i = 0; i < 2; i++)
        CHECK(client_receive(fd, text, sizeof text, 10000) > 0 && status_of(text) == 202);
    for (unsigned i = 1; i <= 3; i++) {
        int length = request(text, sizeof text, "INFO", "a", "i", i, NULL, NULL);
        client_send(fd, text, (size_t)length);
    }
    CHECK(reaches(&calls[3], 3));
    CHECK(ask(fd, text, sizeof text, "OPTIONS", "a", "while-blocked", 1, NULL, NULL) == 200);
    atomic_store(&release_blocked, 1);
    for (int i = 0; i < 3; i++)
        CHECK(client_receive(fd, text, sizeof text, 10000) > 0 && status_of(text) == 200);

    /* Later, from another thread: answered, and passed on. */
    for (int pass = 0; pass < 2; pass++) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, answer_later, pass ? NULL : &pass) == 0);
        int status = ask(fd, text, sizeof text, pass ? "PUBLISH" : "NOTIFY", "a", "n", 1, NULL, NULL);
        if (pass == 0) {
            CHECK(status == 100);
            CHECK(client_receive(fd, text, sizeof text, 5000) > 0);
            CHECK(strncmp(text, "SIP/2.0 200 Later\r\n", 19) == 0);
        } else {
            CHECK(status == 501);
        }
        CHECK(pthread_join(thread, NULL) == 0);
    }

    /* A verdict that is none ends the message; nobody's method gets 501. */
    int length = request(text, sizeof text, "REFER", "a", "r", 1, NULL, NULL);
    client_send(fd, text, (size_t)length);
    CHECK(ask(fd, text, sizeof text, "BYE", "a", "bye", 1, NULL, NULL) == 501);
    CHECK(atomic_load(&stale_refused) == 1);

    /* One message is never answered: the stop reports it. */
    length = request(text, sizeof text, "NOTIFY", "a", "left", 1, NULL, NULL);
    client_send(fd, text, (size_t)length);
    while (atomic_load(&kept) == NULL)
        usleep(1000);
    partyline_stats stats = {.size = sizeof stats};
    OK(partyline_stats_get(engine, &stats));
    CHECK(stats.deferred == 1 && stats.plugin_calls >= 50 && stats.promotions > 0);
    CHECK(partyline_engine_stop(engine, 50) == 1);
    OK(partyline_message_drop(atomic_load(&kept)));
    OK(partyline_engine_free(engine));
    close(fd);
    puts("plugins: ok");
    return 0;
}
