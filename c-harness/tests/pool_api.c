/* The memory functions by their exported names: sizes, NULL, overflow, foreign blocks, figures, limit. */
#include "check.h"

static partyline_pool_stats figures(void)
{
    partyline_pool_stats stats = {.size = sizeof stats};
    OK(partyline_pool_stats_get(&stats));
    CHECK(stats.version == 1 && stats.allocated == stats.freed + stats.live);
    return stats;
}

/* Allocates, fills, grows, checks and frees through one family of functions. */
static void life(void *(*get)(size_t), void *(*resize)(void *, size_t), void (*give)(void *))
{
    for (size_t size = 0; size <= 300000; size = size * 3 / 2 + 1) {
        unsigned char *block = get(size);
        CHECK(block != NULL);
        CHECK((uintptr_t)block % (size > 8 ? 16 : 8) == 0);
        CHECK(partyline_usable_size(block) >= size);
        memset(block, (int)(size & 0xff), size);
        block = resize(block, size * 2 + 10);
        CHECK(block != NULL && partyline_usable_size(block) >= size * 2 + 10);
        for (size_t i = 0; i < size; i++)
            CHECK(block[i] == (size & 0xff));
        give(block);
    }
    give(NULL);
    void *fresh = resize(NULL, 100);
    CHECK(fresh != NULL);
    give(fresh);
    /* A block of libc is passed on, and one of ours may be freed by libc's name. */
    give(malloc(100));
    void *grown = resize(malloc(100), 5000);
    CHECK(grown != NULL);
    give(grown);
#ifndef _WIN32 /* a dll takes no other dll's names */
    free(get(100));
#endif
}

static void *get_at(size_t size)
{
    return (_osip_malloc)(size, (char *)"pool_api.c", 1);
}

static void *resize_at(void *block, size_t size)
{
    return (_osip_realloc)(block, size, (char *)"pool_api.c", 2);
}

int main(void)
{
    partyline_pool_stats before = figures();
    life(partyline_malloc, partyline_realloc, partyline_free);
    life(osip_malloc, osip_realloc, osip_free);
    life(get_at, resize_at, _osip_free);
    partyline_pool_stats after = figures();
    CHECK(after.allocated > before.allocated + 50 && after.live == before.live);

    unsigned char *zeroed = partyline_calloc(100, 7);
    CHECK(zeroed != NULL);
    for (int i = 0; i < 700; i++)
        CHECK(zeroed[i] == 0);
    partyline_free(zeroed);
    CHECK(partyline_calloc(SIZE_MAX / 2, 3) == NULL);
    CHECK(partyline_malloc(SIZE_MAX) == NULL);
    CHECK(partyline_usable_size(NULL) == 0);

    partyline_pool_stats small = {.size = 2};
    CHECK_CODE(partyline_pool_stats_get(NULL), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_pool_stats_get(&small), PARTYLINE_EINVAL);
    size_t needed = 0;
    CHECK_CODE(partyline_pool_stats_text(NULL, 0, &needed), PARTYLINE_ETOOSMALL);
    char *text = partyline_malloc(needed + 4096);
    OK(partyline_pool_stats_text(text, needed + 4096, NULL));
    CHECK(strlen(text) > 20);
    partyline_free(text);
    CHECK_CODE(partyline_pool_stats_json(NULL, 0, &needed), PARTYLINE_ETOOSMALL);
    text = partyline_malloc(needed + 4096);
    OK(partyline_pool_stats_json(text, needed + 4096, NULL));
    CHECK(text[0] == '{');
    partyline_free(text);
    CHECK(partyline_pool_trim() >= 0);

    /* Past the limit NULL, below it memory again, and nothing is lost by it. */
    OK(partyline_pool_set_limit(figures().used_bytes + 4 * 1024 * 1024));
    void *blocks[1000];
    int got = 0;
    while (got < 1000 && (blocks[got] = partyline_malloc(100000)) != NULL)
        got++;
    CHECK(got > 0 && got < 1000);
    while (got > 0)
        partyline_free(blocks[--got]);
    void *again = partyline_malloc(100000);
    CHECK(again != NULL);
    partyline_free(again);
    OK(partyline_pool_set_limit(0));
    puts("pool_api: ok");
    return 0;
}
