/* The allocator comparison of `make bench-pool`: an ordinary osip2 program that knows nothing of any allocator. It goes
 * by osip2's own memory functions, so stock osip2 uses libc's malloc or whatever is preloaded in its place.
 *
 *   pool_bench cycle register|invite THREADS ROUNDS    parse + clone + serialise + free on each thread
 *   pool_bench cross register|invite ROUNDS            one thread parses, another frees
 *   pool_bench trace THREADS ROUNDS                    the allocations of such a cycle, without the parser
 *   pool_bench trace-cross ROUNDS                      the same, freed by another thread
 *   pool_bench mix BLOCKS STEPS                        100 bytes to 64 KiB, long-lived
 *
 * Prints "ns VALUE" (per cycle or step) and "kib VALUE": what the memory grew by since main began: in `cycle` and `trace`
 * with the blocks of HELD messages alive on each thread, in `cross` and `trace-cross` at the end of the work, in `mix` at its
 * peak. */
#define _GNU_SOURCE
#include <sys/time.h>
#include <time.h>

#include <osip2/osip.h>
#include <osipparser2/osip_parser.h>

#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char register_text[] =
    "REGISTER sip:example.test SIP/2.0\r\n"
    "Via: SIP/2.0/UDP 192.0.2.17:5060;branch=z9hG4bK-524287-1---7f2c1f9a0b3d;rport\r\n"
    "Max-Forwards: 70\r\n"
    "Contact: <sip:alice@192.0.2.17:5060;rinstance=36ba0f2d8b1c7a41;transport=UDP>;expires=3600;q=0.8\r\n"
    "To: \"Alice Example\" <sip:alice@example.test;transport=UDP>\r\n"
    "From: \"Alice Example\" <sip:alice@example.test;transport=UDP>;tag=5e9fb21c\r\n"
    "Call-ID: Zk3mQ2xX1yW8vU7tS6rP5o..@192.0.2.17\r\n"
    "CSeq: 2 REGISTER\r\n"
    "Expires: 3600\r\n"
    "Allow: INVITE, ACK, CANCEL, BYE, NOTIFY, REFER, MESSAGE, OPTIONS, INFO, SUBSCRIBE\r\n"
    "User-Agent: Example Phone 5.4.9\r\n"
    "Supported: replaces, path, outbound\r\n"
    "Authorization: Digest username=\"alice\",realm=\"example.test\",nonce=\"5c1a7c0e99f24e8aa3b0d7f2\","
    "uri=\"sip:example.test\",response=\"9e107d9d372bb6826bd81d3542a419d6\",cnonce=\"0a4f113b\",nc=00000001,qop=auth,"
    "algorithm=MD5\r\n"
    "Content-Length: 0\r\n\r\n";

static const char invite_text[] =
    "INVITE sip:bob@example.test SIP/2.0\r\n"
    "Via: SIP/2.0/UDP 192.0.2.17:5060;branch=z9hG4bK-524287-1---2d9a7b41cf;rport\r\n"
    "Via: SIP/2.0/UDP 198.51.100.4:5060;branch=z9hG4bK77ef4c2312983.1;received=203.0.113.9\r\n"
    "Max-Forwards: 69\r\n"
    "Record-Route: <sip:p1.example.test;lr>\r\n"
    "Route: <sip:p2.example.test;lr>\r\n"
    "Contact: <sip:alice@192.0.2.17:5060;transport=UDP>\r\n"
    "To: \"Bob\" <sip:bob@example.test>\r\n"
    "From: \"Alice Example\" <sip:alice@example.test>;tag=8ac1f00d\r\n"
    "Call-ID: 843817637684230@998sdasdh09\r\n"
    "CSeq: 314159 INVITE\r\n"
    "Allow: INVITE, ACK, CANCEL, BYE, NOTIFY, REFER, MESSAGE, OPTIONS, INFO\r\n"
    "Content-Type: application/sdp\r\n"
    "Supported: replaces, timer\r\n"
    "User-Agent: Example Phone 5.4.9\r\n"
    "Content-Length: 252\r\n\r\n"
    "v=0\r\no=alice 2890844526 2890844526 IN IP4 192.0.2.17\r\ns=-\r\nc=IN IP4 192.0.2.17\r\nt=0 0\r\n"
    "m=audio 49172 RTP/AVP 0 8 97 101\r\na=rtpmap:0 PCMU/8000\r\na=rtpmap:8 PCMA/8000\r\n"
    "a=rtpmap:97 iLBC/8000\r\na=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-15\r\na=sendrecv\r\n";

static void die(const char *what)
{
    fprintf(stderr, "pool_bench: %s\n", what);
    exit(1);
}

#define HELD 500

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void pin(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu % (int)sysconf(_SC_NPROCESSORS_ONLN), &set);
    sched_setaffinity(0, sizeof set, &set);
}

/* ---- osip2 ---- */

static const char *text;
static size_t text_length;
static long rounds;

static osip_message_t *parse(void)
{
    osip_message_t *m;
    if (osip_message_init(&m) != 0 || osip_message_parse(m, text, text_length) != 0)
        die("the message does not parse");
    return m;
}

static void cycle(void)
{
    osip_message_t *m = parse(), *copy;
    char *out;
    size_t length;
    if (osip_message_clone(m, &copy) != 0 || osip_message_to_str(copy, &out, &length) != 0)
        die("the message cannot be cloned or written");
    osip_free(out);
    osip_message_free(copy);
    osip_message_free(m);
}

/* Threads wait for each other, so that none measures while another still starts. */
static pthread_barrier_t barrier;

static void *cycle_thread(void *arg)
{
    pin((int)(intptr_t)arg);
    for (long i = 0; i < rounds / 10 + 1; i++)
        cycle();
    pthread_barrier_wait(&barrier);
    for (long i = 0; i < rounds; i++)
        cycle();
    pthread_barrier_wait(&barrier);
    osip_message_t *held[HELD];
    for (int i = 0; i < HELD; i++)
        held[i] = parse();
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < HELD; i++)
        osip_message_free(held[i]);
    return NULL;
}

/* Anonymous memory, walked page by page: the counters in statm may lag by 64 pages a thread. */
static long anonymous_kib(void)
{
    char line[128];
    long kib = -1;
    FILE *rollup = fopen("/proc/self/smaps_rollup", "r");
    if (rollup == NULL)
        die("no /proc/self/smaps_rollup");
    while (fgets(line, sizeof line, rollup) != NULL && sscanf(line, "Anonymous: %ld", &kib) != 1)
        ;
    fclose(rollup);
    if (kib < 0)
        die("smaps_rollup does not tell");
    return kib;
}

static long kib_before;

static void print(double took)
{
    printf("ns %.1f\nkib %ld\n", took * 1e9 / (double)rounds, anonymous_kib() - kib_before);
}

static void run_threads(int threads, void *(*body)(void *))
{
    pthread_t ids[64];
    double begun;
    pthread_barrier_init(&barrier, NULL, (unsigned)threads + 1);
    for (int i = 0; i < threads; i++)
        if (pthread_create(&ids[i], NULL, body, (void *)(intptr_t)i) != 0)
            die("no thread");
    pthread_barrier_wait(&barrier);
    begun = seconds();
    pthread_barrier_wait(&barrier);
    double took = seconds() - begun;
    pthread_barrier_wait(&barrier);
    print(took);
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < threads; i++)
        pthread_join(ids[i], NULL);
}

/* A ring of one producer and one consumer. Spins, for the time of a wake-up would hide the allocator's. */
#define RING 256
static void *_Atomic ring[RING];

static void put(long n, void *item)
{
    while (atomic_load_explicit(&ring[n % RING], memory_order_acquire) != NULL)
        sched_yield();
    atomic_store_explicit(&ring[n % RING], item, memory_order_release);
}

static void *get(long n)
{
    void *item;
    while ((item = atomic_load_explicit(&ring[n % RING], memory_order_acquire)) == NULL)
        sched_yield();
    atomic_store_explicit(&ring[n % RING], NULL, memory_order_release);
    return item;
}

static void *consume_messages(void *arg)
{
    (void)arg;
    pin(1);
    for (long i = 0; i < rounds; i++)
        osip_message_free(get(i));
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    return NULL;
}

/* The consumer has freed all and waits. */
static void consumed(pthread_t consumer, double begun)
{
    pthread_barrier_wait(&barrier);
    print(seconds() - begun);
    pthread_barrier_wait(&barrier);
    pthread_join(consumer, NULL);
}

static void cross(void)
{
    pthread_t consumer;
    pin(0);
    pthread_barrier_init(&barrier, NULL, 2);
    double begun = seconds();
    if (pthread_create(&consumer, NULL, consume_messages, NULL) != 0)
        die("no thread");
    for (long i = 0; i < rounds; i++)
        put(i, parse());
    consumed(consumer, begun);
}

/* ---- traces: osip2's own calls during one cycle, recorded here and played back ---- */

struct step {
    uint32_t size; /* 0: free */
    uint32_t slot;
};
#define STEPS 4096
static struct step steps[STEPS];
static int step_count, slot_count;
static void *recorded[STEPS];

static void *record_malloc(size_t size)
{
    void *block = malloc(size);
    if (step_count >= STEPS)
        die("the trace is too long");
    recorded[slot_count] = block;
    steps[step_count++] = (struct step){(uint32_t)(size ? size : 1), (uint32_t)slot_count++};
    return block;
}

static void record_free(void *block)
{
    if (block == NULL)
        return;
    for (int i = slot_count - 1; i >= 0; i--)
        if (recorded[i] == block) {
            if (step_count >= STEPS)
                die("the trace is too long");
            steps[step_count++] = (struct step){0, (uint32_t)i};
            recorded[i] = NULL;
            break;
        }
    free(block);
}

static void *record_realloc(void *block, size_t size)
{
    void *moved = record_malloc(size);
    if (block != NULL) {
        size_t had = malloc_usable_size(block);
        memcpy(moved, block, had < size ? had : size);
        record_free(block);
    }
    return moved;
}

/* Where osip2 got its memory from before: the preloaded pool has set its own functions there. */
extern osip_malloc_func_t *osip_malloc_func;
extern osip_realloc_func_t *osip_realloc_func;
extern osip_free_func_t *osip_free_func;

static void record(void)
{
    osip_malloc_func_t *m = osip_malloc_func;
    osip_realloc_func_t *r = osip_realloc_func;
    osip_free_func_t *f = osip_free_func;
    cycle();
    osip_set_allocators(record_malloc, record_realloc, record_free);
    cycle();
    osip_set_allocators(m, r, f);
}

/* The blocks are touched as strings and structs are: at their beginning. */
static void play(void **blocks)
{
    for (int i = 0; i < step_count; i++) {
        struct step s = steps[i];
        if (s.size != 0) {
            char *block = osip_malloc(s.size);
            block[0] = (char)i;
            blocks[s.slot] = block;
        } else {
            osip_free(blocks[s.slot]);
        }
    }
}

static void *trace_thread(void *arg)
{
    void **blocks = calloc((size_t)slot_count, sizeof *blocks);
    pin((int)(intptr_t)arg);
    for (long i = 0; i < rounds / 10 + 1; i++)
        play(blocks);
    pthread_barrier_wait(&barrier);
    for (long i = 0; i < rounds; i++)
        play(blocks);
    pthread_barrier_wait(&barrier);
    void **held = calloc((size_t)slot_count * HELD, sizeof *held);
    long count = 0;
    for (int n = 0; n < HELD; n++)
        for (int i = 0; i < step_count; i++)
            if (steps[i].size != 0)
                memset(held[count++] = osip_malloc(steps[i].size), 1, steps[i].size);
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    while (count > 0)
        osip_free(held[--count]);
    free(held);
    free(blocks);
    return NULL;
}

/* A message is a batch of blocks in an array of the ring's own, so that passing it costs nothing of the allocator. */
static void **batches[RING];

static void *consume_batches(void *arg)
{
    (void)arg;
    pin(1);
    for (long i = 0; i < rounds; i++) {
        void **blocks = get(i);
        for (int n = 0; n < slot_count; n++)
            osip_free(blocks[n]);
    }
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    return NULL;
}

static void trace_cross(void)
{
    pthread_t consumer;
    pin(0);
    pthread_barrier_init(&barrier, NULL, 2);
    for (int i = 0; i < RING; i++)
        batches[i] = calloc((size_t)slot_count, sizeof(void *));
    double begun = seconds();
    if (pthread_create(&consumer, NULL, consume_batches, NULL) != 0)
        die("no thread");
    for (long i = 0; i < rounds; i++) {
        /* Two rings' worth of arrays would be needed if the consumer still read this one: it does not, for get() has
         * not emptied the slot that put() waits for. Half of the ring is used, so the array is not written early. */
        void **blocks = batches[i % RING];
        while (i >= RING / 2 && atomic_load_explicit(&ring[(i - RING / 2) % RING], memory_order_acquire) != NULL)
            sched_yield();
        for (int n = 0, s = 0; s < step_count; s++)
            if (steps[s].size != 0) {
                char *block = osip_malloc(steps[s].size);
                block[0] = (char)s;
                blocks[n++] = block;
            }
        put(i, blocks);
    }
    consumed(consumer, begun);
}

/* ---- mix ---- */

static uint64_t random_state = 0x9e3779b97f4a7c15u;

static uint32_t random_number(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}

/* Not getrusage's maximum: that begins with what the parent process had when it forked. */
static long resident_kib(void)
{
    char line[128];
    long size, resident = 0;
    FILE *statm = fopen("/proc/self/statm", "r");
    if (statm == NULL || fgets(line, sizeof line, statm) == NULL || sscanf(line, "%ld %ld", &size, &resident) != 2)
        die("no /proc/self/statm");
    fclose(statm);
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

static void mix(long blocks, long count)
{
    void **held = calloc((size_t)blocks, sizeof *held);
    long before = resident_kib(), peak = before, now;
    double begun = seconds();
    for (long i = 0; i < count; i++) {
        /* One block in eight is long-lived: its place is seldom drawn. */
        long at = random_number() % 8 ? random_number() % (blocks * 7 / 8) : blocks * 7 / 8 + random_number() % (blocks / 8);
        size_t size = 100 + random_number() % (65536 - 100);
        if (held[at] != NULL)
            osip_free(held[at]);
        held[at] = osip_malloc(size);
        if (held[at] == NULL)
            die("no memory");
        memset(held[at], 1, size);
        if (i % 64 == 0 && (now = resident_kib()) > peak)
            peak = now;
    }
    printf("ns %.1f\nkib %ld\n", (seconds() - begun) * 1e9 / (double)count, peak - before);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    parser_init();
    kib_before = anonymous_kib();
    if ((strcmp(what, "cycle") == 0 && argc == 5) || (strcmp(what, "cross") == 0 && argc == 4)) {
        int invite = strcmp(argv[2], "invite") == 0;
        text = invite ? invite_text : register_text;
        text_length = strlen(text);
        rounds = atol(argv[argc - 1]);
        if (argc == 5)
            run_threads(atoi(argv[3]), cycle_thread);
        else
            cross();
    } else if ((strcmp(what, "trace") == 0 && argc == 4) || (strcmp(what, "trace-cross") == 0 && argc == 3)) {
        text = register_text;
        text_length = strlen(text);
        rounds = atol(argv[argc - 1]);
        record();
        if (argc == 4)
            run_threads(atoi(argv[2]), trace_thread);
        else
            trace_cross();
    } else if (strcmp(what, "mix") == 0 && argc == 4) {
        mix(atol(argv[2]), atol(argv[3]));
    } else {
        die("usage: see the head of pool_bench.c");
    }
    return 0;
}
