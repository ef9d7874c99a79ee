/* REGISTERs from many users, faster than sipp makes them, with response times in microseconds.
 *
 *   reg_load PORT OWN-PORT FROM TO CSEQ SECONDS OUTSTANDING RATE [PASSWORD-PREFIX]
 *
 * It sends from OWN-PORT, which the contacts name: another one would make other contacts. Users FROM to TO - 1 take turns, each with a Call-ID of its own; the CSeq of round n is CSEQ + n (2n with digest), so it
 * rises for every address-of-record as long as the next run begins above. SECONDS 0: one round, then it ends. RATE 0: as
 * fast as answers come, with OUTSTANDING requests under way; else RATE calls a second, however many are under way (at
 * most OUTSTANDING: a call that finds no room is lost, as is one without an answer for 2 s). Nothing is sent twice.
 *
 * REG_LOAD_SHUFFLED=1 in the environment: users do not come one after the other but spread over all of them, as phones do.
 * REG_LOAD_QUERY=1: requests without a contact, which ask for the bindings that stand.
 *
 * With PASSWORD-PREFIX a call is a pair: REGISTER, 401, REGISTER with credentials (MD5, qop=auth), 200; the password of a
 * user is the prefix and its name. Other answers than these are counted as refused.
 *
 *   reg_load serve PORT      answers what comes with 200 and no look at it, until it is killed: what the system alone costs
 *
 * Sizes: address-of-record 24 bytes, contact 60, Call-ID 32, User-Agent 24. Prints one line:
 *   calls N seconds S rate R lost N refused N p50_us N p99_us N first_bad LINE cseq N
 */
#include "bare.h"
#include <osipparser2/osip_md5.h>
#include <poll.h>

#define DOMAIN "bench.example.t"
#define SLOTS 65536
#define ROOM 1400
#define GIVE_UP 2.0
#define ORDER (1u << 20) /* more than are begun within GIVE_UP */

struct slot {
    double sent;
    unsigned user, cseq;
    unsigned short turn; /* told in the branch, so that an answer that comes too late meets nobody */
    unsigned char under_way, second;
};

static struct slot slots[SLOTS];
static unsigned free_slots[SLOTS], free_count;
/* Slots in the order in which they were begun, to give up the oldest. */
static unsigned order[ORDER], order_head, order_count;
static unsigned short order_turn[ORDER];
static unsigned histogram[64 * 64]; /* 64 steps for each power of two */
static char (*ha1s)[33];
static char ha2[33];
static const char *prefix;
static unsigned from_user, to_user, user, cseq;
static unsigned long begun, calls, lost, refused;
static char first_bad[48] = "-";
static int port, shuffled, query;

/* osip's MD5 is what the machine that builds Partyline has anyway. */
static void md5_hex(const char *parts[], int count, char out[33]) {
    static const char digits[] = "0123456789abcdef";
    unsigned char sum[16];
    osip_MD5_CTX context;
    osip_MD5Init(&context);
    for (int i = 0; i < count; i++) {
        if (i > 0)
            osip_MD5Update(&context, (unsigned char *)":", 1);
        osip_MD5Update(&context, (unsigned char *)parts[i], (unsigned)strlen(parts[i]));
    }
    osip_MD5Final(sum, &context);
    for (int i = 0; i < 16; i++) {
        out[2 * i] = digits[sum[i] >> 4];
        out[2 * i + 1] = digits[sum[i] & 15];
    }
    out[32] = 0;
}

static void prepare_digest(void) {
    ha1s = malloc((size_t)(to_user - from_user) * sizeof *ha1s);
    if (ha1s == NULL)
        die("memory");
    const char *two[] = {"REGISTER", "sip:" DOMAIN};
    md5_hex(two, 2, ha2);
    for (unsigned u = from_user; u < to_user; u++) {
        char name[16], password[80];
        snprintf(name, sizeof name, "u%07u", u);
        snprintf(password, sizeof password, "%s%s", prefix, name);
        const char *three[] = {name, DOMAIN, password};
        md5_hex(three, 3, ha1s[u - from_user]);
    }
}

static int message(char *out, unsigned at, const char *nonce, int nonce_len) {
    struct slot *s = &slots[at];
    char credentials[600] = "";
    if (nonce != NULL) {
        char response[33], text[200];
        if (nonce_len >= (int)sizeof text)
            return 0;
        memcpy(text, nonce, (size_t)nonce_len);
        text[nonce_len] = 0;
        const char *six[] = {ha1s[s->user - from_user], text, "00000001", "0a4f113b", "auth", ha2};
        md5_hex(six, 6, response);
        snprintf(credentials, sizeof credentials,
                 "Authorization: Digest username=\"u%07u\", realm=\"" DOMAIN "\", nonce=\"%s\", uri=\"sip:" DOMAIN
                 "\", qop=auth, nc=00000001, cnonce=\"0a4f113b\", response=\"%s\", algorithm=MD5\r\n",
                 s->user, text, response);
    }
    char contact[100] = "";
    if (!query)
        snprintf(contact, sizeof contact, "Contact: <sip:u%07u@127.0.0.1:%05d;transport=udp;line=0123456789ab>\r\nExpires: 3600\r\n", s->user, port);
    return snprintf(out, ROOM,
                    "REGISTER sip:" DOMAIN " SIP/2.0\r\n"
                    "Via: SIP/2.0/UDP 127.0.0.1:%05d;branch=z9hG4bK%04x%04x%d;rport\r\n"
                    "Max-Forwards: 70\r\n"
                    "From: <sip:u%07u@" DOMAIN ">;tag=%08x\r\n"
                    "To: <sip:u%07u@" DOMAIN ">\r\n"
                    "Call-ID: 5f8d3c2b1a097%07u@client-host\r\n"
                    "CSeq: %u REGISTER\r\n"
                    "%s"
                    "User-Agent: Bench Phone 1.0 (abcdef)\r\n"
                    "%s"
                    "Content-Length: 0\r\n\r\n",
                    port, at, s->turn, s->second, s->user, s->user, s->user, s->user, s->cseq, contact, credentials);
}

static void step_user(void) {
    if (++user == to_user) {
        user = from_user;
        cseq += prefix ? 2 : 1;
    }
}

static unsigned begin(double at) {
    unsigned i = free_slots[--free_count];
    struct slot *s = &slots[i];
    /* The multiplier is a prime above the number of users: each of them comes once in a round. */
    s->user = shuffled ? from_user + (unsigned)((user - from_user) * 2654435761ul % (to_user - from_user)) : user;
    s->cseq = cseq;
    s->turn++;
    s->under_way = 1;
    s->second = 0;
    s->sent = at;
    unsigned tail = (order_head + order_count) % ORDER;
    order[tail] = i;
    order_turn[tail] = s->turn;
    order_count++;
    begun++;
    step_user();
    return i;
}

static void end(unsigned i) {
    slots[i].under_way = 0;
    free_slots[free_count++] = i;
}

/* Forgets from the head of the order what has ended; gives up what is too old. */
static void tidy(double at) {
    while (order_count > 0) {
        struct slot *s = &slots[order[order_head]];
        int mine = s->under_way && s->turn == order_turn[order_head];
        if (mine && at - s->sent < GIVE_UP)
            return;
        if (mine) {
            lost++;
            end(order[order_head]);
        }
        order_head = (order_head + 1) % ORDER;
        order_count--;
    }
}

static void record(double seconds) {
    unsigned us = (unsigned)(seconds * 1e6);
    unsigned power = us < 64 ? 0 : 26 - (unsigned)__builtin_clz(us); /* us >> power lies below 64 */
    histogram[power * 64 + (us >> power)]++;
}

static double percentile(double share) {
    unsigned long sum = 0, seen = 0;
    for (int i = 0; i < 64 * 64; i++)
        sum += histogram[i];
    for (int i = 0; i < 64 * 64; i++) {
        seen += histogram[i];
        if (sum > 0 && (double)seen >= share * (double)sum)
            return (double)((unsigned long)(i % 64 + 1) << (i / 64));
    }
    return -1;
}

/* What an answer leads to: 1 when a second request is to be sent from slot *at. */
static int answered(char *text, int len, double at, unsigned *which, const char **nonce, int *nonce_len) {
    text[len] = 0;
    char *branch = strstr(text, "z9hG4bK");
    unsigned i = 0, turn = 0, second = 0;
    if (branch == NULL || sscanf(branch + 7, "%4x%4x%1u", &i, &turn, &second) != 3 || i >= SLOTS)
        return 0;
    struct slot *s = &slots[i];
    if (!s->under_way || s->turn != turn || s->second != second)
        return 0;
    if (memcmp(text, "SIP/2.0 200", 11) == 0) {
        calls++;
        record(at - s->sent);
    } else if (prefix && !s->second && memcmp(text, "SIP/2.0 401", 11) == 0 && (*nonce = strstr(text, "nonce=\""))) {
        *nonce += 7;
        *nonce_len = (int)strcspn(*nonce, "\"");
        s->second = 1;
        s->cseq++;
        *which = i;
        return 1;
    } else {
        refused++;
        if (first_bad[0] == '-') {
            snprintf(first_bad, sizeof first_bad, "%.*s", (int)strcspn(text, "\r"), text);
            for (char *c = first_bad; *c; c++)
                if (*c == ' ')
                    *c = '_';
        }
    }
    end(i);
    return 0;
}

/* The request comes back as its own answer, but for the start line. */
static void serve(int own_port) {
    static char in[BATCH][4096];
    static const char status[] = "SIP/2.0 200 OK\r\n";
    struct mmsghdr got[BATCH];
    struct iovec iov[BATCH][2];
    struct sockaddr_in self = loopback(own_port), from[BATCH];
    int s = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), size = 4 << 20;
    if (s < 0 || bind(s, (struct sockaddr *)&self, sizeof self) < 0)
        die("bind");
    setsockopt(s, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    puts("ready");
    fflush(stdout);
    for (;;) {
        memset(got, 0, sizeof got);
        for (int i = 0; i < BATCH; i++) {
            iov[i][0].iov_base = in[i];
            iov[i][0].iov_len = sizeof in[i];
            got[i].msg_hdr.msg_iov = iov[i];
            got[i].msg_hdr.msg_iovlen = 1;
            got[i].msg_hdr.msg_name = &from[i];
            got[i].msg_hdr.msg_namelen = sizeof from[i];
        }
        int n = recvmmsg(s, got, BATCH, MSG_DONTWAIT, NULL);
        struct pollfd p = {s, POLLIN, 0};
        if (n <= 0) {
            poll(&p, 1, -1);
            continue;
        }
        for (int i = 0; i < n; i++) {
            char *line = memchr(in[i], '\n', got[i].msg_len);
            size_t skip = line ? (size_t)(line + 1 - in[i]) : 0;
            iov[i][1].iov_base = in[i] + skip;
            iov[i][1].iov_len = got[i].msg_len - skip;
            iov[i][0].iov_base = (char *)status;
            iov[i][0].iov_len = sizeof status - 1;
            got[i].msg_hdr.msg_iovlen = 2;
        }
        for (int done = 0; done < n;) {
            int r = sendmmsg(s, got + done, (unsigned)(n - done), 0);
            done += r > 0 ? r : 0;
        }
    }
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "serve") == 0)
        serve(atoi(argv[2]));
    if (argc < 9)
        return fprintf(stderr, "usage: reg_load PORT OWN-PORT FROM TO CSEQ SECONDS OUTSTANDING RATE [PASSWORD-PREFIX]\n"), 2;
    struct sockaddr_in to = loopback(atoi(argv[1])), own = loopback(atoi(argv[2]));
    from_user = user = (unsigned)atoi(argv[3]);
    to_user = (unsigned)atoi(argv[4]);
    cseq = (unsigned)strtoul(argv[5], NULL, 10);
    double seconds = atof(argv[6]), rate = atof(argv[8]);
    unsigned most = (unsigned)atoi(argv[7]);
    prefix = argc > 9 ? argv[9] : NULL;
    shuffled = getenv("REG_LOAD_SHUFFLED") != NULL;
    query = getenv("REG_LOAD_QUERY") != NULL;
    if (to_user <= from_user || to_user > 10000000 || most == 0 || most > SLOTS)
        return fprintf(stderr, "reg_load: users or OUTSTANDING out of bounds\n"), 2;
    unsigned long one_round = to_user - from_user, goal = seconds > 0 ? ~0ul : one_round;
    if (prefix)
        prepare_digest();

    int s = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), size = 8 << 20;
    if (s < 0)
        die("socket");
    /* Root has more than net.core.rmem_max; others get what there is. */
    if (setsockopt(s, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) < 0)
        setsockopt(s, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    socklen_t own_len = sizeof own;
    if (bind(s, (struct sockaddr *)&own, sizeof own) < 0 || getsockname(s, (struct sockaddr *)&own, &own_len) < 0 ||
        connect(s, (struct sockaddr *)&to, sizeof to) < 0)
        die("connect");
    port = ntohs(own.sin_port);

    static char in[BATCH][4096], out[BATCH][ROOM];
    struct mmsghdr got[BATCH], sent[BATCH];
    struct iovec in_iov[BATCH], out_iov[BATCH];
    memset(got, 0, sizeof got);
    memset(sent, 0, sizeof sent);
    for (int i = 0; i < BATCH; i++) {
        in_iov[i].iov_base = in[i];
        in_iov[i].iov_len = sizeof in[i] - 1;
        got[i].msg_hdr.msg_iov = &in_iov[i];
        got[i].msg_hdr.msg_iovlen = 1;
        out_iov[i].iov_base = out[i];
        sent[i].msg_hdr.msg_iov = &out_iov[i];
        sent[i].msg_hdr.msg_iovlen = 1;
    }
    for (unsigned i = 0; i < SLOTS; i++)
        free_slots[free_count++] = SLOTS - 1 - i;

    double start = now(), at = start, last = start;
    for (;;) {
        unsigned under_way = SLOTS - free_count;
        int over = begun >= goal || (seconds > 0 && at - start >= seconds);
        if (over && under_way == 0)
            break;
        int filled = 0;
        /* Answers first: those of a pair's first request begin its second. */
        int n = recvmmsg(s, got, BATCH, MSG_DONTWAIT, NULL);
        at = now();
        for (int i = 0; i < n; i++) {
            unsigned which;
            const char *nonce;
            int nonce_len;
            if (answered(in[i], (int)got[i].msg_len, at, &which, &nonce, &nonce_len)) {
                out_iov[filled].iov_len = (size_t)message(out[filled], which, nonce, nonce_len);
                filled++;
            }
            last = at;
        }
        tidy(at);
        unsigned long due = rate > 0 ? (unsigned long)((at - start) * rate) : ~0ul;
        while (filled < BATCH && !over && begun < goal && begun < due) {
            if (SLOTS - free_count >= most) {
                if (rate > 0) {
                    /* The load does not wait for the server. */
                    begun++;
                    lost++;
                    step_user();
                    continue;
                }
                break;
            }
            unsigned i = begin(at);
            out_iov[filled].iov_len = (size_t)message(out[filled], i, NULL, 0);
            filled++;
        }
        for (int done = 0; done < filled;) {
            int r = sendmmsg(s, sent + done, (unsigned)(filled - done), 0);
            if (r < 0 && errno != EAGAIN && errno != EINTR && errno != ECONNREFUSED)
                die("sendmmsg");
            done += r > 0 ? r : 0;
        }
        if (n <= 0 && filled == 0) {
            struct pollfd p = {s, POLLIN, 0};
            poll(&p, 1, 1);
            at = now();
        }
    }
    /* The wait for what was lost is not part of the time. */
    double took = (seconds > 0 && last - start > seconds ? last : (seconds > 0 ? start + seconds : last)) - start;
    printf("calls %lu seconds %.3f rate %.0f lost %lu refused %lu p50_us %.0f p99_us %.0f first_bad %s cseq %u\n", calls, took,
           (double)calls / (took > 0 ? took : 1), lost, refused, percentile(0.50), percentile(0.99), first_bad, cseq + 2);
    return 0;
}
