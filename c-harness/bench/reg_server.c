/* The registrar alone behind an engine, without plugins, as bench-registrar measures it.
 *
 *   reg_server PORT URL [engine.NAME=VALUE | NAME=VALUE]...    options of the engine and of the registrar (docs/options.md)
 *
 * URL is memory:, sqlite:PATH or mysql://...; prints "ready" when it answers, ends on SIGTERM, then prints its metrics.
 */
#define _GNU_SOURCE
#include <partyline.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void must(int code, const char *what) {
    if (code < 0) {
        fprintf(stderr, "reg_server: %s: %s\n", what, partyline_last_error());
        exit(1);
    }
}

int main(int argc, char **argv) {
    if (argc < 3)
        return fprintf(stderr, "usage: reg_server PORT URL [engine.NAME=VALUE | NAME=VALUE]...\n"), 2;
    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    sigprocmask(SIG_BLOCK, &ends, NULL);
    partyline_registrar *registrar;
    partyline_engine *engine;
    must(partyline_registrar_new(&registrar), "registrar");
    must(partyline_engine_new(&engine), "engine");
    for (int i = 3; i < argc; i++) {
        char name[80];
        const char *value = strchr(argv[i], '=');
        if (value == NULL || value - argv[i] >= (long)sizeof name)
            return fprintf(stderr, "reg_server: %s is not NAME=VALUE\n", argv[i]), 2;
        memcpy(name, argv[i], (size_t)(value - argv[i]));
        name[value - argv[i]] = 0;
        if (strncmp(name, "engine.", 7) == 0)
            must(partyline_engine_set(engine, name + 7, value + 1), argv[i]);
        else
            must(partyline_registrar_set(registrar, name, value + 1), argv[i]);
    }
    char listen[40];
    snprintf(listen, sizeof listen, "udp:127.0.0.1:%s", argv[1]);
    must(partyline_registrar_open(registrar, argv[2]), argv[2]);
    must(partyline_engine_attach(engine, registrar), "attach");
    must(partyline_engine_listen(engine, listen, NULL), listen);
    must(partyline_engine_start(engine), "start");
    printf("ready\n");
    fflush(stdout);
    int number = 0;
    sigwait(&ends, &number);
    must(partyline_engine_stop(engine, 2000), "stop");
    static char page[200000];
    size_t length = 0;
    if (partyline_engine_metrics(engine, page, sizeof page, &length) >= 0)
        fputs(page, stdout);
    must(partyline_engine_free(engine), "free");
    must(partyline_registrar_free(registrar), "free");
    return 0;
}
