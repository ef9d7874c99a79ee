/* An osip2 program that does what old programs do: it frees with libc what osip2 allocated, and the other way round. It
 * knows nothing of this library; the test runs it plain, preloaded, and linked with it. Prints "ours" or "libc" for where
 * osip2's memory came from. */
#define _GNU_SOURCE
#include <sys/time.h>
#include <time.h>

#include <osip2/osip.h>
#include <osipparser2/osip_parser.h>

#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                \
    do {                                                                                \
        if (!(condition)) {                                                             \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);   \
            exit(1);                                                                    \
        }                                                                               \
    } while (0)

static const char text[] = "OPTIONS sip:bob@example.test SIP/2.0\r\n"
                           "Via: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK1\r\n"
                           "From: <sip:alice@example.test>;tag=1\r\nTo: <sip:bob@example.test>\r\n"
                           "Call-ID: 1@example.test\r\nCSeq: 1 OPTIONS\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n";

static void *release(void *message)
{
    osip_message_free(message);
    return NULL;
}

int main(int argc, char **argv)
{
    int mixed = argc > 1 && strcmp(argv[1], "mixed") == 0;
    osip_message_t *message;
    pthread_t thread;
    parser_init();
    for (int i = 0; i < 1000; i++) {
        CHECK(osip_message_init(&message) == 0);
        CHECK(osip_message_parse(message, text, sizeof text - 1) == 0);
        CHECK(strcmp(message->call_id->number, "1") == 0);
        if (i % 2) {
            osip_message_free(message);
        } else {
            CHECK(pthread_create(&thread, NULL, release, message) == 0);
            CHECK(pthread_join(thread, NULL) == 0);
        }
    }
    if (mixed) {
        char *copy = osip_strdup("freed with libc");
        CHECK(malloc_usable_size(copy) >= 16);
        copy = realloc(copy, 4000);
        CHECK(copy != NULL && strcmp(copy, "freed with libc") == 0);
        copy = reallocarray(copy, 100, 100);
        CHECK(copy != NULL && strcmp(copy, "freed with libc") == 0);
        free(copy);
        free(osip_strdup("x"));
        copy = malloc(100);
        osip_free(copy);
        copy = osip_realloc(malloc(10), 5000);
        free(copy);
        volatile size_t huge = SIZE_MAX / 2; /* or the compiler says it first */
        CHECK(reallocarray(NULL, huge, 3) == NULL);
    }
    /* libc's blocks lie in its heap or a mapping of their own; the pool's range is far from both, and reserved. */
    char *probe = osip_malloc(10), *libcs = malloc(10);
    intptr_t far = (intptr_t)probe - (intptr_t)libcs;
    printf("%s\n", far > (1 << 20) || far < -(1 << 20) ? "ours" : "libc");
    osip_free(probe);
    free(libcs);
    return 0;
}
