/* Every exported function with NULL, garbage and freed handles: a negative code and a text, never a crash. */
#include "check.h"

static int never(void *user, partyline_message *message)
{
    (void)user;
    (void)message;
    return PARTYLINE_DONE;
}

static void nothing(void *user)
{
    (void)user;
}

static int no_binding(void *user, const partyline_binding *binding)
{
    (void)user;
    (void)binding;
    return 0;
}

/* Each function with a handle that is no engine. */
static void engine_functions(partyline_engine *bad)
{
    uint16_t port = 77;
    uint64_t timer = 77;
    char text[16] = "untouched";
    size_t length = 77;
    partyline_plugin plugin = {.size = sizeof plugin, .version = 1, .name = "x", .callback = never};
    partyline_stats stats = {.size = sizeof stats};
    CHECK_CODE(partyline_engine_set(bad, "threads.min", "1"), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_engine_listen(bad, "udp:127.0.0.1:0", &port), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_engine_attach(bad, NULL), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_engine_start(bad), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_engine_run(bad), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_engine_stop(bad, 0), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_engine_metrics(bad, text, sizeof text, &length), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_plugin_register(bad, &plugin), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_post(bad, PARTYLINE_GROUP_IO, nothing, NULL), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_timer_start(bad, PARTYLINE_GROUP_IO, 1, 0, nothing, NULL, &timer), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_timer_cancel(bad, 1), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_send(bad, "udp:127.0.0.1:9", "x", 1), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_stats_get(bad, &stats), PARTYLINE_EINVAL);
    /* Nothing is written on failure. */
    CHECK(port == 77 && timer == 77 && length == 77 && strcmp(text, "untouched") == 0 && stats.version == 0);
    CHECK(strlen(partyline_last_error()) > 0);
}

static void registrar_functions(partyline_registrar *bad)
{
    CHECK_CODE(partyline_registrar_set(bad, "mode", "memory"), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_registrar_open(bad, "memory:"), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_registrar_flush(bad, 1), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_registrar_handle(bad, NULL), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_registrar_authorize(bad, NULL), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_registrar_lookup(bad, "sip:a@b", no_binding, NULL), PARTYLINE_EINVAL);
}

static void message_functions(partyline_message *bad)
{
    const char *bytes = "untouched";
    size_t length = 77;
    char host[64] = "untouched";
    partyline_message *later = NULL;
    CHECK_CODE(partyline_message_method(bad, &bytes, &length), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_message_uri(bad, &bytes, &length), PARTYLINE_EINVAL);
    partyline_uri uri = {.size = sizeof uri};
    CHECK_CODE(partyline_message_uri_parts(bad, PARTYLINE_URI_TO, &uri), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_message_header(bad, "To", 0, &bytes, &length), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_message_body(bad, &bytes, &length), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_message_text(bad, &bytes, &length), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_message_source(bad, host, sizeof host, NULL), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_reply(bad, 200, NULL, NULL, NULL, 0), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_message_defer(bad, &later), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_message_resume(bad, PARTYLINE_NEXT), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_message_drop(bad), PARTYLINE_EINVAL);
    CHECK(length == 77 && strcmp(bytes, "untouched") == 0 && strcmp(host, "untouched") == 0 && later == NULL);
}

int main(void)
{
    CHECK(strchr(partyline_version(), '.') != NULL);
    CHECK(strcmp(partyline_last_error(), "") == 0);
    CHECK(strcmp(partyline_strerror(PARTYLINE_EDB), "PARTYLINE_EDB") == 0);
    CHECK(strcmp(partyline_strerror(12345), "unknown code") == 0);

    CHECK_CODE(partyline_engine_new(NULL), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_registrar_new(NULL), PARTYLINE_EINVAL);

    partyline_engine *engine = NULL, *freed = NULL;
    partyline_registrar *registrar = NULL, *freed_registrar = NULL;
    OK(partyline_engine_new(&engine));
    OK(partyline_engine_new(&freed));
    OK(partyline_registrar_new(&registrar));
    OK(partyline_registrar_new(&freed_registrar));
    OK(partyline_engine_free(freed));
    OK(partyline_registrar_free(freed_registrar));

    int on_the_stack = 0;
    void *garbage[] = {NULL, &on_the_stack, (void *)1, (void *)(intptr_t)-1, (void *)0x5100000090000001, "text"};
    for (size_t i = 0; i < sizeof garbage / sizeof *garbage; i++) {
        engine_functions(garbage[i]);
        registrar_functions(garbage[i]);
        message_functions(garbage[i]);
        if (garbage[i] != NULL) {
            CHECK_CODE(partyline_engine_free(garbage[i]), PARTYLINE_EINVAL);
            CHECK_CODE(partyline_registrar_free(garbage[i]), PARTYLINE_EINVAL);
        }
    }
    engine_functions(freed);
    engine_functions((partyline_engine *)registrar);
    registrar_functions(freed_registrar);
    registrar_functions((partyline_registrar *)engine);
    message_functions((partyline_message *)engine);
    CHECK_CODE(partyline_engine_free(freed), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_registrar_free(freed_registrar), PARTYLINE_EINVAL);
    OK(partyline_engine_free(NULL));
    OK(partyline_registrar_free(NULL));

    /* Good handles, bad arguments. */
    CHECK_CODE(partyline_engine_set(engine, NULL, "1"), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_engine_set(engine, "threads.min", NULL), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_engine_set(engine, "threads.min", "\xff"), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_engine_set(engine, "no.such.option", "1"), PARTYLINE_ECONFIG);
    CHECK(strstr(partyline_last_error(), "no.such.option") != NULL);
    CHECK_CODE(partyline_engine_set(engine, "threads.min", "many"), PARTYLINE_ECONFIG);
    CHECK_CODE(partyline_engine_set(engine, "threads.min", "0"), PARTYLINE_ECONFIG);
    CHECK_CODE(partyline_engine_set(engine, "watchdog", "5"), PARTYLINE_ECONFIG);
    const char *addresses[] = {"", "udp", "udp:", "udp:127.0.0.1", "udp:127.0.0.1:x", "udp:127.0.0.1:70000",
                               "udp:host.example.test:5060", "sctp:127.0.0.1:0", "udp:::1:5060", "udp:[::1:5060"};
    for (size_t i = 0; i < sizeof addresses / sizeof *addresses; i++)
        CHECK_CODE(partyline_engine_listen(engine, addresses[i], NULL), PARTYLINE_ECONFIG);
#ifndef _WIN32 /* Wine takes any address and binds to the wildcard instead */
    CHECK_CODE(partyline_engine_listen(engine, "udp:192.0.2.1:0", NULL), PARTYLINE_EADDR);
#endif
    CHECK_CODE(partyline_engine_listen(engine, NULL, NULL), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_engine_attach(engine, NULL), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_engine_attach(engine, registrar), PARTYLINE_ESTATE);

    CHECK_CODE(partyline_plugin_register(engine, NULL), PARTYLINE_EINVAL);
    partyline_plugin good = {.size = sizeof good, .version = 1, .name = "p", .callback = never}, bad;
    bad = good, bad.size = 4;
    CHECK_CODE(partyline_plugin_register(engine, &bad), PARTYLINE_EINVAL);
    bad = good, bad.version = 9;
    CHECK_CODE(partyline_plugin_register(engine, &bad), PARTYLINE_EINVAL);
    bad = good, bad.name = NULL;
    CHECK_CODE(partyline_plugin_register(engine, &bad), PARTYLINE_EINVAL);
    bad = good, bad.callback = NULL;
    CHECK_CODE(partyline_plugin_register(engine, &bad), PARTYLINE_EINVAL);
    bad = good, bad.policy = 9;
    CHECK_CODE(partyline_plugin_register(engine, &bad), PARTYLINE_EINVAL);
    bad = good, bad.phase = -1;
    CHECK_CODE(partyline_plugin_register(engine, &bad), PARTYLINE_EINVAL);
    bad = good, bad.methods = "REGISTER,,";
    CHECK_CODE(partyline_plugin_register(engine, &bad), PARTYLINE_EINVAL);

    CHECK_CODE(partyline_post(engine, PARTYLINE_GROUP_IO, NULL, NULL), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_post(engine, 99, nothing, NULL), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_post(engine, PARTYLINE_GROUP_IO, nothing, NULL), PARTYLINE_ESTATE);
    CHECK_CODE(partyline_timer_start(engine, PARTYLINE_GROUP_IO, 1, 0, NULL, NULL, NULL), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_timer_cancel(engine, 0), PARTYLINE_ENOTFOUND);
    CHECK_CODE(partyline_timer_cancel(engine, UINT64_MAX), PARTYLINE_ENOTFOUND);

    partyline_stats stats = {.size = 3};
    CHECK_CODE(partyline_stats_get(engine, &stats), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_stats_get(engine, NULL), PARTYLINE_EINVAL);
    stats.size = sizeof stats;
    OK(partyline_stats_get(engine, &stats));
    CHECK(stats.version == 1 && stats.size == sizeof stats && stats.received == 0);

    size_t needed = 0;
    CHECK_CODE(partyline_engine_metrics(engine, NULL, 0, &needed), PARTYLINE_ETOOSMALL);
    char *text = malloc(needed);
    OK(partyline_engine_metrics(engine, text, needed, NULL));
    CHECK(strstr(text, "# TYPE partyline_") != NULL);
    free(text);

    CHECK_CODE(partyline_registrar_set(registrar, "mode", "sideways"), PARTYLINE_ECONFIG);
    CHECK_CODE(partyline_registrar_set(registrar, "modes", "memory"), PARTYLINE_ECONFIG);
    CHECK_CODE(partyline_registrar_set(registrar, NULL, NULL), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_registrar_open(registrar, NULL), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_registrar_open(registrar, "oracle://x"), PARTYLINE_ECONFIG);
    CHECK_CODE(partyline_registrar_open(registrar, "mysql://root@127.0.0.1:none/x"), PARTYLINE_ECONFIG);
    CHECK_CODE(partyline_registrar_open(registrar, "sqlite:/no/such/folder/x.db"), PARTYLINE_EDB);
    CHECK(strstr(partyline_last_error(), "/no/such/folder/x.db") != NULL);
    CHECK_CODE(partyline_registrar_lookup(registrar, "sip:a@b", no_binding, NULL), PARTYLINE_ESTATE);
    OK(partyline_registrar_set(registrar, "mode", "memory"));
    OK(partyline_registrar_open(registrar, "memory:"));
    CHECK_CODE(partyline_registrar_open(registrar, "memory:"), PARTYLINE_ESTATE);
    CHECK_CODE(partyline_registrar_set(registrar, "mode", "memory"), PARTYLINE_ESTATE);
    CHECK_CODE(partyline_registrar_lookup(registrar, "sip:a@b", NULL, NULL), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_registrar_lookup(registrar, NULL, no_binding, NULL), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_registrar_lookup(registrar, "not a uri", no_binding, NULL), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_registrar_lookup(registrar, "sip:a@b", no_binding, NULL), 0);
    CHECK_CODE(partyline_registrar_handle(registrar, NULL), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_registrar_authorize(registrar, NULL), PARTYLINE_EINVAL);
    OK(partyline_engine_attach(engine, registrar));

    /* An engine without a listener does not start; one that runs is not changed. */
    CHECK_CODE(partyline_engine_start(engine), PARTYLINE_ESTATE);
    uint16_t port = 0;
    char address[64];
    OK(partyline_engine_listen(engine, "udp:127.0.0.1:0", &port));
    CHECK(port != 0);
    snprintf(address, sizeof address, "udp:127.0.0.1:%u", port);
    CHECK_CODE(partyline_engine_listen(engine, address, NULL), PARTYLINE_EADDR);
    CHECK(strstr(partyline_last_error(), "127.0.0.1") != NULL);
    OK(partyline_engine_start(engine));
    CHECK_CODE(partyline_engine_start(engine), PARTYLINE_ESTATE);
    CHECK_CODE(partyline_engine_set(engine, "threads.min", "1"), PARTYLINE_ESTATE);
    CHECK_CODE(partyline_plugin_register(engine, &good), PARTYLINE_ESTATE);
    CHECK_CODE(partyline_send(engine, "udp:127.0.0.1:x", "x", 1), PARTYLINE_ECONFIG);
    CHECK_CODE(partyline_send(engine, "udp:127.0.0.1:9", NULL, 1), PARTYLINE_EINVAL);
    CHECK_CODE(partyline_engine_stop(engine, 100), 0);
    CHECK_CODE(partyline_engine_start(engine), PARTYLINE_ESTATE);
    OK(partyline_engine_free(engine));
    OK(partyline_registrar_free(registrar));
    puts("api_misuse: ok");
    return 0;
}
