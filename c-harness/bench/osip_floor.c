/* What a registrar's system calls cost without a registrar: the same select loop as osip_registrar.c, an answer of the same
 * length to each datagram, and a wake-up for each "transaction" that ends; no osip2 and nothing else in it. What the figure
 * is below osip_registrar's is what osip2, Partyline and the program spend themselves.
 *
 * osip_floor PORT [J]: arguments and output as of osip_registrar. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define MOST (1u << 20)

/* When each ends, oldest first. */
static int64_t ends[MOST];
static unsigned first, next;

static int64_t now(void)
{
    struct timeval tv;

    gettimeofday(&tv, NULL);
    return (int64_t)tv.tv_sec * 1000000 + tv.tv_usec;
}

static void report(unsigned requests)
{
    struct rusage use;

    getrusage(RUSAGE_SELF, &use);
    printf("cpu %lld requests %u again 0 alive %u rss 0\n",
           (long long)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) * 1000000 + use.ru_utime.tv_usec + use.ru_stime.tv_usec,
           requests, next - first);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(argc > 1 ? (unsigned short)atoi(argv[1]) : 21600) };
    int sock = socket(AF_INET, SOCK_DGRAM, 0), room = 8 << 20, answered;
    int64_t length = (argc > 2 && atoi(argv[2]) > 0 ? atoi(argv[2]) : 32000) * (int64_t)1000;
    static char buffer[65536], answer[65536 + 32] = "SIP/2.0 200 OK\r\n";

    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(sock, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    if (bind(sock, (struct sockaddr *)&at, sizeof at) != 0) {
        perror("bind");
        return 1;
    }
    fcntl(sock, F_SETFL, O_NONBLOCK);
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        int64_t left = first == next ? 1000000 : ends[first % MOST] - now();
        struct timeval wait = { left >= 1000000, left >= 1000000 || left < 0 ? 0 : left };
        fd_set in;

        FD_ZERO(&in);
        FD_SET(sock, &in);
        FD_SET(0, &in);
        answered = select(sock + 1, &in, NULL, NULL, &wait);
        if (answered > 0 && FD_ISSET(0, &in)) {
            if (read(0, buffer, sizeof buffer) <= 0)
                break;
            report(next);
        }
        if (answered > 0 && FD_ISSET(sock, &in)) {
            struct sockaddr_in peer;
            socklen_t size = sizeof peer;
            ssize_t got;
            int n = 0;

            while (n++ < 16 && (got = recvfrom(sock, buffer, sizeof buffer - 1, 0, (struct sockaddr *)&peer, &size)) > 0) {
                char *rest;

                buffer[got] = '\0';
                rest = strstr(buffer, "\r\n");
                if (!rest)
                    continue;
                memcpy(answer + 16, rest + 2, (size_t)(buffer + got - rest - 2));
                sendto(sock, answer, 16 + (size_t)(buffer + got - rest - 2), 0, (struct sockaddr *)&peer, sizeof peer);
                ends[next++ % MOST] = now() + length;
            }
        }
        while (first != next && ends[first % MOST] <= now())
            first++;
    }
    return 0;
}
