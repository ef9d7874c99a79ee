/* Plugins from shared objects: what is refused, and a reload under load with no request lost.
 *
 *   reload FOLDER    with greeter1.so, greeter2.so, greeter_refuses.so, greeter_serial.so (see the Makefile) */
#include "check.h"
#include <fcntl.h>
#include <sys/stat.h>

static const char *folder;
static partyline_engine *engine;
static uint16_t port;
static atomic_int halt, answered[3];

/* What stands in the file is written over in place, as a careless build does it; `cut` leaves bytes away at its end. */
static void install(const char *path, const char *from, long cut)
{
    char source[512];
    snprintf(source, sizeof source, "%s/%s", folder, from);
    int in = open(source, O_RDONLY), out = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0755);
    struct stat size;
    CHECK(in >= 0 && out >= 0 && fstat(in, &size) == 0);
    char *bytes = malloc((size_t)size.st_size);
    CHECK(bytes != NULL && read(in, bytes, (size_t)size.st_size) == size.st_size);
    CHECK(write(out, bytes, (size_t)(size.st_size - cut)) == size.st_size - cut);
    free(bytes);
    close(in);
    close(out);
}

static int version_of(const char *response)
{
    const char *line = strstr(response, "\r\nX-Version: ");
    return line != NULL ? atoi(line + 13) : -1;
}

static int ask_version(int fd, const char *method)
{
    static unsigned cseq;
    char text[4096];
    CHECK(ask(fd, text, sizeof text, method, "a", "version", ++cseq, NULL, NULL) == 200);
    return version_of(text);
}

/* Keeps 32 requests outstanding until told to stop, then waits for the last answers. Every request is answered once. */
static void *load(void *user)
{
    enum { WINDOW = 32, MOST = 4000000 };
    char text[4096], *seen = calloc(MOST, 1);
    unsigned sent = 0, received = 0;
    int fd = client_socket(port);
    (void)user;
    CHECK(seen != NULL);
    while (!atomic_load(&halt) || received < sent) {
        while (!atomic_load(&halt) && sent < received + WINDOW && sent + 1 < MOST) {
            int length = request(text, sizeof text, "OPTIONS", "a", "load", ++sent, NULL, NULL);
            client_send(fd, text, (size_t)length);
        }
        if (received == sent)
            continue;
        CHECK(client_receive(fd, text, sizeof text, 20000) > 0);
        unsigned cseq = (unsigned)atoi(strstr(text, "CSeq: ") + 6);
        int version = version_of(text);
        CHECK(status_of(text) == 200 && cseq >= 1 && cseq <= sent && !seen[cseq]);
        CHECK(version == 1 || version == 2);
        seen[cseq] = 1;
        received++;
        atomic_fetch_add(&answered[version], 1);
    }
    close(fd);
    free(seen);
    return (void *)(intptr_t)sent;
}

static int count_lines(const char *path, const char *word)
{
    char line[64];
    int n = 0;
    FILE *file = fopen(path, "r");
    CHECK(file != NULL);
    while (fgets(line, sizeof line, file) != NULL)
        n += strncmp(line, word, strlen(word)) == 0;
    fclose(file);
    return n;
}

int main(int argc, char **argv)
{
    char path[512], log[512], other[512], text[4096];
    CHECK(argc == 2);
    folder = argv[1];
    snprintf(path, sizeof path, "%s/live-%d.so", folder, (int)getpid());
    snprintf(log, sizeof log, "%s/live-%d.log", folder, (int)getpid());
    CHECK(setenv("PARTYLINE_GREETER_LOG", log, 1) == 0);

    OK(partyline_engine_new(&engine));
    OK(partyline_engine_set(engine, "threads.min", "2"));
    OK(partyline_engine_set(engine, "log", "error"));

    /* What cannot be loaded. */
    CHECK_CODE(partyline_plugin_load(engine, NULL), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_plugin_load(engine, "/nowhere/x.so"), PARTYLINE_EIO);
    CHECK(strstr(partyline_last_error(), "/nowhere/x.so") != NULL);
    snprintf(other, sizeof other, "%s/greeter_refuses.so", folder);
    CHECK_CODE(partyline_plugin_load(engine, other), PARTYLINE_ESTATE);
    CHECK_CODE(partyline_engine_set(engine, "plugin", "/nowhere/x.so"), PARTYLINE_EIO);
    install(path, "greeter1.so", 64);
    CHECK_CODE(partyline_plugin_load(engine, path), PARTYLINE_EIO);
    CHECK(strstr(partyline_last_error(), "cut off") != NULL);
    CHECK_CODE(partyline_plugin_load(engine, "/dev/null"), PARTYLINE_EIO);
    CHECK(strstr(partyline_last_error(), "not an ELF file") != NULL);
    snprintf(other, sizeof other, "%s/nothing.so", folder);
    CHECK_CODE(partyline_plugin_load(engine, other), PARTYLINE_EINVAL);
    CHECK(strstr(partyline_last_error(), "partyline_plugin_descriptor") != NULL);
    snprintf(other, sizeof other, "%s/greeter_refuses.so", folder);
    install(path, "greeter1.so", 0);
    OK(partyline_engine_set(engine, "plugin", path));
    CHECK_CODE(partyline_plugin_load(engine, path), PARTYLINE_EINVAL);
    CHECK(strstr(partyline_last_error(), "greeter") != NULL);
    CHECK_CODE(partyline_plugin_reload(engine, "greeter", NULL, 0), PARTYLINE_ESTATE);

    OK(partyline_engine_listen(engine, "udp:127.0.0.1:0", &port));
    OK(partyline_engine_start(engine));
    int fd = client_socket(port);
    CHECK(ask_version(fd, "OPTIONS") == 1);

    /* Under load: overwritten in place, exchanged, refused, and back again. */
    pthread_t loader;
    CHECK(pthread_create(&loader, NULL, load, NULL) == 0);
    CHECK(reaches(&answered[1], 100));
    install(path, "greeter2.so", 0);
    CHECK_CODE(partyline_plugin_reload(engine, "greeter", NULL, 5000), 0);
    CHECK(ask_version(fd, "OPTIONS") == 2);
    CHECK(reaches(&answered[2], 100));
    CHECK_CODE(partyline_plugin_reload(engine, "nobody", NULL, 0), PARTYLINE_ENOTFOUND);
    CHECK_CODE(partyline_plugin_reload(engine, "greeter", other, 0), PARTYLINE_ESTATE);
    snprintf(other, sizeof other, "%s/greeter_serial.so", folder);
    CHECK_CODE(partyline_plugin_reload(engine, "greeter", other, 0), PARTYLINE_EINVAL);
    install(path, "greeter1.so", 4096);
    CHECK_CODE(partyline_plugin_reload(engine, "greeter", NULL, 0), PARTYLINE_EIO);
    CHECK(ask_version(fd, "OPTIONS") == 2);
    for (int i = 0; i < 20; i++) {
        install(path, i % 2 == 0 ? "greeter1.so" : "greeter2.so", 0);
        CHECK_CODE(partyline_plugin_reload(engine, "greeter", NULL, 5000), 0);
        int version = i % 2 + 1;
        CHECK(ask_version(fd, "OPTIONS") == version);
        CHECK(reaches(&answered[version], atomic_load(&answered[version]) + 100));
    }

    /* What version 1 deferred and has not finished is answered by version 2. */
    install(path, "greeter1.so", 0);
    CHECK_CODE(partyline_plugin_reload(engine, "greeter", NULL, 5000), 0);
    int length = request(text, sizeof text, "SUBSCRIBE", "a", "kept", 1, NULL, NULL);
    client_send(fd, text, (size_t)length);
    partyline_stats stats = {.size = sizeof stats};
    for (int i = 0; i < 10000 && stats.deferred == 0; i++) {
        OK(partyline_stats_get(engine, &stats));
        usleep(1000);
    }
    CHECK(stats.deferred == 1);
    install(path, "greeter2.so", 0);
    CHECK_CODE(partyline_plugin_reload(engine, "greeter", NULL, 5000), 0);
    CHECK(client_receive(fd, text, sizeof text, 10000) > 0 && status_of(text) == 200 && version_of(text) == 2);
    OK(partyline_stats_get(engine, &stats));
    CHECK(stats.deferred == 0);

    /* A call that takes longer than the reload waits keeps its own code; the others have the new one. */
    install(path, "greeter1.so", 0);
    length = snprintf(text, sizeof text,
                      "INFO sip:example.test SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:9;branch=z9hG4bKlong;rport\r\n"
                      "From: <sip:a@example.test>;tag=l\r\nTo: <sip:a@example.test>\r\nCall-ID: long\r\nCSeq: 1 INFO\r\n"
                      "Max-Forwards: 70\r\nContent-Length: 4\r\n\r\n1500");
    int slow = client_socket(port);
    client_send(slow, text, (size_t)length);
    partyline_plugin_stats figures = {.size = sizeof figures};
    unsigned long long before = count_lines(log, "stop");
    do {
        OK(partyline_plugin_stats_get(engine, "greeter", &figures));
    } while (figures.running == 0);
    while (partyline_plugin_reload(engine, "greeter", NULL, 20) == 0)
        install(path, "greeter1.so", 0); /* what was running was one of the load's: the long one was still on its way */
    CHECK(ask_version(fd, "OPTIONS") == 1);
    CHECK(client_receive(slow, text, sizeof text, 20000) > 0 && status_of(text) == 200);
    for (int i = 0; i < 10000 && count_lines(log, "stop") < count_lines(log, "start") - 1; i++)
        usleep(1000);
    CHECK((unsigned long long)count_lines(log, "stop") > before);

    atomic_store(&halt, 1);
    void *sent;
    CHECK(pthread_join(loader, &sent) == 0);
    OK(partyline_plugin_stats_get(engine, "greeter", &figures));
    CHECK(figures.refused == 0 && figures.queued == 0 && figures.calls >= (uint64_t)(intptr_t)sent && figures.run_p50_ns > 0);
    CHECK_CODE(partyline_plugin_stats_get(engine, "nobody", &figures), PARTYLINE_ENOTFOUND);
    CHECK(partyline_engine_stop(engine, 2000) == 0);
    OK(partyline_engine_free(engine));
    /* Each version that was started was stopped: at the end, too. */
    CHECK(count_lines(log, "start") >= 24 && count_lines(log, "start") == count_lines(log, "stop"));
    close(fd);
    close(slow);
    unlink(path);
    unlink(log);
    printf("reload: ok, %ld requests answered once each\n", (long)(intptr_t)sent);
    return 0;
}
