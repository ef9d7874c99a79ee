/* Posted events, timers, sending by hand, stopping from a callback, and an engine in a forked child. */
#include "check.h"
#ifndef _WIN32
#include <sys/wait.h>
#endif

static partyline_engine *engine;
static atomic_int posted, fired, ticks, once;
static atomic_int order_broken, last = -1;

static void post_in_order(void *user)
{
    int number = (int)(intptr_t)user;
    if (atomic_exchange(&last, number) != number - 1)
        atomic_store(&order_broken, 1);
    atomic_fetch_add(&posted, 1);
}

static void count(void *user)
{
    atomic_fetch_add((atomic_int *)user, 1);
}

static void tick(void *user)
{
    (void)user;
    atomic_fetch_add(&ticks, 1);
}

static void again(void *user)
{
    count(&once);
    OK(partyline_post(engine, PARTYLINE_GROUP_WORKER, count, user));
}

static void stop(void *user)
{
    (void)user;
    CHECK_CODE(partyline_engine_stop(engine, 1000), 0);
}

int main(void)
{
    uint16_t port;
    uint64_t timer = 0, periodic = 0;
    OK(partyline_engine_new(&engine));
    OK(partyline_engine_set(engine, "threads.min", "1"));
    OK(partyline_engine_set(engine, "threads.max", "4"));
    OK(partyline_engine_set(engine, "worker.threads", "1"));
    OK(partyline_engine_set(engine, "log", "error"));
    OK(partyline_engine_listen(engine, "udp:127.0.0.1:0", &port));
    OK(partyline_engine_start(engine));

    /* With one thread in the group the order of posting is the order of running. */
    for (intptr_t i = 0; i < 1000; i++)
        OK(partyline_post(engine, PARTYLINE_GROUP_WORKER, post_in_order, (void *)i));
    CHECK(reaches(&posted, 1000) && !atomic_load(&order_broken));
    OK(partyline_post(engine, PARTYLINE_GROUP_IO, again, &fired));
    CHECK(reaches(&fired, 1) && atomic_load(&once) == 1);

    /* Timers: once, periodic, cancelled in time. */
    OK(partyline_timer_start(engine, PARTYLINE_GROUP_IO, 20, 0, count, &fired, NULL));
    OK(partyline_timer_start(engine, PARTYLINE_GROUP_WORKER, 1, 5, tick, NULL, &periodic));
    OK(partyline_timer_start(engine, PARTYLINE_GROUP_IO, 3600000, 0, count, &once, &timer));
    CHECK(timer != 0 && periodic != 0 && timer != periodic);
    CHECK(reaches(&fired, 2));
    CHECK(reaches(&ticks, 5));
    OK(partyline_timer_cancel(engine, timer));
    CHECK_CODE(partyline_timer_cancel(engine, timer), PARTYLINE_ENOTFOUND);
    OK(partyline_timer_cancel(engine, periodic));
    /* One call may have been on its way; after it nothing comes any more. */
    OK(partyline_timer_start(engine, PARTYLINE_GROUP_WORKER, 30, 0, count, &fired, NULL));
    CHECK(reaches(&fired, 3));
    int after = atomic_load(&ticks);
    OK(partyline_timer_start(engine, PARTYLINE_GROUP_WORKER, 50, 0, count, &fired, NULL));
    CHECK(reaches(&fired, 4));
    CHECK(atomic_load(&ticks) == after && atomic_load(&once) == 1);

    /* A million at once, on the group for what has time; each is cancelled before it fires, and then it is gone. */
    enum { MANY = 1000000 };
    uint64_t *many = malloc(MANY * sizeof *many);
    CHECK(many != NULL);
    for (int i = 0; i < MANY; i++)
        OK(partyline_timer_start(engine, PARTYLINE_GROUP_LOG, 3600000u + (unsigned)i, 0, count, &once, &many[i]));
    char figures[65536];
    OK(partyline_engine_metrics(engine, figures, sizeof figures, NULL));
    CHECK(strstr(figures, "\npartyline_timers 1000000\n") != NULL);
    for (int i = 0; i < MANY; i++)
        OK(partyline_timer_cancel(engine, many[i]));
    CHECK_CODE(partyline_timer_cancel(engine, many[0]), PARTYLINE_ENOTFOUND);
    free(many);
    OK(partyline_post(engine, PARTYLINE_GROUP_LOG, count, &fired));
    CHECK(reaches(&fired, 5) && atomic_load(&once) == 1);

    /* Bytes to a peer of the program's choice, from the listener's port. */
    int peer = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, from;
    socklen_t size = sizeof here;
    char address[64], text[64];
    CHECK(peer >= 0 && bind(peer, (struct sockaddr *)&here, sizeof here) == 0);
    CHECK(getsockname(peer, (struct sockaddr *)&here, &size) == 0);
    snprintf(address, sizeof address, "udp:127.0.0.1:%u", ntohs(here.sin_port));
    OK(partyline_send(engine, address, "hello", 5));
    struct pollfd wait = {.fd = peer, .events = POLLIN};
    CHECK(poll(&wait, 1, 5000) == 1);
    size = sizeof from;
    CHECK(recvfrom(peer, text, sizeof text, 0, (struct sockaddr *)&from, &size) == 5);
    CHECK(memcmp(text, "hello", 5) == 0 && ntohs(from.sin_port) == port);
    close(peer);

#ifndef _WIN32
    /* A forked child cannot use the engine, and can end. */
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK_CODE(partyline_post(engine, PARTYLINE_GROUP_IO, count, &fired), PARTYLINE_ESTATE);
        CHECK_CODE(partyline_engine_stop(engine, 10), PARTYLINE_ESTATE);
        CHECK(strstr(partyline_last_error(), "fork") != NULL);
        OK(partyline_engine_free(engine));
        partyline_engine *own;
        OK(partyline_engine_new(&own));
        OK(partyline_engine_free(own));
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
#endif

    /* run() returns when a callback asks for the stop. */
    OK(partyline_post(engine, PARTYLINE_GROUP_IO, stop, NULL));
    OK(partyline_engine_run(engine));
    CHECK_CODE(partyline_post(engine, PARTYLINE_GROUP_IO, count, &fired), PARTYLINE_ESTATE);
    OK(partyline_engine_free(engine));
    puts("events: ok");
    return 0;
}
