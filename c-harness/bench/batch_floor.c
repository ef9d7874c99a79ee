/* What plain batches cost the database: refreshes of Kamailio's `location` in multi-row upserts, and nothing else.
 *
 *   batch_floor fill SOCKET DATABASE USERS               puts one row per user there
 *   batch_floor run SOCKET DATABASE USERS SECONDS CONNECTIONS     refreshes them, spread over all, 100 rows a statement
 *
 * Prepared statements, autocommit, rows of a batch in the order of the table, `id` given: what a program that does nothing
 * else would send. Rows are of the sizes of reg_load.c. Prints: rows N seconds S
 */
#define _GNU_SOURCE
#include <mysql.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BATCH 100
#define COLUMNS 13

static const char *socket_path, *database;
static unsigned long users, connections;
static double seconds;
static unsigned long done[64];

static void die(MYSQL *db, MYSQL_STMT *statement, const char *what) {
    fprintf(stderr, "batch_floor: %s: %s\n", what, statement ? mysql_stmt_error(statement) : db ? mysql_error(db) : "");
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static MYSQL *open_db(void) {
    MYSQL *db = mysql_init(NULL);
    if (db == NULL || !mysql_real_connect(db, NULL, "root", NULL, database, 0, socket_path, 0))
        die(db, NULL, "connect");
    return db;
}

static int by_number(const void *a, const void *b) {
    unsigned x = *(const unsigned *)a, y = *(const unsigned *)b;
    return x < y ? -1 : x > y;
}

struct row {
    unsigned id, cseq, expires, modified;
    char ruid[40], user[16], contact[80], call_id[48];
};

/* Every user of this connection's share once per round, spread over all of them. */
static void run(unsigned long me, int fill) {
    static const char domain[] = "bench.example.t", agent[] = "Bench Phone 1.0 (abcdef)", socket_name[] = "udp:127.0.0.1:5060";
    static const char values[] = "(?,?,?,?,?,?,?,?,?,?,FROM_UNIXTIME(?),FROM_UNIXTIME(?),-0.01,?)";
    MYSQL *db = open_db();
    char *sql = malloc(1000 + BATCH * sizeof values);
    char *end = stpcpy(sql, "INSERT INTO location (id, ruid, username, domain, contact, callid, user_agent, socket, reg_id, server_id, expires, "
                            "last_modified, q, cseq) VALUES ");
    for (int i = 0; i < BATCH; i++)
        end = stpcpy(stpcpy(end, i ? "," : ""), values);
    strcpy(end, " ON DUPLICATE KEY UPDATE callid=VALUES(callid), user_agent=VALUES(user_agent), socket=VALUES(socket), "
                "server_id=VALUES(server_id), expires=VALUES(expires), last_modified=VALUES(last_modified), q=VALUES(q), cseq=VALUES(cseq)");
    MYSQL_STMT *statement = mysql_stmt_init(db);
    if (mysql_stmt_prepare(statement, sql, strlen(sql)))
        die(db, statement, "prepare");
    struct row *rows = calloc(BATCH, sizeof *rows);
    MYSQL_BIND *bind = calloc(BATCH * COLUMNS, sizeof *bind);
    unsigned *numbers = calloc(BATCH, sizeof *numbers);
    unsigned long share = users / connections, base = me * share, at = 0;
    unsigned zero = 0, round = 0;
    double until = now() + seconds;
    while (fill ? at < share : now() < until) {
        unsigned second = (unsigned)time(NULL);
        for (int i = 0; i < BATCH; i++, at++)
            numbers[i] = (unsigned)(base + at % share * (fill ? 1ul : 2654435761ul) % share);
        if (at >= share && !fill)
            round++;
        qsort(numbers, BATCH, sizeof *numbers, by_number);
        for (int i = 0; i < BATCH; i++) {
            struct row *row = &rows[i];
            unsigned n = numbers[i];
            row->id = n + 1;
            row->cseq = 1 + round;
            row->expires = second + 3600;
            row->modified = second;
            snprintf(row->ruid, sizeof row->ruid, "pl-%08x%08x%08x%08x", n * 2654435761u, n, n ^ 0x5bd1e995u, ~n);
            snprintf(row->user, sizeof row->user, "u%07u", n);
            snprintf(row->contact, sizeof row->contact, "sip:u%07u@127.0.0.1:24405;transport=udp;line=0123456789ab", n);
            snprintf(row->call_id, sizeof row->call_id, "5f8d3c2b1a097%07u@client-host", n);
            const struct { const void *text; unsigned *number; } columns[COLUMNS] = {
                {NULL, &row->id}, {row->ruid, NULL}, {row->user, NULL}, {domain, NULL}, {row->contact, NULL}, {row->call_id, NULL},
                {agent, NULL}, {socket_name, NULL}, {NULL, &zero}, {NULL, &zero}, {NULL, &row->expires}, {NULL, &row->modified}, {NULL, &row->cseq},
            };
            for (int c = 0; c < COLUMNS; c++) {
                MYSQL_BIND *one = &bind[i * COLUMNS + c];
                memset(one, 0, sizeof *one);
                one->buffer_type = columns[c].text ? MYSQL_TYPE_STRING : MYSQL_TYPE_LONG;
                one->is_unsigned = 1;
                one->buffer = columns[c].text ? (void *)columns[c].text : columns[c].number;
                one->buffer_length = columns[c].text ? strlen(columns[c].text) : 0;
            }
        }
        if (mysql_stmt_bind_param(statement, bind) || mysql_stmt_execute(statement))
            die(db, statement, "execute");
        done[me] += BATCH;
    }
    mysql_stmt_close(statement);
    mysql_close(db);
    free(rows), free(bind), free(numbers), free(sql);
}

static void *one_connection(void *number) {
    run((unsigned long)number, 0);
    return NULL;
}

int main(int argc, char **argv) {
    int fill = argc == 5 && strcmp(argv[1], "fill") == 0;
    if (!fill && (argc != 7 || strcmp(argv[1], "run") != 0))
        return fprintf(stderr, "usage: batch_floor fill SOCKET DATABASE USERS | run SOCKET DATABASE USERS SECONDS CONNECTIONS\n"), 2;
    socket_path = argv[2];
    database = argv[3];
    users = strtoul(argv[4], NULL, 10);
    seconds = fill ? 0 : atof(argv[5]);
    connections = fill ? 1 : strtoul(argv[6], NULL, 10);
    if (connections == 0 || connections > 64 || users / connections < BATCH)
        return fprintf(stderr, "batch_floor: users or connections out of bounds\n"), 2;
    mysql_library_init(0, NULL, NULL);
    double start = now();
    if (fill) {
        run(0, 1);
    } else {
        pthread_t threads[64];
        for (unsigned long i = 0; i < connections; i++)
            pthread_create(&threads[i], NULL, one_connection, (void *)i);
        for (unsigned long i = 0; i < connections; i++)
            pthread_join(threads[i], NULL);
    }
    unsigned long sum = 0;
    for (unsigned long i = 0; i < connections; i++)
        sum += done[i];
    printf("rows %lu seconds %.3f\n", sum, now() - start);
    mysql_library_end();
    return 0;
}
