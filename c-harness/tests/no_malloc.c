/* In steady state a REGISTER costs no call of libc's malloc, in the program or in the library: they are counted here.
 *   no_malloc URL MODE [tcp]        as registrar_flow */
#include "check.h"

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *block, size_t size);
static atomic_long calls;

void *malloc(size_t size)
{
    atomic_fetch_add(&calls, 1);
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    atomic_fetch_add(&calls, 1);
    return __libc_calloc(count, size);
}

static long rounds(int fd, unsigned first, unsigned count)
{
    char text[4096], call_id[32], user[32];
    long before = atomic_load(&calls);
    for (unsigned i = 0; i < count; i++) {
        snprintf(user, sizeof user, "user%u", i % 50);
        snprintf(call_id, sizeof call_id, "call%u", i % 50);
        CHECK(ask(fd, text, sizeof text, "REGISTER", user, call_id, first + i, "<sip:u@127.0.0.1:5070>", NULL) == 200);
    }
    return atomic_load(&calls) - before;
}

int main(int argc, char **argv)
{
    CHECK(argc == 3 || argc == 4);
    int tcp = argc == 4;
    partyline_registrar *registrar;
    partyline_engine *engine;
    uint16_t port;
    OK(partyline_registrar_new(&registrar));
    OK(partyline_registrar_set(registrar, "mode", argv[2]));
    OK(partyline_registrar_open(registrar, argv[1]));
    OK(partyline_engine_new(&engine));
    OK(partyline_engine_set(engine, "log", "off"));
    OK(partyline_engine_attach(engine, registrar));
    OK(partyline_engine_listen(engine, tcp ? "tcp:127.0.0.1:0" : "udp:127.0.0.1:0", &port));
    OK(partyline_engine_start(engine));
    int fd = client_connect(tcp ? SOCK_STREAM : SOCK_DGRAM, port);
    rounds(fd, 1, 500);
    /* The counter counts: what the library allocates at start it allocates somewhere. */
    void *volatile probe = malloc(10);
    CHECK(atomic_load(&calls) > 0);
    free(probe);
    long seen = rounds(fd, 1000, 2000);
    partyline_pool_stats pool = {.size = sizeof pool};
    OK(partyline_pool_stats_get(&pool));
    printf("no_malloc %s %s: %ld calls of malloc in 2000 REGISTERs\n", argv[2], tcp ? "tcp" : "udp", seen);
    CHECK(seen == 0);
    CHECK(partyline_engine_stop(engine, 1000) == 0);
    OK(partyline_engine_free(engine));
    OK(partyline_registrar_free(registrar));
    printf("no_malloc: ok\n");
    return 0;
}
