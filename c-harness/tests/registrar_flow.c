/* A registrar behind the engine: add, refresh, query, remove, order, bad input, and what is in the store afterwards.
 *   registrar_flow URL MODE [tcp]    URL: memory:, sqlite:PATH, mysql://...; MODE: memory, write_back, write_through */
#include "check.h"

static int count_binding(void *user, const partyline_binding *binding)
{
    CHECK(binding->size == sizeof *binding);
    CHECK(strncmp(binding->contact, "sip:", 4) == 0 && binding->expires > 0);
    ++*(int *)user;
    return 0;
}

static int lookup(partyline_registrar *registrar, const char *aor)
{
    int seen = 0;
    CHECK(partyline_registrar_lookup(registrar, aor, count_binding, &seen) == seen);
    return seen;
}

static partyline_registrar *opened(const char *url, const char *mode)
{
    partyline_registrar *registrar;
    OK(partyline_registrar_new(&registrar));
    OK(partyline_registrar_set(registrar, "mode", mode));
    OK(partyline_registrar_open(registrar, url));
    return registrar;
}

/* With the option connection_bound a contact goes with its connection, one that came over UDP or was refreshed over
 * another connection does not. */
static void bound_to_connections(void)
{
    partyline_registrar *registrar;
    partyline_engine *engine;
    uint16_t port, udp;
    char text[4000];
    OK(partyline_registrar_new(&registrar));
    OK(partyline_registrar_set(registrar, "mode", "memory"));
    OK(partyline_registrar_set(registrar, "connection_bound", "on"));
    OK(partyline_registrar_open(registrar, "memory:"));
    OK(partyline_engine_new(&engine));
    OK(partyline_engine_attach(engine, registrar));
    OK(partyline_engine_listen(engine, "tcp:127.0.0.1:0", &port));
    OK(partyline_engine_listen(engine, "udp:127.0.0.1:0", &udp));
    OK(partyline_engine_start(engine));
    int first = client_connect(SOCK_STREAM, port), second = client_connect(SOCK_STREAM, port), datagrams = client_connect(SOCK_DGRAM, udp);
    CHECK(ask(first, text, sizeof text, "REGISTER", "tina", "t1", 1, "<sip:tina@10.0.0.1>", NULL) == 200);
    CHECK(ask(first, text, sizeof text, "REGISTER", "toni", "t2", 1, "<sip:toni@10.0.0.1>", NULL) == 200);
    CHECK(ask(second, text, sizeof text, "REGISTER", "toni", "t2", 2, "<sip:toni@10.0.0.1>", NULL) == 200);
    CHECK(ask(datagrams, text, sizeof text, "REGISTER", "tina", "t3", 1, "<sip:tina@10.0.0.2>", NULL) == 200);
    CHECK(lookup(registrar, "sip:tina@example.test") == 2);
    close(first);
    for (int i = 0; i < 5000 && lookup(registrar, "sip:tina@example.test") != 1; i++)
        usleep(1000);
    CHECK(lookup(registrar, "sip:tina@example.test") == 1);
    CHECK(lookup(registrar, "sip:toni@example.test") == 1);
    close(second);
    for (int i = 0; i < 5000 && lookup(registrar, "sip:toni@example.test") != 0; i++)
        usleep(1000);
    CHECK(lookup(registrar, "sip:toni@example.test") == 0);
    CHECK(partyline_engine_stop(engine, 2000) == 0);
    OK(partyline_engine_free(engine));
    OK(partyline_registrar_free(registrar));
    close(datagrams);
}

int main(int argc, char **argv)
{
    CHECK(argc == 3 || (argc == 4 && strcmp(argv[3], "tcp") == 0));
    const char *url = argv[1], *mode = argv[2];
    int tcp = argc == 4;
    partyline_registrar *registrar = opened(url, mode);
    partyline_engine *engine;
    uint16_t port;
    OK(partyline_engine_new(&engine));
    OK(partyline_engine_attach(engine, registrar));
    OK(partyline_engine_listen(engine, tcp ? "tcp:127.0.0.1:0" : "udp:127.0.0.1:0", &port));
    OK(partyline_engine_start(engine));
    int fd = client_connect(tcp ? SOCK_STREAM : SOCK_DGRAM, port);
    char text[70000];

    /* Add, refresh, query, second contact. */
    CHECK(ask(fd, text, sizeof text, "REGISTER", "alice", "c1", 1, "<sip:alice@127.0.0.1:5070>;expires=600", NULL) == 200);
    CHECK(strstr(text, "Contact: <sip:alice@127.0.0.1:5070>") && strstr(text, "expires=600"));
    CHECK(strstr(text, ";received=127.0.0.1") || strstr(text, ";rport="));
    CHECK(ask(fd, text, sizeof text, "REGISTER", "alice", "c1", 2, "<sip:alice@127.0.0.1:5070>", "Expires: 300\r\n") == 200);
    CHECK(strstr(text, "expires=300"));
    CHECK(ask(fd, text, sizeof text, "REGISTER", "alice", "c2", 1, "<sip:alice@127.0.0.1:5071>;q=0.5", "Expires: 900\r\n") == 200);
    CHECK(strstr(text, ":5070>") && strstr(text, ":5071>"));
    CHECK(ask(fd, text, sizeof text, "REGISTER", "alice", "c3", 1, NULL, NULL) == 200);
    CHECK(strstr(text, ":5070>") && strstr(text, ":5071>"));
    CHECK(lookup(registrar, "sip:alice@example.test") == 2);
    CHECK(lookup(registrar, "sip:nobody@example.test") == 0);

    /* An older CSeq under the same Call-ID changes nothing. */
    CHECK(ask(fd, text, sizeof text, "REGISTER", "alice", "c1", 1, "<sip:alice@127.0.0.1:5070>;expires=0", NULL) >= 400);
    CHECK(lookup(registrar, "sip:alice@example.test") == 2);

    /* The star: with another contact or another Expires it is refused and nothing changes. */
    CHECK(ask(fd, text, sizeof text, "REGISTER", "alice", "c4", 1, "*", "Expires: 60\r\n") == 400);
    CHECK(ask(fd, text, sizeof text, "REGISTER", "alice", "c4", 2, "*", "Contact: <sip:a@b>\r\nExpires: 0\r\n") == 400);
    CHECK(lookup(registrar, "sip:alice@example.test") == 2);

    /* Remove one, then all. */
    CHECK(ask(fd, text, sizeof text, "REGISTER", "alice", "c5", 1, "<sip:alice@127.0.0.1:5071>;expires=0", NULL) == 200);
    CHECK(lookup(registrar, "sip:alice@example.test") == 1);
    CHECK(ask(fd, text, sizeof text, "REGISTER", "bob", "b1", 1, "<sip:bob@127.0.0.1:5072>", NULL) == 200);
    CHECK(ask(fd, text, sizeof text, "REGISTER", "alice", "c6", 1, "*", "Expires: 0\r\n") == 200);
    CHECK(strstr(text, "Contact:") == NULL);
    CHECK(lookup(registrar, "sip:alice@example.test") == 0);

    /* What is no REGISTER gets 501 at the end of the chain; what is broken and can be answered gets 400. */
    CHECK(ask(fd, text, sizeof text, "MESSAGE", "alice", "m1", 1, NULL, NULL) == 501);
    CHECK(ask(fd, text, sizeof text, "REGISTER", "alice", "x1", 1, "<sip:unclosed@b", NULL) == 400);
    CHECK(ask(fd, text, sizeof text, "REGISTER", "alice", "x1", 2, "<sip:a@b>;expires=-5", NULL) == 400);
    CHECK(ask(fd, text, sizeof text, "REGISTER", "alice", "x1", 3, NULL, "Max-Forwards: 12345\r\n") == 400);

    /* Datagrams of garbage are dropped, counted, and the next request is served. stream_flow.c has a connection's. */
    partyline_stats before = {.size = sizeof before}, after = {.size = sizeof after};
    OK(partyline_stats_get(engine, &before));
    if (!tcp) {
        const char *garbage[] = {"", "x", "\r\n\r\n", "REGISTER", "REGISTER sip:x SIP/2.0\r\n\r\n",
                                 "SIP/2.0 200 OK\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                                 "\xff\xfe\xfd\x00\x01\x02"};
        for (size_t i = 0; i < sizeof garbage / sizeof *garbage; i++)
            client_send(fd, garbage[i], i == 7 ? 6 : strlen(garbage[i]));
        memset(text, 'A', sizeof text);
        client_send(fd, text, 65507);
    }
    CHECK(ask(fd, text, sizeof text, "REGISTER", "bob", "b1", 2, "<sip:bob@127.0.0.1:5072>", NULL) == 200);
    OK(partyline_stats_get(engine, &after));
    if (!tcp)
        CHECK(after.received >= before.received + 9 && after.dropped >= before.dropped + 6);
    CHECK(after.received > before.received);
    CHECK(after.answered > before.answered);

    /* Compact forms, folded lines, any case and order. */
    const char *odd = "REGISTER sip:example.test SIP/2.0\r\nm:\r\n <sip:carol@127.0.0.1:5073>\r\n ;expires=70\r\nI: odd\r\n"
                      "cSEQ: 7\r\n REGISTER\r\nL: 0\r\nt: <sip:carol@EXAMPLE.test>\r\nf: sip:carol@example.test;tag=1\r\n"
                      "v: SIP/2.0/UDP 127.0.0.1:9;rport\r\n ;branch=z9hG4bKodd\r\n\r\n";
    client_send(fd, odd, strlen(odd));
    CHECK(client_receive(fd, text, sizeof text, 5000) > 0 && status_of(text) == 200);
    CHECK(strstr(text, "expires=70") && lookup(registrar, "sip:carol@example.test") == 1);

    /* Refreshes cost no SELECT. */
    OK(partyline_stats_get(engine, &before));
    for (unsigned i = 0; i < 50; i++)
        CHECK(ask(fd, text, sizeof text, "REGISTER", "bob", "b1", 10 + i, "<sip:bob@127.0.0.1:5072>", NULL) == 200);
    OK(partyline_stats_get(engine, &after));
    CHECK(after.selects == before.selects);
    CHECK(after.answered >= before.answered + 50);
    /* Counted when the system call has returned, which the peer may outrun. */
    CHECK(after.sent >= before.sent + 40);

    CHECK(partyline_engine_stop(engine, 2000) == 0);
    OK(partyline_engine_free(engine));
    CHECK(partyline_registrar_flush(registrar, 5000) == 0);
    OK(partyline_registrar_free(registrar));
    close(fd);

    /* Another registrar on the same store knows them. */
    if (strcmp(url, "memory:") != 0) {
        registrar = opened(url, mode);
        CHECK(lookup(registrar, "sip:bob@example.test") == 1);
        CHECK(lookup(registrar, "sip:carol@example.test") == 1);
        CHECK(lookup(registrar, "sip:alice@example.test") == 0);
        OK(partyline_registrar_free(registrar));
    }
    if (tcp)
        bound_to_connections();
    printf("registrar_flow %s %s %s: ok\n", url, mode, tcp ? "tcp" : "udp");
    return 0;
}
