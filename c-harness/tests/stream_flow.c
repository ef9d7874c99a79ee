/* TCP: how requests lie in the stream, keep-alives, what cannot be followed, limits, deferred answers, a plugin that blocks,
 * connections opened by the engine, the stop. Once with the registrar alone, once with plugins in the chain. */
#include "check.h"

static partyline_message *_Atomic kept;
static atomic_int blocked, release_blocked;

/* MESSAGE: answered later by the main thread. */
static int defer(void *user, partyline_message *message)
{
    partyline_message *later;
    (void)user;
    OK(partyline_reply(message, 100, NULL, NULL, NULL, 0));
    OK(partyline_message_defer(message, &later));
    atomic_store(&kept, later);
    return PARTYLINE_PENDING;
}

/* OPTIONS: blocks until it is let go. */
static int block(void *user, partyline_message *message)
{
    (void)user;
    atomic_store(&blocked, 1);
    CHECK(reaches(&release_blocked, 1));
    OK(partyline_reply(message, 200, "Released", NULL, NULL, 0));
    return PARTYLINE_DONE;
}

static void expect(int fd, char *text, size_t capacity, int status, const char *part)
{
    CHECK(client_receive(fd, text, capacity, 5000) > 0);
    if (status_of(text) != status || (part && !strstr(text, part)))
        fprintf(stderr, "wanted %d with \"%s\", got:\n%s\n", status, part ? part : "", text);
    CHECK(status_of(text) == status && (!part || strstr(text, part)));
}

/* The server closes: nothing more comes. */
static void expect_end(int fd)
{
    char byte;
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    CHECK(poll(&wait, 1, 10000) == 1);
    CHECK(recv(fd, &byte, 1, 0) <= 0);
    close(fd);
}

static int reg(char *into, size_t capacity, const char *user, unsigned cseq)
{
    return request(into, capacity, "REGISTER", user, user, cseq, "<sip:u@127.0.0.1:5070>", NULL);
}

/* The value of a line of the metrics. */
static double metric(partyline_engine *engine, const char *name)
{
    static char text[200000];
    size_t length;
    OK(partyline_engine_metrics(engine, text, sizeof text, &length));
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n"))
        if (strncmp(line, name, strlen(name)) == 0 && line[strlen(name)] == ' ')
            return atof(line + strlen(name));
    fprintf(stderr, "no figure %s\n", name);
    exit(1);
}

static void reaches_metric(partyline_engine *engine, const char *name, double wanted)
{
    for (int i = 0; i < 10000 && metric(engine, name) < wanted; i++)
        usleep(1000);
    CHECK(metric(engine, name) >= wanted);
}

static uint16_t port_of(int fd)
{
    struct sockaddr_in at;
    CHECK(getsockname(fd, (struct sockaddr *)&at, &(socklen_t){sizeof at}) == 0);
    return ntohs(at.sin_port);
}

static void framing(partyline_engine *engine, uint16_t port)
{
    char text[20000], part[32];
    size_t length = 0;
    int fd = client_connect(SOCK_STREAM, port);

    /* Several requests in one segment, more than one batch of the server's; answers in their order. */
    for (unsigned i = 1; i <= 30; i++)
        length += (size_t)reg(text + length, sizeof text - length, "many", i);
    client_send(fd, text, length);
    client_send(fd, text, 0);
    for (unsigned i = 1; i <= 30; i++) {
        snprintf(part, sizeof part, "CSeq: %u REGISTER", i);
        expect(fd, text, sizeof text, 200, part);
    }

    /* One request in many segments, line ends before it; then one and a half, then the other half. */
    client_send(fd, "\r\n", 2);
    length = (size_t)reg(text, sizeof text, "bytes", 1);
    for (size_t i = 0; i < length; i++)
        client_send(fd, text + i, 1);
    expect(fd, text, sizeof text, 200, "CSeq: 1 REGISTER");
    length = (size_t)reg(text, sizeof text, "half", 1);
    length += (size_t)reg(text + length, sizeof text - length, "half", 2);
    char copy[4096];
    CHECK(length < sizeof copy);
    memcpy(copy, text, length);
    client_send(fd, copy, length - 100);
    expect(fd, text, sizeof text, 200, "CSeq: 1 REGISTER");
    client_send(fd, copy + length - 100, 100);
    expect(fd, text, sizeof text, 200, "CSeq: 2 REGISTER");

    /* A ping is answered by a pong (RFC 5626 section 4.4.1), one line end by nothing. */
    client_send(fd, "\r\n\r\n", 4);
    CHECK(receive_all(fd, text, 2) == 2 && memcmp(text, "\r\n", 2) == 0);

    /* What is broken but has its length is answered, and the stream goes on. */
    CHECK(ask(fd, text, sizeof text, "REGISTER", "x", "x1", 1, "<sip:unclosed@b", NULL) == 400);
    CHECK(ask(fd, text, sizeof text, "REGISTER", "x", "x1", 2, "<sip:a@127.0.0.1>", NULL) == 200);
    CHECK(ask(fd, text, sizeof text, "PUBLISH", "x", "x1", 3, NULL, NULL) == 501);

    /* The peer closes its side behind a request: the answer still comes, then the end. */
    length = (size_t)reg(text, sizeof text, "gone", 1);
    client_send(fd, text, length);
    CHECK(shutdown(fd, SHUT_WR) == 0);
    expect(fd, text, sizeof text, 200, NULL);
    expect_end(fd);

    /* What cannot be followed is answered if it can be, then closed. */
    fd = client_connect(SOCK_STREAM, port);
    length = (size_t)reg(text, sizeof text, "nolength", 1) - strlen("Content-Length: 0\r\n\r\n");
    memcpy(text + length, "\r\n", 2);
    client_send(fd, text, length + 2);
    expect(fd, text, sizeof text, 400, "Content-Length");
    expect_end(fd);
    fd = client_connect(SOCK_STREAM, port);
    length = (size_t)reg(text, sizeof text, "long", 1) - strlen("0\r\n\r\n");
    memcpy(text + length, "9999999\r\n\r\n", 11);
    client_send(fd, text, length + 11);
    expect(fd, text, sizeof text, 513, NULL);
    expect_end(fd);
    const char *garbage[] = {"\x16\x03\x01 a TLS hello", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"};
    for (int i = 0; i < 2; i++) {
        fd = client_connect(SOCK_STREAM, port);
        client_send(fd, garbage[i], strlen(garbage[i]));
        expect_end(fd);
    }

    /* A peer that says nothing, and one that never ends its message. */
    fd = client_connect(SOCK_STREAM, port);
    expect_end(fd);
    fd = client_connect(SOCK_STREAM, port);
    client_send(fd, "REGISTER sip:", 13);
    expect_end(fd);
    reaches_metric(engine, "partyline_stream_closed_total{reason=\"silent_too_long\"}", 1);
    reaches_metric(engine, "partyline_stream_closed_total{reason=\"message_too_slow\"}", 1);
    CHECK(metric(engine, "partyline_stream_framing_errors_total{reason=\"no_length\"}") == 2);
    CHECK(metric(engine, "partyline_stream_pings_total") == 1);
}

/* The engine sends of its own accord: over the connection that is there, else over a new one. */
static void sending(partyline_engine *engine, uint16_t port)
{
    char text[4096], address[64];
    const char *notify = "NOTIFY sip:u@127.0.0.1 SIP/2.0\r\nContent-Length: 2\r\n\r\nhi";
    int fd = client_connect(SOCK_STREAM, port);
    CHECK(ask(fd, text, sizeof text, "REGISTER", "s", "s1", 1, "<sip:s@127.0.0.1>", NULL) == 200);
    double opened = metric(engine, "partyline_stream_opened_total{by=\"us\"}");
    snprintf(address, sizeof address, "tcp:127.0.0.1:%u", port_of(fd));
    OK(partyline_send(engine, address, notify, strlen(notify)));
    CHECK(client_receive(fd, text, sizeof text, 5000) == (int)strlen(notify) && strcmp(text, notify) == 0);
    CHECK(metric(engine, "partyline_stream_opened_total{by=\"us\"}") == opened);
    close(fd);

    int server = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK(bind(server, (struct sockaddr *)&at, sizeof at) == 0 && listen(server, 8) == 0);
    snprintf(address, sizeof address, "tcp:127.0.0.1:%u", port_of(server));
    OK(partyline_send(engine, address, notify, strlen(notify)));
    OK(partyline_send(engine, address, notify, strlen(notify)));
    fd = accept(server, NULL, NULL);
    CHECK(fd >= 0);
    for (int i = 0; i < 2; i++)
        CHECK(client_receive(fd, text, sizeof text, 5000) == (int)strlen(notify) && strcmp(text, notify) == 0);
    /* Requests come over it as over any other. */
    CHECK(ask(fd, text, sizeof text, "REGISTER", "s", "s2", 1, "<sip:s@127.0.0.1>", NULL) == 200);
    CHECK(metric(engine, "partyline_stream_opened_total{by=\"us\"}") == opened + 1);
    close(fd);
    close(server);

    /* The engine has seen the end of both: else it would send over the one that it still has. */
    for (int i = 0; i < 10000 && metric(engine, "partyline_stream_open") > 0; i++)
        usleep(1000);
    CHECK(metric(engine, "partyline_stream_open") == 0);

    /* Nobody listens there: the connection fails later, and is counted. */
    double failed = metric(engine, "partyline_stream_closed_total{reason=\"connect_failed\"}");
    partyline_send(engine, address, notify, strlen(notify));
    reaches_metric(engine, "partyline_stream_closed_total{reason=\"connect_failed\"}", failed + 1);
    CHECK_CODE(partyline_send(engine, address, notify, 0), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_send(engine, "sctp:127.0.0.1:5060", notify, 1), PARTYLINE_ECONFIG);
}

static partyline_message *deferred(void)
{
    partyline_message *later = NULL;
    for (int i = 0; i < 10000 && (later = atomic_exchange(&kept, NULL)) == NULL; i++)
        usleep(1000);
    CHECK(later != NULL);
    return later;
}

static void plugins(uint16_t port)
{
    char text[8192], host[46];
    uint16_t from;
    int fd = client_connect(SOCK_STREAM, port);

    /* Deferred: the connection goes on meanwhile, and the answer comes over it, from another thread. */
    CHECK(ask(fd, text, sizeof text, "MESSAGE", "m", "m1", 1, NULL, NULL) == 100);
    CHECK(ask(fd, text, sizeof text, "REGISTER", "m", "m2", 1, "<sip:m@127.0.0.1>", NULL) == 200);
    partyline_message *later = deferred();
    OK(partyline_message_source(later, host, sizeof host, &from));
    CHECK(strcmp(host, "127.0.0.1") == 0 && from == port_of(fd));
    OK(partyline_reply(later, 202, NULL, NULL, "done", 4));
    expect(fd, text, sizeof text, 202, "done");

    /* Behind a call that blocks, in the same segment: answered before it. */
    size_t length = (size_t)request(text, sizeof text, "OPTIONS", "o", "o1", 1, NULL, NULL);
    length += (size_t)reg(text + length, sizeof text - length, "behind", 1);
    length += (size_t)reg(text + length, sizeof text - length, "behind", 2);
    client_send(fd, text, length);
    CHECK(reaches(&blocked, 1));
    expect(fd, text, sizeof text, 200, "CSeq: 1 REGISTER");
    expect(fd, text, sizeof text, 200, "CSeq: 2 REGISTER");
    CHECK(ask(fd, text, sizeof text, "REGISTER", "behind", "b", 3, "<sip:m@127.0.0.1>", NULL) == 200);
    atomic_store(&release_blocked, 1);
    expect(fd, text, sizeof text, 200, "Released");

    /* The connection is gone before the answer: it goes to the source's address and sent-by's port (RFC 3261, 18.2.2). */
    int server = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK(bind(server, (struct sockaddr *)&at, sizeof at) == 0 && listen(server, 1) == 0);
    length = (size_t)snprintf(text, sizeof text,
                              "MESSAGE sip:example.test SIP/2.0\r\nVia: SIP/2.0/TCP 127.0.0.1:%u;branch=z9hG4bKre\r\n"
                              "From: <sip:r@example.test>;tag=r\r\nTo: <sip:r@example.test>\r\nCall-ID: re\r\n"
                              "CSeq: 1 MESSAGE\r\nContent-Length: 0\r\n\r\n",
                              port_of(server));
    client_send(fd, text, length);
    expect(fd, text, sizeof text, 100, NULL);
    later = deferred();
    struct linger hard = {.l_onoff = 1};
    CHECK(setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard) == 0);
    close(fd);
    fd = client_connect(SOCK_STREAM, port);
    CHECK(ask(fd, text, sizeof text, "REGISTER", "m", "m2", 2, "<sip:m@127.0.0.1>", NULL) == 200);
    OK(partyline_reply(later, 200, "Again", NULL, NULL, 0));
    struct pollfd wait = {.fd = server, .events = POLLIN};
    CHECK(poll(&wait, 1, 5000) == 1);
    int back = accept(server, NULL, NULL);
    CHECK(back >= 0);
    expect(back, text, sizeof text, 200, "Again");
    close(back);
    close(server);
    close(fd);
}

static void run(int with_plugins)
{
    partyline_registrar *registrar;
    partyline_engine *engine;
    uint16_t port, udp;
    char text[4096];
    OK(partyline_registrar_new(&registrar));
    OK(partyline_registrar_set(registrar, "mode", "memory"));
    OK(partyline_registrar_open(registrar, "memory:"));
    OK(partyline_engine_new(&engine));
    OK(partyline_engine_attach(engine, registrar));
    OK(partyline_engine_set(engine, "max_message", "8192"));
    OK(partyline_engine_set(engine, "tcp.first_bytes", "1s"));
    OK(partyline_engine_set(engine, "tcp.message_limit", "1s"));
    CHECK_CODE(partyline_engine_set(engine, "tcp.idle", "1"), PARTYLINE_ECONFIG);
    OK(partyline_engine_listen(engine, "tcp:127.0.0.1:0", &port));
    OK(partyline_engine_listen(engine, "udp:127.0.0.1:0", &udp));
    partyline_plugin deferring = {.size = sizeof deferring, .version = 1, .policy = PARTYLINE_SERIAL,
                                  .phase = PARTYLINE_NORMAL, .name = "defer", .methods = "MESSAGE", .callback = defer};
    partyline_plugin blocking = {.size = sizeof blocking, .version = 1, .policy = PARTYLINE_PARALLEL,
                                 .phase = PARTYLINE_NORMAL, .name = "block", .methods = "OPTIONS", .callback = block};
    if (with_plugins) {
        OK(partyline_plugin_register(engine, &deferring));
        OK(partyline_plugin_register(engine, &blocking));
    }
    OK(partyline_engine_start(engine));
    framing(engine, port);
    sending(engine, port);
    if (with_plugins)
        plugins(port);

    /* Both transports at once. */
    int datagrams = client_socket(udp), fd = client_connect(SOCK_STREAM, port);
    for (unsigned i = 1; i <= 20; i++) {
        CHECK(ask(datagrams, text, sizeof text, "REGISTER", "d", "d", i, "<sip:d@127.0.0.1>", NULL) == 200);
        CHECK(ask(fd, text, sizeof text, "REGISTER", "t", "t", i, "<sip:t@127.0.0.1>", NULL) == 200);
    }
    CHECK(metric(engine, "partyline_stream_open") >= 1);

    /* The stop closes what is connected and lets nobody in any more. */
    CHECK(partyline_engine_stop(engine, 1000) == 0);
    expect_end(fd);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK(connect(fd, (struct sockaddr *)&to, sizeof to) == -1 && was_refused());
    CHECK(metric(engine, "partyline_stream_open") == 0);
    close(fd);
    close(datagrams);
    OK(partyline_engine_free(engine));
    OK(partyline_registrar_free(registrar));
}

int main(void)
{
    run(0);
    run(1);
    printf("stream_flow: ok\n");
    return 0;
}
