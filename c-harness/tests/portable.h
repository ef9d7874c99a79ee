/* What the C tests use of the system, under its POSIX names: sockets, poll, close, usleep. Threads are mingw's pthread. */
#ifndef PARTYLINE_TESTS_PORTABLE_H
#define PARTYLINE_TESTS_PORTABLE_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <winsock2.h>
#include <ws2tcpip.h>

#define SHUT_WR SD_SEND
#define poll(fds, count, ms) WSAPoll(fds, count, ms)
/* Whatever these tests close is a socket. */
#define close(fd) closesocket(fd)
#define setsockopt(fd, level, name, value, size) setsockopt(fd, level, name, (const char *)(value), size)
#define getsockopt(fd, level, name, value, size) getsockopt(fd, level, name, (char *)(value), size)

static inline int was_refused(void)
{
    return WSAGetLastError() == WSAECONNREFUSED;
}

static inline char *strcasestr(const char *in, const char *what)
{
    size_t length = strlen(what);
    for (; *in; in++)
        if (strncasecmp(in, what, length) == 0)
            return (char *)in;
    return NULL;
}

static inline void *memmem(const void *in, size_t length, const void *what, size_t size)
{
    for (const char *at = in; length >= size; at++, length--)
        if (memcmp(at, what, size) == 0)
            return (void *)at;
    return NULL;
}

__attribute__((constructor)) static void start_winsock(void)
{
    WSADATA data;
    if (WSAStartup(MAKEWORD(2, 2), &data) != 0)
        abort();
}
#else
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

static inline int was_refused(void)
{
    return errno == ECONNREFUSED;
}
#endif

#endif
