/* REGISTER requests at a fixed rate over loopback, each retransmitted by the timers of RFC 3261 until it is answered.
 *
 * osip_load PORT RATE SECONDS [MOST]: prints "sent N answered N lost N retransmitted N p50 US p99 US". Gives up as soon as
 * more than MOST were retransmitted: what does not hold need not be watched to the end. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct request {
    int64_t sent, due;
    int wait, done;
    int32_t late;
};

static int64_t now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

static int sock;
static unsigned tag;
static int own_port;

static void put(long n)
{
    char text[768];
    int length = snprintf(text, sizeof text,
                          "REGISTER sip:127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:%d;branch=z9hG4bK-%x-%ld;rport\r\n"
                          "Max-Forwards: 70\r\nFrom: <sip:user%ld@127.0.0.1>;tag=%lx\r\nTo: <sip:user%ld@127.0.0.1>\r\n"
                          "Call-ID: %ld-%x@127.0.0.1\r\nCSeq: 1 REGISTER\r\nContact: <sip:user%ld@127.0.0.1:5062>\r\n"
                          "Expires: 3600\r\nUser-Agent: bench\r\nContent-Length: 0\r\n\r\n",
                          own_port, tag, n, n % 10000, n, n % 10000, n, tag, n % 10000);

    if (send(sock, text, (size_t)length, 0) < 0) {
        /* A full buffer is what the retransmission is for. */
    }
}

static int by_value(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;

    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    int port = argc > 1 ? atoi(argv[1]) : 21600, room = 8 << 20;
    double rate = argc > 2 ? atof(argv[2]) : 1000, seconds = argc > 3 ? atof(argv[3]) : 10;
    long total = (long)(rate * seconds), next = 0, oldest = 0, answered = 0, repeated = 0;
    long most = argc > 4 ? atol(argv[4]) : total * 100;
    struct request *all = calloc((size_t)total + 1, sizeof *all);
    struct sockaddr_in own = { .sin_family = AF_INET }, to = { .sin_family = AF_INET, .sin_port = htons((unsigned short)port) };
    int64_t begin, end, scan = 0;
    static char buffer[65536];
    int32_t *late;

    tag = (unsigned)now();
    own.sin_addr.s_addr = to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    sock = socket(AF_INET, SOCK_DGRAM, 0);
    setsockopt(sock, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    if (bind(sock, (struct sockaddr *)&own, sizeof own) != 0 || connect(sock, (struct sockaddr *)&to, sizeof to) != 0) {
        perror("socket");
        return 1;
    }
    getsockname(sock, (struct sockaddr *)&own, &(socklen_t){ sizeof own });
    own_port = ntohs(own.sin_port);
    fcntl(sock, F_SETFL, O_NONBLOCK);
    begin = now();
    end = begin + (int64_t)(seconds * 1e6) + 5000000;
    while (answered < total && repeated <= most && now() < end) {
        int64_t at = now();
        long should = (long)((double)(at - begin) * rate / 1e6);
        struct pollfd in = { sock, POLLIN, 0 };
        ssize_t got;

        for (int burst = 0; next < total && next < should && burst < 32; next++, burst++) {
            put(next);
            all[next].sent = at;
            all[next].wait = 500000;
            all[next].due = at + 500000;
        }
        while ((got = recv(sock, buffer, sizeof buffer - 1, 0)) > 0) {
            char *mark;

            buffer[got] = '\0';
            mark = strstr(buffer, "branch=z9hG4bK-");
            if (mark && strncmp(buffer, "SIP/2.0 200", 11) == 0) {
                unsigned of = 0;
                long n = -1;
                if (sscanf(mark + 15, "%x-%ld", &of, &n) == 2 && of == tag && n >= 0 && n < next && !all[n].done) {
                    all[n].done = 1;
                    all[n].late = (int32_t)(now() - all[n].sent);
                    answered++;
                }
            }
        }
        if (at > scan) {
            while (oldest < next && all[oldest].done)
                oldest++;
            for (long n = oldest; n < next && all[n].sent + 500000 <= at; n++)
                if (!all[n].done && all[n].due <= at) {
                    put(n);
                    repeated++;
                    all[n].wait = all[n].wait * 2 > 4000000 ? 4000000 : all[n].wait * 2;
                    all[n].due = at + all[n].wait;
                }
            scan = at + 20000;
        }
        if (next >= should || next == total)
            poll(&in, 1, 1);
    }
    late = malloc(sizeof *late * (size_t)(answered + 1));
    answered = 0;
    for (long n = 0; n < next; n++)
        if (all[n].done)
            late[answered++] = all[n].late;
    qsort(late, (size_t)answered, sizeof *late, by_value);
    printf("sent %ld answered %ld lost %ld retransmitted %ld p50 %d p99 %d\n", next, answered, next - answered, repeated,
           answered ? late[answered / 2] : 0, answered ? late[answered * 99 / 100] : 0);
    free(late);
    free(all);
    return next == answered && next == total ? 0 : 2;
}
