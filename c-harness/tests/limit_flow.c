/* Every partyline_* call of a server's life while the pool refuses memory: in children, each with a limit some more
 * steps above what is in use at its start; with a step as argument, that one alone and in this process. What asks for memory by name gets NULL and ENOMEM; the engine and the registrar,
 * whose own memory the limit does not bind, go on answering; nothing crashes. */
#include "check.h"
#ifndef _WIN32
#include <sys/wait.h>
#endif

#define STEPS 8

static int answer(void *user, partyline_message *message)
{
    partyline_message *later;
    (void)user;
    /* A copy is kept, which takes memory. */
    if (partyline_message_defer(message, &later) != PARTYLINE_OK)
        return PARTYLINE_NEXT;
    OK(partyline_reply(later, 200, "Kept", "X-Limit: yes\r\n", "body", 4));
    return PARTYLINE_PENDING;
}

static void count(void *user)
{
    atomic_fetch_add((atomic_int *)user, 1);
}

static int no_binding(void *user, const partyline_binding *binding)
{
    (void)user;
    (void)binding;
    return 0;
}

static void life(void)
{
    partyline_engine *engine;
    partyline_registrar *registrar;
    partyline_plugin plugin = {.size = sizeof plugin, .version = 1, .name = "keeper", .methods = "OPTIONS",
                               .policy = PARTYLINE_PARALLEL, .callback = answer};
    partyline_stats stats = {.size = sizeof stats};
    atomic_int posted = 0;
    uint16_t port;
    uint64_t timer;
    char text[8192];
    OK(partyline_registrar_new(&registrar));
    OK(partyline_registrar_set(registrar, "mode", "memory"));
    OK(partyline_registrar_open(registrar, "memory:"));
    OK(partyline_engine_new(&engine));
    OK(partyline_plugin_register(engine, &plugin));
    OK(partyline_engine_attach(engine, registrar));
    OK(partyline_engine_listen(engine, "udp:127.0.0.1:0", &port));
    OK(partyline_engine_start(engine));
    int fd = client_socket(port);
    for (unsigned i = 0; i < 12; i++) {
        char user[16], contact[64];
        snprintf(user, sizeof user, "u%u", i);
        snprintf(contact, sizeof contact, "<sip:%s@127.0.0.1:5070>", user);
        CHECK(ask(fd, text, sizeof text, "REGISTER", user, user, 1, contact, NULL) == 200);
        int status = ask(fd, text, sizeof text, "OPTIONS", user, user, 2, NULL, NULL);
        CHECK(status == 200 || status == 501);
        CHECK(partyline_registrar_lookup(registrar, "sip:u0@example.test", no_binding, NULL) == 1);
    }
    OK(partyline_post(engine, PARTYLINE_GROUP_WORKER, count, &posted));
    OK(partyline_timer_start(engine, PARTYLINE_GROUP_IO, 1, 0, count, &posted, &timer));
    CHECK(reaches(&posted, 2));
    OK(partyline_stats_get(engine, &stats));
    CHECK(stats.answered >= 24);
    size_t needed = 0;
    CHECK_CODE(partyline_engine_metrics(engine, NULL, 0, &needed), PARTYLINE_ETOOSMALL);
    CHECK(partyline_engine_stop(engine, 2000) == 0);
    OK(partyline_engine_free(engine));
    OK(partyline_registrar_free(registrar));
    close(fd);
}

static void one(int step)
{
    partyline_pool_stats stats = {.size = sizeof stats};
    void *block = partyline_malloc(100);
    CHECK(block != NULL);
    OK(partyline_pool_stats_get(&stats));
    OK(partyline_pool_set_limit(stats.used_bytes + (size_t)step * 65536));
    life();
    errno = 0;
    CHECK(partyline_malloc((STEPS + 1) << 20) == NULL && errno == ENOMEM);
    CHECK(partyline_calloc(1, (STEPS + 1) << 20) == NULL);
    CHECK(osip_malloc((STEPS + 1) << 20) == NULL);
    /* The block is as it was. */
    CHECK(partyline_realloc(block, (STEPS + 1) << 20) == NULL);
    memset(block, 1, 100);
    partyline_free(block);
    OK(partyline_pool_set_limit(0));
    block = partyline_malloc((STEPS + 1) << 20);
    CHECK(block != NULL);
    partyline_free(block);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        one(atoi(argv[1]));
#ifndef _WIN32
    for (int step = 0; argc == 1 && step < STEPS; step++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            alarm(60);
            one(step);
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
            fprintf(stderr, "limit_flow: step %d ended with 0x%x\n", step, status);
            return 1;
        }
    }
#endif
    puts("limit_flow: ok");
    return 0;
}
