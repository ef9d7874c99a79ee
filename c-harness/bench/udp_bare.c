/* The least that answering datagrams can cost: poll, recvmmsg, sendmmsg, nothing else.
 *
 *   udp_bare serve PORT               answers until it is told to quit, then prints its cost
 *   udp_bare load PORT SECONDS OUT    keeps OUT requests outstanding, prints the rate, tells the server to quit
 *
 * examples/net_echo.rs serves the same way through partyline's net, for the comparison. */
#include "bare.h"
#include <poll.h>

static void serve(int port) {
    static char in[BATCH][2048], out[ANSWER];
    struct mmsghdr got[BATCH], sent[BATCH];
    struct iovec iov[BATCH], answer = {out, ANSWER};
    struct sockaddr_in from[BATCH], self = loopback(port);
    unsigned long messages = 0;
    int s = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), size = 4 << 20;
    if (s < 0 || bind(s, (struct sockaddr *)&self, sizeof self) < 0)
        die("bind");
    setsockopt(s, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    memset(out, 'a', sizeof out);
    memset(got, 0, sizeof got);
    memset(sent, 0, sizeof sent);
    for (int i = 0; i < BATCH; i++) {
        iov[i].iov_base = in[i];
        iov[i].iov_len = sizeof in[i];
        got[i].msg_hdr.msg_iov = &iov[i];
        got[i].msg_hdr.msg_iovlen = 1;
        got[i].msg_hdr.msg_name = &from[i];
        got[i].msg_hdr.msg_namelen = sizeof from[i];
        sent[i].msg_hdr.msg_iov = &answer;
        sent[i].msg_hdr.msg_iovlen = 1;
        sent[i].msg_hdr.msg_name = &from[i];
        sent[i].msg_hdr.msg_namelen = sizeof from[i];
    }
    for (;;) {
        struct pollfd p = {s, POLLIN, 0};
        int n = recvmmsg(s, got, BATCH, MSG_DONTWAIT, NULL);
        if (n < 0) {
            poll(&p, 1, -1);
            continue;
        }
        for (int i = 0; i < n; i++) {
            if (got[i].msg_len == sizeof QUIT - 1) {
                report("udp_bare", messages);
                return;
            }
            got[i].msg_hdr.msg_namelen = sizeof from[i];
        }
        for (int done = 0; done < n;) {
            int r = sendmmsg(s, sent + done, (unsigned)(n - done), MSG_NOSIGNAL);
            if (r < 0 && errno != EAGAIN && errno != EINTR)
                die("sendmmsg");
            done += r > 0 ? r : 0;
        }
        messages += (unsigned long)n;
    }
}

static void load(int port, double seconds, int outstanding) {
    static char in[BATCH][2048], request[ASK];
    struct mmsghdr got[BATCH], sent[BATCH];
    struct iovec iov[BATCH], ask = {request, ASK};
    struct sockaddr_in to = loopback(port);
    unsigned long messages = 0, lost = 0;
    int s = socket(AF_INET, SOCK_DGRAM, 0), flying = 0;
    struct timeval limit = {0, 200000};
    double start = now();
    if (s < 0 || connect(s, (struct sockaddr *)&to, sizeof to) < 0)
        die("connect");
    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    make_request(request);
    memset(got, 0, sizeof got);
    memset(sent, 0, sizeof sent);
    for (int i = 0; i < BATCH; i++) {
        iov[i].iov_base = in[i];
        iov[i].iov_len = sizeof in[i];
        got[i].msg_hdr.msg_iov = &iov[i];
        got[i].msg_hdr.msg_iovlen = 1;
        sent[i].msg_hdr.msg_iov = &ask;
        sent[i].msg_hdr.msg_iovlen = 1;
    }
    while (now() - start < seconds) {
        while (flying < outstanding) {
            int want = outstanding - flying < BATCH ? outstanding - flying : BATCH;
            int r = sendmmsg(s, sent, (unsigned)want, 0);
            if (r <= 0)
                die("sendmmsg");
            flying += r;
        }
        int n = recvmmsg(s, got, BATCH, MSG_WAITFORONE, NULL);
        if (n < 0) {
            lost += (unsigned long)flying;
            flying = 0;
            continue;
        }
        flying -= n;
        messages += (unsigned long)n;
    }
    printf("load messages %lu per_second %.0f lost %lu\n", messages, (double)messages / (now() - start), lost);
    send(s, QUIT, sizeof QUIT - 1, 0);
}

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "serve"))
        serve(atoi(argv[2]));
    else if (argc == 5 && !strcmp(argv[1], "load"))
        load(atoi(argv[2]), atof(argv[3]), atoi(argv[4]));
    else
        return fprintf(stderr, "usage: udp_bare serve PORT | load PORT SECONDS OUTSTANDING\n"), 2;
    return 0;
}
