/* The pool for a long time under everything at once: many threads, random sizes and lifetimes, blocks freed by other
 * threads than allocated them, threads that come and go, realloc, calloc, trim, fork now and then. The content of every
 * block is checked, memory must not grow, the figures must add up, and at the end everything must be back.
 *   soak_pool [SECONDS [THREADS [SEED]]]
 * SOAK_PLANT=content|leak|figures makes an error on purpose that has to be found: scripts/soak-pool.sh looks. */
#include "check.h"
#include <sys/wait.h>

#ifdef SOAK_SANITIZED
/* The archive exports no free; ThreadSanitizer knows no threads after a fork and keeps memory of its own. */
#define free partyline_free
#endif

#define SLOTS 1024
#define MAIL 512

struct block {
    unsigned char *at;
    uint32_t size, seed;
};

static atomic_int stop, plant_content, plant_leak;
static _Atomic uint64_t operations, threads_ended, forks;
static struct block *_Atomic mail[MAIL];

static uint64_t draw(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state * 0x2545f4914f6cdd1dull >> 16;
}

/* As osip2 asks: nearly all small, a few large. */
static uint32_t size_of(uint64_t *state)
{
    uint64_t at = draw(state) % 1000;
    if (at < 900)
        return (uint32_t)(draw(state) % 129);
    if (at < 985)
        return (uint32_t)(draw(state) % 4096);
    if (at < 999)
        return (uint32_t)(draw(state) % 65536);
    return (uint32_t)(draw(state) % (1 << 20));
}

static void fill(const struct block *b, uint32_t from)
{
    for (uint32_t i = from; i < b->size; i++)
        b->at[i] = (unsigned char)(b->seed + i * 7);
}

static void check_content(const struct block *b, uint32_t length)
{
    for (uint32_t i = 0; i < length; i++)
        if (b->at[i] != (unsigned char)(b->seed + i * 7)) {
            fprintf(stderr, "soak_pool: byte %u of a block of %u is 0x%02x\n", i, b->size, b->at[i]);
            exit(1);
        }
}

static void put(struct block *b, uint64_t *state)
{
    b->size = size_of(state);
    b->seed = (uint32_t)draw(state);
    switch (draw(state) % 3) {
    case 0:
        b->at = partyline_calloc(1, b->size);
        CHECK(b->at != NULL);
        for (uint32_t i = 0; i < b->size; i++)
            CHECK(b->at[i] == 0);
        break;
    case 1:
        b->at = osip_malloc(b->size);
        break;
    default:
        b->at = partyline_malloc(b->size);
    }
    CHECK(b->at != NULL && (uintptr_t)b->at % (b->size > 8 ? 16 : 8) == 0);
    CHECK(partyline_usable_size(b->at) >= b->size);
    fill(b, 0);
}

static void drop(struct block *b, uint64_t *state)
{
    check_content(b, b->size);
    if (b->size > 0 && atomic_load(&plant_content) > 0 && atomic_fetch_sub(&plant_content, 1) == 1) {
        b->at[0] ^= 1;
        check_content(b, 1);
    }
    if (atomic_load(&plant_leak) == 0 || draw(state) % 50 != 0) {
        switch (draw(state) % 3) {
        case 0:
            free(b->at);
            break;
        case 1:
            osip_free(b->at);
            break;
        default:
            partyline_free(b->at);
        }
    }
    b->at = NULL;
}

static void resize(struct block *b, uint64_t *state)
{
    uint32_t size = size_of(state) + 1, kept = size < b->size ? size : b->size;
    unsigned char *moved = partyline_realloc(b->at, size);
    CHECK(moved != NULL);
    b->at = moved;
    b->size = size;
    check_content(b, kept);
    fill(b, kept);
}

/* Gives a block to whoever comes by, and takes what lies there. */
static void exchange(struct block *b, uint64_t *state)
{
    struct block *letter = NULL, *old;
    if (b->at != NULL) {
        letter = partyline_malloc(sizeof *letter);
        CHECK(letter != NULL);
        *letter = *b;
        b->at = NULL;
    }
    old = atomic_exchange(&mail[draw(state) % MAIL], letter);
    if (old != NULL) {
        *b = *old;
        free(old);
    }
}

static void work(uint64_t *state, uint64_t turns, struct block *blocks, uint64_t slots)
{
    for (uint64_t n = 0; n < turns; n++) {
        struct block *b = &blocks[draw(state) % slots];
        switch (draw(state) % 8) {
        case 0:
        case 1:
            exchange(b, state);
            break;
        case 2:
            if (b->at != NULL)
                resize(b, state);
            break;
        default:
            if (b->at != NULL)
                drop(b, state);
            else
                put(b, state);
        }
        if (draw(state) % 200000 == 0)
            CHECK(partyline_pool_trim() >= 0);
    }
    atomic_fetch_add(&operations, turns);
}

/* One life of a thread: most of its blocks it frees itself, the rest goes to others. */
static void *live(void *arg)
{
    uint64_t state = (uint64_t)(uintptr_t)arg * 0x9e3779b97f4a7c15ull | 1;
    struct block *blocks = partyline_calloc(SLOTS, sizeof *blocks);
    CHECK(blocks != NULL);
    uint64_t turns = 1000 + draw(&state) % 100000;
    while (turns > 0 && !atomic_load(&stop)) {
        uint64_t now = turns < 1000 ? turns : 1000;
        work(&state, now, blocks, SLOTS);
        turns -= now;
    }
    for (int i = 0; i < SLOTS; i++) {
        if (blocks[i].at != NULL && draw(&state) % 4 == 0)
            exchange(&blocks[i], &state);
        if (blocks[i].at != NULL)
            drop(&blocks[i], &state);
    }
    partyline_free(blocks);
    atomic_fetch_add(&threads_ended, 1);
    return NULL;
}

/* The child has blocks of threads that it does not have: it frees them, works, and starts threads of its own. */
static void fork_once(uint64_t seed)
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        uint64_t state = seed | 1;
        struct block blocks[64] = {0};
        pthread_t thread;
        alarm(60);
        for (int i = 0; i < MAIL; i++) {
            struct block *letter = atomic_exchange(&mail[i], NULL);
            if (letter != NULL) {
                drop(letter, &state);
                partyline_free(letter);
            }
        }
        work(&state, 5000, blocks, 64);
        CHECK(pthread_create(&thread, NULL, live, (void *)(uintptr_t)(seed % 1000 + 7)) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
        CHECK(partyline_pool_trim() >= 0);
        _exit(0);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        fprintf(stderr, "soak_pool: a forked child ended with status 0x%x\n", status);
        exit(1);
    }
    atomic_fetch_add(&forks, 1);
}

static double resident_mb(void)
{
    long pages = 0, all = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file != NULL && fscanf(file, "%ld %ld", &all, &pages) == 2);
    fclose(file);
    return (double)pages * (double)sysconf(_SC_PAGESIZE) / (1 << 20);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static partyline_pool_stats figures(void)
{
    partyline_pool_stats stats = {.size = sizeof stats};
    OK(partyline_pool_stats_get(&stats));
    CHECK(stats.allocated == stats.freed + stats.live);
    return stats;
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? atof(argv[1]) : 600;
    int threads = argc > 2 ? atoi(argv[2]) : 8;
    uint64_t seed = argc > 3 ? strtoull(argv[3], NULL, 10) : 20;
    const char *plant = getenv("SOAK_PLANT");
    CHECK(seconds > 0 && threads > 0 && threads <= 256);
    atomic_store(&plant_content, plant && strcmp(plant, "content") == 0 ? 100000 : 0);
    atomic_store(&plant_leak, plant && strcmp(plant, "leak") == 0);

    /* Once round, so that what is only made once is there. */
    pthread_t running[256], first;
    CHECK(pthread_create(&first, NULL, live, (void *)(uintptr_t)(seed + 1)) == 0);
    CHECK(pthread_join(first, NULL) == 0);
    for (int i = 0; i < MAIL; i++) {
        struct block *letter = atomic_exchange(&mail[i], NULL);
        if (letter != NULL) {
            partyline_free(letter->at);
            partyline_free(letter);
        }
    }
    CHECK(partyline_pool_trim() >= 0);
    partyline_pool_stats start = figures();
    double rss_start = resident_mb(), began = now(), next_fork = began + 1;
    /* The highest resident memory of each quarter: the last must not be above the second. */
    double high[4] = {0};
    uint64_t state = seed | 1, number = seed + 2;
    for (int i = 0; i < threads; i++)
        CHECK(pthread_create(&running[i], NULL, live, (void *)(uintptr_t)number++) == 0);
    /* Oldest first: whoever has ended by then is replaced without a wait. */
    for (int turn = 0; now() < began + seconds; turn = (turn + 1) % threads) {
        struct timespec wait;
        clock_gettime(CLOCK_REALTIME, &wait);
        wait.tv_nsec += 20000000;
        wait.tv_sec += wait.tv_nsec / 1000000000;
        wait.tv_nsec %= 1000000000;
        if (pthread_timedjoin_np(running[turn], NULL, &wait) == 0)
            CHECK(pthread_create(&running[turn], NULL, live, (void *)(uintptr_t)number++) == 0);
        double t = now();
        int quarter = (int)((t - began) * 4 / seconds);
        double rss = resident_mb();
        if (quarter < 4 && rss > high[quarter])
            high[quarter] = rss;
        figures();
#ifdef SOAK_SANITIZED
        next_fork = t + 1;
#endif
        if (t >= next_fork) {
            fork_once(draw(&state));
            next_fork = now() + 1 + (double)(draw(&state) % 4);
        }
    }
    atomic_store(&stop, 1);
    for (int i = 0; i < threads; i++)
        CHECK(pthread_join(running[i], NULL) == 0);
    for (int i = 0; i < MAIL; i++) {
        struct block *letter = atomic_exchange(&mail[i], NULL);
        if (letter != NULL) {
            drop(letter, &state);
            partyline_free(letter);
        }
    }
    CHECK(partyline_pool_trim() >= 0);
    partyline_pool_stats end = figures();
    double rss_end = resident_mb(), took = now() - began;
    if (plant && strcmp(plant, "figures") == 0)
        end.live++;

    printf("figure soakpool_seconds %.0f s\n", took);
    printf("figure soakpool_operations %.1f million\n", (double)operations / 1e6);
    printf("figure soakpool_threads %llu threads\n", (unsigned long long)threads_ended);
    printf("figure soakpool_forks %llu forks\n", (unsigned long long)forks);
    printf("figure soakpool_cross_thread_frees %.1f million\n", (double)end.cross_thread_frees / 1e6);
    printf("figure soakpool_rss_start %.1f MB\n", rss_start);
    printf("figure soakpool_rss_peak_quarter2 %.1f MB\n", high[1]);
    printf("figure soakpool_rss_peak_quarter4 %.1f MB\n", high[3]);
    printf("figure soakpool_rss_end %.1f MB\n", rss_end);
    fflush(stdout);
    int bad = 0;
#define HOLDS(condition, text)                                                                                        \
    do {                                                                                                              \
        if (!(condition)) {                                                                                           \
            fprintf(stderr, "soak_pool: %s\n", text);                                                                 \
            bad = 1;                                                                                                  \
        }                                                                                                             \
    } while (0)
    HOLDS(end.allocated == end.freed + end.live, "allocated is not freed and live");
    HOLDS(end.live == start.live, "blocks are live that nobody has");
    HOLDS(end.live_bytes == start.live_bytes, "bytes are live that nobody has");
    HOLDS(end.cross_thread_frees > 0, "no block was freed by another thread");
    HOLDS(threads_ended > (uint64_t)threads, "no thread was replaced");
#ifndef SOAK_SANITIZED
    HOLDS(rss_end < rss_start + 5, "memory did not go back");
    HOLDS(seconds < 20 || high[3] <= high[1] * 1.1 + 4, "memory grows");
#endif
    printf("soak_pool: %s\n", bad ? "FAILED" : "ok");
    return bad;
}
