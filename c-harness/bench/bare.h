/* What the bare loops share: the message sizes, the quit word, and what a run prints. */
#ifndef PARTYLINE_BENCH_BARE_H
#define PARTYLINE_BENCH_BARE_H

#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <arpa/inet.h>
#include <time.h>
#include <unistd.h>

/* A REGISTER as sipp sends it, and its 200, as measured (shared/benchmarks.md). */
#define ASK 465
#define ANSWER 346
#define BATCH 64
#define QUIT "QUIT"

static void die(const char *what) {
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* One line: messages, CPU microseconds per message, and what of it was in the kernel. */
__attribute__((unused)) static void report(const char *name, unsigned long messages) {
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    double user = (double)use.ru_utime.tv_sec + (double)use.ru_utime.tv_usec / 1e6;
    double kernel = (double)use.ru_stime.tv_sec + (double)use.ru_stime.tv_usec / 1e6;
    printf("%s messages %lu cpu_us_per_message %.3f user %.3f kernel %.3f\n", name, messages,
           (user + kernel) * 1e6 / (double)messages, user * 1e6 / (double)messages, kernel * 1e6 / (double)messages);
}

__attribute__((unused)) static struct sockaddr_in loopback(int port) {
    struct sockaddr_in a;
    memset(&a, 0, sizeof a);
    a.sin_family = AF_INET;
    a.sin_port = htons((unsigned short)port);
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return a;
}

/* A request whose Content-Length is 0, padded to ASK bytes. */
__attribute__((unused)) static void make_request(char *out) {
    const char *head = "REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:5070;rport;branch=z9hG4bK-1-2-3\r\n"
                       "From: <sip:user@example.com>;tag=1\r\nTo: <sip:user@example.com>\r\nCall-ID: 1-2@127.0.0.1\r\n"
                       "CSeq: 1 REGISTER\r\nContact: <sip:user@127.0.0.1:5070>\r\nMax-Forwards: 70\r\nExpires: 3600\r\n"
                       "Content-Length: 0\r\nUser-Agent: ";
    size_t len = strlen(head);
    memcpy(out, head, len);
    memset(out + len, 'x', ASK - 4 - len);
    memcpy(out + ASK - 4, "\r\n\r\n", 4);
}

#endif
