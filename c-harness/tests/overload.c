/* A serial plugin that blocks: what waits is bounded, who is refused and how, and what the statistics say meanwhile. */
#include "check.h"

static partyline_engine *engine;
static atomic_int inside, release_all;
static atomic_int order[64], handled;

static int block(void *user, partyline_message *message)
{
    const char *bytes;
    size_t length;
    (void)user;
    atomic_fetch_add(&inside, 1);
    CHECK(reaches(&release_all, 1));
    OK(partyline_message_header(message, "CSeq", 0, &bytes, &length));
    int at = atomic_fetch_add(&handled, 1);
    CHECK(at < 64);
    atomic_store(&order[at], atoi(bytes));
    if (partyline_message_method(message, &bytes, &length) == PARTYLINE_OK && !(length == 3 && memcmp(bytes, "ACK", 3) == 0))
        OK(partyline_reply(message, 200, NULL, NULL, NULL, 0));
    return PARTYLINE_DONE;
}

static void send_one(int fd, const char *method, unsigned cseq, int in_dialog)
{
    char text[2048];
    int length = snprintf(text, sizeof text,
                          "%s sip:example.test SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:9;branch=z9hG4bK%u;rport\r\n"
                          "From: <sip:a@example.test>;tag=f\r\nTo: <sip:a@example.test>%s\r\nCall-ID: c%u\r\nCSeq: %u %s\r\n"
                          "Max-Forwards: 70\r\nContent-Length: 0\r\n\r\n",
                          method, cseq, in_dialog ? ";tag=t" : "", cseq, cseq, method);
    client_send(fd, text, (size_t)length);
}

static uint64_t queued(void)
{
    partyline_plugin_stats stats = {.size = sizeof stats};
    OK(partyline_plugin_stats_get(engine, "block", &stats));
    return stats.queued;
}

static void wait_queued(uint64_t wanted)
{
    for (int i = 0; i < 10000 && queued() != wanted; i++)
        usleep(1000);
    CHECK(queued() == wanted);
}

int main(void)
{
    uint16_t port;
    char text[65536];
    partyline_plugin plugin = {.size = sizeof plugin, .version = 1, .policy = PARTYLINE_SERIAL, .phase = PARTYLINE_NORMAL,
                               .name = "block", .callback = block, .deadline_ms = 20};
    OK(partyline_engine_new(&engine));
    OK(partyline_engine_set(engine, "threads.min", "2"));
    OK(partyline_engine_set(engine, "threads.max", "4"));
    OK(partyline_engine_set(engine, "overload.high", "10"));
    OK(partyline_engine_set(engine, "overload.low", "2"));
    OK(partyline_engine_set(engine, "strand_limit", "14"));
    OK(partyline_engine_set(engine, "retry_after", "7"));
    OK(partyline_engine_set(engine, "log", "off"));
    OK(partyline_plugin_register(engine, &plugin));
    OK(partyline_engine_listen(engine, "udp:127.0.0.1:0", &port));
    OK(partyline_engine_start(engine));
    int fd = client_socket(port);

    /* One runs, ten wait; each is seen to wait before the next is sent. */
    send_one(fd, "OPTIONS", 1, 0);
    CHECK(reaches(&inside, 1));
    for (unsigned i = 2; i <= 11; i++) {
        send_one(fd, "OPTIONS", i, 0);
        wait_queued(i - 1);
    }

    /* Named while it still runs. */
    partyline_plugin_stats stats = {.size = sizeof stats};
    for (int i = 0; i < 10000 && stats.overdue == 0; i++) {
        OK(partyline_plugin_stats_get(engine, "block", &stats));
        usleep(1000);
    }
    CHECK(stats.overdue == 1 && stats.running == 1 && stats.longest_ns == 0);

    /* Above the mark what is new is refused at once; what belongs to something is taken, and an ACK is never answered. */
    send_one(fd, "OPTIONS", 12, 0);
    CHECK(client_receive(fd, text, sizeof text, 10000) > 0 && status_of(text) == 503);
    CHECK(strstr(text, "\r\nRetry-After: 7\r\n") != NULL && strstr(text, "\r\nCSeq: 12 OPTIONS") != NULL);
    send_one(fd, "BYE", 13, 1);
    wait_queued(11);
    for (unsigned i = 14; i <= 16; i++) {
        send_one(fd, "ACK", i, 1);
        wait_queued(i - 2);
    }
    /* At the strand's bound a request gets 503 and an ACK is dropped and counted. */
    partyline_stats figures = {.size = sizeof figures};
    send_one(fd, "ACK", 17, 1);
    for (int i = 0; i < 10000 && figures.dropped == 0; i++) {
        OK(partyline_stats_get(engine, &figures));
        usleep(1000);
    }
    CHECK(figures.dropped == 1 && figures.overload == 1);
    send_one(fd, "BYE", 18, 1);
    CHECK(client_receive(fd, text, sizeof text, 10000) > 0 && status_of(text) == 503 && strstr(text, "CSeq: 18 BYE") != NULL);
    OK(partyline_engine_metrics(engine, text, sizeof text, NULL));
    CHECK(strstr(text, "\npartyline_overload 1\n") != NULL);
    CHECK(strstr(text, "partyline_dropped_total{reason=\"overload\"} 1") != NULL);
    CHECK(strstr(text, "partyline_calls_overdue_total{plugin=\"block\"} 1") != NULL);

    /* Released: the one that ran, then what is urgent, then the others, each in its order of arrival. */
    atomic_store(&release_all, 1);
    for (int i = 0; i < 12; i++)
        CHECK(client_receive(fd, text, sizeof text, 10000) > 0 && status_of(text) == 200);
    CHECK(reaches(&handled, 15));
    static const int wanted[15] = {1, 13, 14, 15, 16, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
    for (int i = 0; i < 15; i++)
        CHECK(atomic_load(&order[i]) == wanted[i]);
    /* The overload is over. */
    wait_queued(0);
    CHECK(ask(fd, text, sizeof text, "OPTIONS", "a", "after", 20, NULL, NULL) == 200);
    OK(partyline_plugin_stats_get(engine, "block", &stats));
    CHECK(stats.calls == 16 && stats.refused == 2 && stats.longest_ns >= 20000000 && stats.wait_p99_ns > 0);
    CHECK(partyline_engine_stop(engine, 2000) == 0);
    OK(partyline_engine_free(engine));
    close(fd);
    puts("overload: ok");
    return 0;
}
