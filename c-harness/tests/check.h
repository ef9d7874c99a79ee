/* What the C tests share: a check that names its place, and a tiny SIP client on UDP and TCP. */
#ifndef PARTYLINE_TESTS_CHECK_H
#define PARTYLINE_TESTS_CHECK_H

#define _GNU_SOURCE
#include "portable.h"

#include <partyline.h>

#define CHECK(condition)                                                                                              \
    do {                                                                                                              \
        if (!(condition)) {                                                                                           \
            fprintf(stderr, "%s:%d: %s: not true (last error: %s)\n", __FILE__, __LINE__, #condition,                 \
                    partyline_last_error());                                                                          \
            exit(1);                                                                                                  \
        }                                                                                                             \
    } while (0)

#define CHECK_CODE(call, code)                                                                                        \
    do {                                                                                                              \
        int check_got = (call);                                                                                       \
        if (check_got != (code)) {                                                                                    \
            fprintf(stderr, "%s:%d: %s gave %d (%s), not %d (last error: %s)\n", __FILE__, __LINE__, #call, check_got, \
                    partyline_strerror(check_got), (code), partyline_last_error());                                   \
            exit(1);                                                                                                  \
        }                                                                                                             \
    } while (0)

#define OK(call) CHECK_CODE(call, PARTYLINE_OK)

/* A socket on 127.0.0.1 (SOCK_DGRAM: UDP, SOCK_STREAM: TCP), connected to `port`. */
static inline int client_connect(int type, uint16_t port)
{
    int fd = socket(AF_INET, type, 0), on = 1;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK(fd >= 0);
    CHECK(connect(fd, (struct sockaddr *)&to, sizeof to) == 0);
    if (type == SOCK_STREAM) /* what is sent in pieces arrives in pieces */
        CHECK(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0);
    return fd;
}

static inline int client_socket(uint16_t port)
{
    return client_connect(SOCK_DGRAM, port);
}

static inline void client_send(int fd, const char *text, size_t length)
{
    CHECK(send(fd, text, length, 0) == (ssize_t)length);
}

/* All of `length` bytes; less when the stream ends before. Not MSG_WAITALL, which Wine 8 does not know. */
static inline size_t receive_all(int fd, char *into, size_t length)
{
    size_t got = 0;
    while (got < length) {
        ssize_t more = recv(fd, into + got, length - got, 0);
        if (more <= 0)
            break;
        got += (size_t)more;
    }
    return got;
}

/* One message of a TCP connection, byte by byte up to its body: what follows it stays in the socket. 0: the end. */
static inline ssize_t stream_receive(int fd, char *into, size_t capacity, int ms)
{
    size_t length = 0, body = 0;
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    while (length < 4 || memcmp(into + length - 4, "\r\n\r\n", 4) != 0) {
        CHECK(length + 1 < capacity);
        if (poll(&wait, 1, ms) != 1 || recv(fd, into + length, 1, 0) != 1)
            return length == 0 ? 0 : -1;
        into[++length] = 0;
    }
    const char *field = strcasestr(into, "\r\nContent-Length:");
    CHECK(field != NULL);
    body = strtoul(field + 17, NULL, 10);
    CHECK(length + body < capacity);
    if (body > 0 && receive_all(fd, into + length, body) != body)
        return -1;
    return (ssize_t)(length + body);
}

/* The next datagram or message within `ms` milliseconds, with a NUL at its end; its length, or -1. */
static inline int client_receive(int fd, char *into, size_t capacity, int ms)
{
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    if (poll(&wait, 1, ms) != 1)
        return -1;
    int type = 0;
    CHECK(getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &(socklen_t){sizeof type}) == 0);
    ssize_t got = type == SOCK_STREAM ? stream_receive(fd, into, capacity, ms) : recv(fd, into, capacity - 1, 0);
    if (got < 0)
        return -1;
    into[got] = 0;
    return (int)got;
}

static inline int status_of(const char *response)
{
    int status = 0;
    return sscanf(response, "SIP/2.0 %d ", &status) == 1 ? status : -1;
}

/* A REGISTER (or another method) of `user`; `contact` NULL: none; `extra`: more header lines, each ending in CRLF. */
static inline int request(char *into, size_t capacity, const char *method, const char *user, const char *call_id,
                          unsigned cseq, const char *contact, const char *extra)
{
    int length = snprintf(into, capacity,
                          "%s sip:example.test SIP/2.0\r\n"
                          "Via: SIP/2.0/UDP 127.0.0.1:9;branch=z9hG4bK%s%u;rport\r\n"
                          "From: <sip:%s@example.test>;tag=%s\r\n"
                          "To: <sip:%s@example.test>\r\n"
                          "Call-ID: %s\r\n"
                          "CSeq: %u %s\r\n"
                          "Max-Forwards: 70\r\n"
                          "%s%s%s%s"
                          "Content-Length: 0\r\n\r\n",
                          method, call_id, cseq, user, call_id, user, call_id, cseq, method, contact ? "Contact: " : "",
                          contact ? contact : "", contact ? "\r\n" : "", extra ? extra : "");
    CHECK(length > 0 && (size_t)length < capacity);
    return length;
}

/* Sends it and waits up to 5 s for the answer, which is left in `into`; the answer's status. */
static inline int ask(int fd, char *into, size_t capacity, const char *method, const char *user, const char *call_id,
                      unsigned cseq, const char *contact, const char *extra)
{
    int length = request(into, capacity, method, user, call_id, cseq, contact, extra);
    client_send(fd, into, (size_t)length);
    CHECK(client_receive(fd, into, capacity, 5000) > 0);
    return status_of(into);
}

/* Waits up to 10 s until `*value` is at least `wanted`. */
static inline int reaches(atomic_int *value, int wanted)
{
    for (int i = 0; i < 10000 && atomic_load(value) < wanted; i++)
        usleep(1000);
    return atomic_load(value) >= wanted;
}

#endif
