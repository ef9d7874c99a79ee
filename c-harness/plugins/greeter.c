/* A plugin as a shared object: what it exports, and what its versions may do to one another's messages.
 *
 *   cc -shared -fPIC -DVERSION=1 -o greeter.so greeter.c        it needs nothing but partyline.h: the program that loads
 *                                                               it brings libpartyline.so
 *   partyline_engine_set(engine, "plugin", "/path/to/greeter.so");
 *   partyline_plugin_reload(engine, "greeter", NULL, 1000);     after the file was replaced
 *
 * OPTIONS is answered with the version's number. INFO is a call that takes as long as its body says, in milliseconds.
 * SUBSCRIBE is deferred: version 1 never finishes it, so a newer one has to. PARTYLINE_GREETER_LOG, if set, names a file
 * that each start and stop is written to. */
#include <partyline.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION 1
#endif
#ifndef POLICY
#define POLICY PARTYLINE_PARALLEL
#endif

struct state {
    int version;
};

static void note(const char *what)
{
    const char *path = getenv("PARTYLINE_GREETER_LOG");
    FILE *log = path != NULL ? fopen(path, "a") : NULL;
    if (log != NULL) {
        fprintf(log, "%s %d\n", what, VERSION);
        fclose(log);
    }
}

static int is(partyline_message *message, const char *method)
{
    const char *bytes;
    size_t length;
    return partyline_message_method(message, &bytes, &length) == PARTYLINE_OK && length == strlen(method) &&
           memcmp(bytes, method, length) == 0;
}

static int greet(void *user, partyline_message *message)
{
    struct state *state = user;
    char line[32];
    if (is(message, "SUBSCRIBE") && state->version == 1) {
        partyline_message *later;
        return partyline_message_defer(message, &later) == PARTYLINE_OK ? PARTYLINE_PENDING : PARTYLINE_NEXT;
    }
    if (is(message, "INFO")) {
        const char *body;
        size_t length;
        char number[16] = "";
        if (partyline_message_body(message, &body, &length) == PARTYLINE_OK && length < sizeof number)
            memcpy(number, body, length);
        usleep((useconds_t)atoi(number) * 1000);
    }
    snprintf(line, sizeof line, "X-Version: %d\r\n", state->version);
    partyline_reply(message, 200, NULL, line, NULL, 0);
    return PARTYLINE_DONE;
}

static int start(partyline_engine *engine, void **user)
{
    (void)engine;
#ifdef REFUSES
    return -1;
#endif
    struct state *state = malloc(sizeof *state);
    if (state == NULL)
        return -1;
    state->version = VERSION;
    *user = state;
    note("start");
    return 0;
}

static void stop(void *user)
{
    note("stop");
    free(user);
}

const partyline_plugin partyline_plugin_descriptor = {
    .size = sizeof partyline_plugin_descriptor,
    .version = 1,
    .policy = POLICY,
    .phase = PARTYLINE_NORMAL,
    .name = "greeter",
    .methods = "OPTIONS,INFO,SUBSCRIBE",
    .callback = greet,
    .start = start,
    .stop = stop,
};
