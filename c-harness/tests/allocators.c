/* The pool as memory of a library that is given its allocators by three pointers, as osip2 is by osip_set_allocators().
 * -DWITH_OSIP: osip2 itself, which has no such function on Windows; there it is linked statically behind our names
 * (docs/windows.md). Without, a table of the same types stands for it. */
#include "check.h"

#ifdef WITH_OSIP
#include <sys/time.h>

#include <osipparser2/osip_parser.h>

static void give(void)
{
#ifndef _WIN32
    osip_set_allocators(partyline_malloc, partyline_realloc, partyline_free);
#endif
    CHECK(parser_init() == 0);
}

/* Parses, copies and writes a message, and frees none of them. */
static void make(void *into[2])
{
    static const char text[] = "OPTIONS sip:bob@example.test SIP/2.0\r\n"
                               "Via: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK1\r\n"
                               "From: <sip:alice@example.test>;tag=1\r\nTo: <sip:bob@example.test>\r\n"
                               "Call-ID: 1@example.test\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n";
    osip_message_t *message;
    char *written = NULL;
    size_t length = 0;
    CHECK(osip_message_init(&message) == 0);
    CHECK(osip_message_parse(message, text, sizeof text - 1) == 0);
    CHECK(osip_message_to_str(message, &written, &length) == 0 && length == sizeof text - 1);
    CHECK(partyline_usable_size(written) >= length);
    into[0] = message;
    into[1] = written;
}

static void drop(void *made[2])
{
    osip_message_free(made[0]);
    osip_free(made[1]);
}
#else
typedef void *malloc_func(size_t size);
typedef void *realloc_func(void *block, size_t size);
typedef void free_func(void *block);

static malloc_func *volatile get = malloc;
static realloc_func *volatile resize = realloc;
static free_func *volatile release = free;

static void give(void)
{
    get = partyline_malloc;
    resize = partyline_realloc;
    release = partyline_free;
}

/* A string that grows piece by piece, and a list of short ones. */
static void make(void *into[2])
{
    size_t length = 0;
    char *text = get(1);
    void **list = NULL;
    CHECK(text != NULL);
    for (int i = 0; i < 300; i++) {
        char piece[32];
        int more = snprintf(piece, sizeof piece, "Header-%d: value\r\n", i);
        CHECK((text = resize(text, length + (size_t)more + 1)) != NULL);
        memcpy(text + length, piece, (size_t)more + 1);
        length += (size_t)more;
        void **node = get(sizeof *node + (size_t)more);
        CHECK(node != NULL);
        memcpy(node + 1, piece, (size_t)more);
        *node = list;
        list = node;
    }
    CHECK(strlen(text) == length && partyline_usable_size(text) > length);
    into[0] = list;
    into[1] = text;
}

static void drop(void *made[2])
{
    for (void **node = made[0]; node != NULL;) {
        void **next = *node;
        release(node);
        node = next;
    }
    release(made[1]);
}
#endif

static void *work(void *into)
{
    make(into);
    return NULL;
}

static partyline_pool_stats figures(void)
{
    partyline_pool_stats stats = {.size = sizeof stats};
    OK(partyline_pool_stats_get(&stats));
    return stats;
}

int main(void)
{
    enum { THREADS = 4, ROUNDS = 50 };
    void *made[THREADS][2];
    pthread_t threads[THREADS];
    give();
    partyline_pool_stats before = figures();
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < THREADS; i++)
            CHECK(pthread_create(&threads[i], NULL, work, made[i]) == 0);
        for (int i = 0; i < THREADS; i++)
            CHECK(pthread_join(threads[i], NULL) == 0);
        /* By another thread than made them, all of which have ended. */
        for (int i = 0; i < THREADS; i++)
            drop(made[i]);
    }
    partyline_pool_stats after = figures();
    CHECK(after.allocated > before.allocated + THREADS * ROUNDS * 10);
    CHECK(after.live == before.live && after.cross_thread_frees > before.cross_thread_frees);
    printf("allocators: ok, %llu blocks\n", (unsigned long long)(after.allocated - before.allocated));
    return 0;
}
