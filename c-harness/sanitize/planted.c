/* Errors on purpose, one per run: planted WHICH. Each has to be reported by the sanitizer that the library was built
 * with; scripts/sanitize.sh looks for the name of the function in the report. So it is known that the program, the
 * library's C and its Rust code are all instrumented. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <osip2/osip.h>
#include <osipparser2/osip_port.h>
#include <partyline.h>

#define TIMES 2000

static osip_fifo_t *fifo;
static partyline_pool_stats stats = {.size = sizeof stats};
static unsigned long plain;
static int (*meet)(void);

/* ---- memory ---- */

/* Written by the library's C. */
static int short_fifo(void)
{
    fifo = malloc(sizeof *fifo - sizeof(void *));
    osip_fifo_init(fifo);
    return 0;
}

/* Written by the library's Rust code. */
static int short_stats(void)
{
    partyline_pool_stats *into = malloc(sizeof *into - 16);
    into->size = sizeof *into;
    return partyline_pool_stats_get(into);
}

/* Written by the program: a block that osip2 got from the library. */
static int past_a_block(void)
{
    char *text = osip_strdup("0123456789");
    size_t length = strlen(text);
    text[length + 1 + (length > 100)] = 'x';
    osip_free(text);
    return 0;
}

static int used_after_free(void)
{
    char *text = osip_malloc(40);
    strcpy(text, "gone");
    osip_free(text);
    return *(volatile char *)text == 'g';
}

static int lost(void)
{
    osip_message_t *message;
    osip_message_init(&message);
    osip_message_set_version(message, osip_strdup("SIP/2.0"));
    message = NULL;
    return 0;
}

/* ---- threads ---- */

static int set_up_the_same_fifo(void)
{
    osip_fifo_init(fifo);
    return 0;
}

static int read_into_the_same_struct(void)
{
    return partyline_pool_stats_get(&stats);
}

static int count(void)
{
    plain++;
    return 0;
}

/* Both begin together: a thread that took over the heap of one that has ended would be ordered behind it. */
static pthread_barrier_t begin;

static void *repeat(void *arg)
{
    osip_free(osip_malloc(40));
    pthread_barrier_wait(&begin);
    for (int i = 0; i < TIMES; i++) {
        meet();
        sched_yield();
    }
    return arg;
}

static int race(int (*what)(void))
{
    pthread_t threads[2];
    fifo = calloc(1, sizeof *fifo);
    meet = what;
    pthread_barrier_init(&begin, NULL, 2);
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, repeat, NULL);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    return 0;
}

int main(int argc, char **argv)
{
    const char *which = argc > 1 ? argv[1] : "";
    parser_init();
    if (strcmp(which, "short_fifo") == 0)
        short_fifo();
    else if (strcmp(which, "short_stats") == 0)
        short_stats();
    else if (strcmp(which, "past_a_block") == 0)
        past_a_block();
    else if (strcmp(which, "used_after_free") == 0)
        used_after_free();
    else if (strcmp(which, "lost") == 0)
        lost();
    else if (strcmp(which, "race_in_c_of_the_library") == 0)
        race(set_up_the_same_fifo);
    else if (strcmp(which, "race_in_rust_of_the_library") == 0)
        race(read_into_the_same_struct);
    else if (strcmp(which, "race_in_the_program") == 0)
        race(count);
    else if (strcmp(which, "nothing") != 0)
        return 2;
    printf("planted: %s went unnoticed\n", which);
    return 0;
}
