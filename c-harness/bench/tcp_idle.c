/* Many TCP connections that are mostly idle, and a steady rate of messages among them.
 *
 *   tcp_idle PORT CONNECTIONS RATE SECONDS PID
 *
 * Opens the connections (from 127.0.0.1, .2, ... 20,000 each), one request on each; then sends RATE requests a second over
 * connections chosen at random. A response time runs from when its request was due, not from when it was sent. PID is the
 * server's: how much memory of its own it has before and after. The last message is the quit word. */
#include "bare.h"
#include <fcntl.h>
#include <sys/epoll.h>

#define PER_SOURCE 20000
#define AT_ONCE 256
#define SLOWEST 1000000

static int *fds, *got;
static double *due;
static unsigned histogram[SLOWEST + 1];
static char request[ASK];

/* The server's own memory in bytes: anonymous pages, which a page of a file shared with others is not. */
static double memory(int pid) {
    char path[64], line[256];
    double kilobytes = -1;
    snprintf(path, sizeof path, "/proc/%d/smaps_rollup", pid);
    FILE *f = fopen(path, "r");
    if (!f)
        die(path);
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "Anonymous: %lf", &kilobytes) == 1)
            break;
    fclose(f);
    return kilobytes * 1024;
}

static int begin(int port, int number) {
    struct sockaddr_in to = loopback(port), from = loopback(0);
    int one = 1, s = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (s < 0)
        die("socket");
    from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + (unsigned)(number / PER_SOURCE));
    setsockopt(s, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (bind(s, (struct sockaddr *)&from, sizeof from) < 0)
        die("bind");
    if (connect(s, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS)
        die("connect");
    return s;
}

/* Reads what is there; 1 when the answer is complete. */
static int answered(int i) {
    char in[2048];
    ssize_t r = read(fds[i], in, sizeof in);
    if (r == 0 || (r < 0 && errno != EAGAIN))
        die("the server closed a connection");
    if (r > 0)
        got[i] += (int)r;
    if (got[i] < ANSWER)
        return 0;
    got[i] -= ANSWER;
    return 1;
}

static void ask(int i) {
    if (write(fds[i], request, ASK) != ASK)
        die("write");
}

static unsigned next_random(void) {
    static unsigned long long x = 88172645463325252ull;
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    return (unsigned)(x >> 16);
}

static double at(double share, unsigned long messages) {
    unsigned long seen = 0;
    for (int i = 0; i <= SLOWEST; i++)
        if ((seen += histogram[i]) >= share * (double)messages)
            return i / 1000.0;
    return SLOWEST / 1000.0;
}

int main(int argc, char **argv) {
    if (argc != 6)
        return fprintf(stderr, "usage: tcp_idle PORT CONNECTIONS RATE SECONDS PID\n"), 2;
    int port = atoi(argv[1]), count = atoi(argv[2]), pid = atoi(argv[5]);
    double rate = atof(argv[3]), seconds = atof(argv[4]);
    struct epoll_event e[256];
    int ep = epoll_create1(0), opened = 0, ready = 0, warm = count < 1000 ? count / 2 : 1000;
    fds = calloc((size_t)count, sizeof *fds);
    got = calloc((size_t)count, sizeof *got);
    due = calloc((size_t)count, sizeof *due);
    make_request(request);

    /* The first thousand have the server make what it keeps anyway (buffers, threads); they are not counted. */
    double before = 0, start = 0;
    while (ready < count) {
        if (ready == warm && opened == warm && start == 0) {
            before = memory(pid);
            start = now();
        }
        int most = start == 0 ? warm : count;
        while (opened < most && opened - ready < AT_ONCE) {
            struct epoll_event wanted = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.u32 = (unsigned)opened};
            fds[opened] = begin(port, opened);
            if (epoll_ctl(ep, EPOLL_CTL_ADD, fds[opened], &wanted) < 0)
                die("epoll_ctl");
            opened++;
        }
        int n = epoll_wait(ep, e, 256, 10000);
        if (n <= 0)
            return fprintf(stderr, "tcp_idle: nothing for 10 s, %d of %d are there\n", ready, count), 1;
        for (int k = 0; k < n; k++) {
            int i = (int)e[k].data.u32;
            if (due[i] == 0 && e[k].events & EPOLLOUT) {
                due[i] = 1;
                ask(i);
            }
            if (e[k].events & EPOLLIN)
                ready += answered(i);
        }
    }
    double took = now() - start, after = memory(pid);
    printf("idle connections %d bytes_each %.0f opened_per_second %.0f\n", count, (after - before) / (count - warm),
           (count - warm) / took);
    fflush(stdout);

    unsigned long sent = 0, messages = 0, busy = 0;
    memset(due, 0, (size_t)count * sizeof *due);
    start = now();
    while (messages < sent || now() - start < seconds) {
        double t = now() - start;
        while (t < seconds && (double)sent < t * rate) {
            int i = (int)(next_random() % (unsigned)count);
            if (due[i] != 0) {
                busy++;
                continue;
            }
            due[i] = start + (double)sent / rate;
            ask(i);
            sent++;
        }
        if (t > seconds + 10)
            return fprintf(stderr, "tcp_idle: %lu answers have not come\n", sent - messages), 1;
        int n = epoll_wait(ep, e, 256, 1);
        for (int k = 0; k < n; k++) {
            int i = (int)e[k].data.u32;
            if (due[i] == 0 || !(e[k].events & EPOLLIN) || !answered(i))
                continue;
            double micros = (now() - due[i]) * 1e6;
            histogram[micros < SLOWEST ? (int)micros : SLOWEST]++;
            due[i] = 0;
            messages++;
        }
    }
    printf("among messages %lu per_second %.0f p50_ms %.3f p99_ms %.3f p999_ms %.3f\n", messages,
           (double)messages / seconds, at(.5, messages), at(.99, messages), at(.999, messages));
    static const char bye[] = QUIT " sip:bye SIP/2.0\r\nl: 0\r\n\r\n";
    if (write(fds[0], bye, sizeof bye - 1) < 0)
        die("quit");
    return 0;
}
