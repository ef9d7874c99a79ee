/* A plain single-threaded registrar on osip2: one UDP socket, select, the four execute and timers calls in each turn,
 * transactions freed after their kill callback, as osip2's own documentation has it. Nothing in it knows Partyline.
 *
 * osip_registrar PORT [J]: timer J of J milliseconds, where given, so that a rate has as many transactions alive as one
 * wants; osip2's own 32 s otherwise. Prints "cpu MICROSECONDS requests N alive N rss KILOBYTES" for each line read from stdin, ends at
 * its end. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>
#include <osip2/osip.h>
#include <osipparser2/osip_port.h>

static osip_t *stack;
static int sock;
static struct sockaddr_in peer;
static unsigned long requests, again;
static int timer_j;

/* What has ended: freed when no osip2 function runs. */
static osip_transaction_t **ended;
static int ended_count, ended_room;

static int on_send(osip_transaction_t *tr, osip_message_t *m, char *host, int port, int out)
{
    char *text = NULL;
    size_t length = 0;
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons((unsigned short)port) };

    (void)tr;
    (void)out;
    if (osip_message_to_str(m, &text, &length) != 0)
        return -1;
    if (inet_pton(AF_INET, host, &to.sin_addr) != 1)
        to = peer;
    sendto(sock, text, length, 0, (struct sockaddr *)&to, sizeof to);
    osip_free(text);
    return 0;
}

static void on_kill(int type, osip_transaction_t *tr)
{
    (void)type;
    osip_remove_transaction(stack, tr);
    if (ended_count == ended_room) {
        ended_room = ended_room ? ended_room * 2 : 1024;
        ended = realloc(ended, (size_t)ended_room * sizeof *ended);
    }
    ended[ended_count++] = tr;
}

static void on_again(int type, osip_transaction_t *tr, osip_message_t *m)
{
    (void)type;
    (void)tr;
    (void)m;
    again++;
}

static void on_register(int type, osip_transaction_t *tr, osip_message_t *request)
{
    osip_message_t *m;
    osip_via_t *via, *copy;
    osip_contact_t *contact, *contact_copy;
    osip_event_t *event;

    (void)type;
    requests++;
    if (timer_j > 0)
        tr->nist_context->timer_j_length = timer_j;
    osip_message_init(&m);
    osip_message_set_version(m, osip_strdup("SIP/2.0"));
    osip_message_set_status_code(m, 200);
    osip_message_set_reason_phrase(m, osip_strdup("OK"));
    for (int i = 0; (via = osip_list_get(&request->vias, i)) != NULL; i++) {
        osip_via_clone(via, &copy);
        osip_list_add(&m->vias, copy, -1);
    }
    osip_from_clone(request->from, &m->from);
    osip_to_clone(request->to, &m->to);
    osip_to_set_tag(m->to, osip_strdup("bench"));
    osip_call_id_clone(request->call_id, &m->call_id);
    osip_cseq_clone(request->cseq, &m->cseq);
    if (osip_message_get_contact(request, 0, &contact) >= 0 && osip_contact_clone(contact, &contact_copy) == 0)
        osip_list_add(&m->contacts, contact_copy, -1);
    osip_message_set_content_length(m, "0");
    event = osip_new_outgoing_sipmessage(m);
    event->transactionid = tr->transactionid;
    osip_transaction_add_event(tr, event);
}

static void turn(void)
{
    osip_timers_ict_execute(stack);
    osip_timers_ist_execute(stack);
    osip_timers_nict_execute(stack);
    osip_timers_nist_execute(stack);
    osip_ict_execute(stack);
    osip_ist_execute(stack);
    osip_nict_execute(stack);
    osip_nist_execute(stack);
    while (ended_count > 0)
        osip_transaction_free(ended[--ended_count]);
}

static void take(const char *text, size_t length)
{
    osip_event_t *event = osip_parse(text, length);
    osip_transaction_t *tr;

    if (!event)
        return;
    if (osip_find_transaction_and_add_event(stack, event) == 0)
        return;
    tr = osip_create_transaction(stack, event);
    if (!tr) {
        osip_message_free(event->sip);
        osip_free(event);
        return;
    }
    osip_transaction_set_in_socket(tr, sock);
    osip_transaction_set_out_socket(tr, sock);
    osip_transaction_add_event(tr, event);
}

static long resident(void)
{
    long pages = 0, total = 0;
    FILE *file = fopen("/proc/self/statm", "r");

    if (file) {
        if (fscanf(file, "%ld %ld", &total, &pages) != 2)
            pages = 0;
        fclose(file);
    }
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static void report(void)
{
    struct rusage use;

    getrusage(RUSAGE_SELF, &use);
    printf("cpu %lld requests %lu again %lu alive %d rss %ld\n",
           (long long)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) * 1000000 + use.ru_utime.tv_usec + use.ru_stime.tv_usec,
           requests, again, osip_list_size(&stack->osip_nist_transactions), resident());
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(argc > 1 ? (unsigned short)atoi(argv[1]) : 21600) };
    int room = 8 << 20, answered;
    static char buffer[65536];

    timer_j = argc > 2 ? atoi(argv[2]) : 0;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    sock = socket(AF_INET, SOCK_DGRAM, 0);
    setsockopt(sock, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    if (bind(sock, (struct sockaddr *)&at, sizeof at) != 0) {
        perror("bind");
        return 1;
    }
    fcntl(sock, F_SETFL, O_NONBLOCK);
    if (osip_init(&stack) != 0)
        return 1;
    osip_set_cb_send_message(stack, on_send);
    osip_set_message_callback(stack, OSIP_NIST_REGISTER_RECEIVED, on_register);
    osip_set_message_callback(stack, OSIP_NIST_REQUEST_RECEIVED_AGAIN, on_again);
    osip_set_kill_transaction_callback(stack, OSIP_NIST_KILL_TRANSACTION, on_kill);
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        struct timeval wait;
        fd_set in;

        osip_timers_gettimeout(stack, &wait);
        if (wait.tv_sec > 0) {
            wait.tv_sec = 1;
            wait.tv_usec = 0;
        }
        FD_ZERO(&in);
        FD_SET(sock, &in);
        FD_SET(0, &in);
        answered = select(sock + 1, &in, NULL, NULL, &wait);
        if (answered > 0 && FD_ISSET(0, &in)) {
            char line[64];
            if (read(0, line, sizeof line) <= 0)
                break;
            report();
        }
        if (answered > 0 && FD_ISSET(sock, &in)) {
            socklen_t length = sizeof peer;
            ssize_t got;
            int n = 0;

            while (n++ < 16
                   && (got = recvfrom(sock, buffer, sizeof buffer - 1, 0, (struct sockaddr *)&peer, &length)) > 0) {
                buffer[got] = '\0';
                take(buffer, (size_t)got);
            }
        }
        turn();
    }
    return 0;
}
