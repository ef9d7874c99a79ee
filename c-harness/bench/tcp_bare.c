/* The least that answering on TCP connections can cost: epoll (edge-triggered), read, write, no framing: each ASK bytes
 * are one request.
 *
 *   tcp_bare serve PORT                      answers until a connection sends the quit word, then prints its cost
 *   tcp_bare load PORT SECONDS CONNECTIONS   one outstanding request on each, prints the rate, tells the server to quit */
#include "bare.h"
#include <fcntl.h>
#include <sys/epoll.h>

static void nonblocking(int fd) {
    int one = 1;
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static void watch(int ep, int fd) {
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.fd = fd};
    if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) < 0)
        die("epoll_ctl");
}

static void serve(int port) {
    static char in[8192], out[(sizeof in / ASK + 1) * ANSWER];
    /* Bytes of an unfinished request, by descriptor. */
    static int part[1 << 16];
    struct sockaddr_in self = loopback(port);
    struct epoll_event e[256];
    unsigned long messages = 0;
    int s = socket(AF_INET, SOCK_STREAM, 0), one = 1, ep = epoll_create1(0);
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (s < 0 || bind(s, (struct sockaddr *)&self, sizeof self) < 0 || listen(s, 1024) < 0)
        die("listen");
    nonblocking(s);
    watch(ep, s);
    memset(out, 'a', sizeof out);
    for (;;) {
        int n = epoll_wait(ep, e, 256, -1);
        for (int i = 0; i < n; i++) {
            int fd = e[i].data.fd;
            if (fd == s) {
                while ((fd = accept(s, NULL, NULL)) >= 0) {
                    nonblocking(fd);
                    part[fd] = 0;
                    watch(ep, fd);
                }
                continue;
            }
            if (!(e[i].events & ~(unsigned)EPOLLOUT))
                continue;
            for (;;) {
                ssize_t r = read(fd, in, sizeof in);
                if (r >= (ssize_t)sizeof QUIT - 1 && !memcmp(in, QUIT, sizeof QUIT - 1)) {
                    report("tcp_bare", messages);
                    return;
                }
                if (r == 0 || (r < 0 && errno != EAGAIN)) {
                    close(fd);
                    break;
                }
                if (r < 0)
                    break;
                int whole = (part[fd] + (int)r) / ASK;
                part[fd] = (part[fd] + (int)r) % ASK;
                if (whole && write(fd, out, (size_t)whole * ANSWER) < 0)
                    die("write");
                messages += (unsigned long)whole;
                if (r < (ssize_t)sizeof in && !(e[i].events & EPOLLRDHUP))
                    break;
            }
        }
    }
}

static void load(int port, double seconds, int connections) {
    static char request[ASK], in[8192];
    static int got[1 << 16];
    struct sockaddr_in to = loopback(port);
    struct epoll_event e[256];
    unsigned long messages = 0;
    int ep = epoll_create1(0);
    make_request(request);
    for (int i = 0; i < connections; i++) {
        int s = socket(AF_INET, SOCK_STREAM, 0);
        struct epoll_event in_only = {.events = EPOLLIN, .data.fd = s};
        if (s < 0 || connect(s, (struct sockaddr *)&to, sizeof to) < 0)
            die("connect");
        nonblocking(s);
        epoll_ctl(ep, EPOLL_CTL_ADD, s, &in_only);
        if (write(s, request, ASK) != ASK)
            die("write");
    }
    double start = now();
    while (now() - start < seconds) {
        int n = epoll_wait(ep, e, 256, 1000);
        for (int i = 0; i < n; i++) {
            int fd = e[i].data.fd;
            ssize_t r = read(fd, in, sizeof in);
            if (r == 0 || (r < 0 && errno != EAGAIN))
                die("the server closed a connection");
            if (r < 0)
                continue;
            got[fd] += (int)r;
            if (got[fd] >= ANSWER) {
                got[fd] -= ANSWER;
                messages++;
                if (write(fd, request, ASK) != ASK)
                    die("write");
            }
        }
    }
    printf("load messages %lu per_second %.0f\n", messages, (double)messages / (now() - start));
    /* A whole message, so that a server that frames sees it too. */
    static const char bye[] = QUIT " sip:bye SIP/2.0\r\nl: 0\r\n\r\n";
    int s = socket(AF_INET, SOCK_STREAM, 0);
    if (s < 0 || connect(s, (struct sockaddr *)&to, sizeof to) < 0 || send(s, bye, sizeof bye - 1, 0) < 0)
        die("quit");
    if (read(s, in, 1) < 0)
        die("quit");
}

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "serve"))
        serve(atoi(argv[2]));
    else if (argc == 5 && !strcmp(argv[1], "load"))
        load(atoi(argv[2]), atof(argv[3]), atoi(argv[4]));
    else
        return fprintf(stderr, "usage: tcp_bare serve PORT | load PORT SECONDS CONNECTIONS\n"), 2;
    return 0;
}
