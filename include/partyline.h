/*
 * Partyline: a memory pool, a leader/follower scheduler, a transport, a transaction engine and a cached registrar for
 * C SIP servers on osip2. Written from the Rust sources by `make header`; do not edit.
 *
 * Conventions of this interface
 *
 * - A function that can fail returns int: 0 (or a positive value where its comment says so), or a negative PARTYLINE_E*
 *   code. partyline_last_error() then gives the sentence for it, on the same thread.
 * - Out-parameters come last. On failure nothing is written to them.
 * - `const` means that the library does not change it. Strings are NUL-terminated UTF-8 unless a length goes with them.
 * - NULL, garbage handles and handles that were freed are errors (PARTYLINE_EINVAL), never a crash. Memory that you pass
 *   must be readable (or writable) for the length that you say: no library can check that.
 * - Handles (partyline_engine and so on) are numbers in a pointer's clothes: compare them with NULL, do nothing else.
 *   Who frees one is said at the function that makes it. Any thread may use any handle, unless its comment says less.
 * - A partyline_message is valid in the callback that it is passed to, on that thread, until the callback returns; one that
 *   partyline_message_defer() gave you is valid on any thread until it is answered, resumed or dropped.
 * - Callbacks get their user pointer first. They are never called under a lock of the library, so they may call any
 *   function of it. They must not longjmp or throw out; pthread_exit inside a callback is not supported.
 * - The library starts no thread before partyline_engine_start() or partyline_registrar_open(). After fork() engines and
 *   registrars of the parent give PARTYLINE_ESTATE in the child; the memory pool goes on working there.
 */


#ifndef PARTYLINE_H
#define PARTYLINE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <stddef.h>
#include <stdint.h>

// Done.
#define PARTYLINE_OK 0

// An argument is NULL, garbage, out of range, or a handle that is not (or no longer) valid.
#define PARTYLINE_EINVAL -1

// No memory, also when the pool's limit is reached.
#define PARTYLINE_ENOMEM -2

// The call does not fit the object's state: running already, stopped, or used in a forked child.
#define PARTYLINE_ESTATE -3

// An address cannot be used: in use, not of this host, no permission.
#define PARTYLINE_EADDR -4

// The operating system refused; the text has its reason.
#define PARTYLINE_EIO -5

// The database cannot be reached or refused the statement.
#define PARTYLINE_EDB -6

// The tables are of a version that this library does not know.
#define PARTYLINE_ESCHEMA -7

// An option is unknown or its value cannot be used.
#define PARTYLINE_ECONFIG -8

// A documented bound is reached: try again later.
#define PARTYLINE_EFULL -9

// What was asked for does not exist.
#define PARTYLINE_ENOTFOUND -10

// A defect of this library, caught before it reached the caller. Please report its text.
#define PARTYLINE_EPANIC -11

// The buffer is too small; the size that is needed was written to the length's out-parameter.
#define PARTYLINE_ETOOSMALL -12

// The threads that serve the sockets. What runs here should be short.
#define PARTYLINE_GROUP_IO 0

// Threads for work that may block.
#define PARTYLINE_GROUP_WORKER 1

// One thread for what has time: writing records, say.
#define PARTYLINE_GROUP_LOG 2

// The request URI.
#define PARTYLINE_URI_REQUEST 0

// The URI of the To header.
#define PARTYLINE_URI_TO 1

// The URI of the From header.
#define PARTYLINE_URI_FROM 2

// The plugin passes the message on to the next one.
#define PARTYLINE_NEXT 0

// The plugin is done with the message: it has answered it, or does not want it answered.
#define PARTYLINE_DONE 1

// The plugin finishes the message later: it holds a message of partyline_message_defer(), or a function of the library
// returned PARTYLINE_PENDING and the callback hands that on.
#define PARTYLINE_PENDING 2

// One call at a time, in order of arrival. The default, safe for legacy code.
#define PARTYLINE_SERIAL 0

// One call at a time per Call-ID.
#define PARTYLINE_KEYED_CALL_ID 1

// One call at a time per address-of-record (To of REGISTER, else the request URI).
#define PARTYLINE_KEYED_AOR 2

// Any number of calls at once.
#define PARTYLINE_PARALLEL 3

// Phases of the chain; within a phase plugins are called in order of registration.
#define PARTYLINE_FIRST 0

// The middle of the chain.
#define PARTYLINE_NORMAL 1

// After all others, before the engine's own registrar.
#define PARTYLINE_LAST 2

// Why a connection has ended: its peer closed it.
#define PARTYLINE_CLOSED_PEER 1

// The peer or the network broke it.
#define PARTYLINE_CLOSED_RESET 2

// It could not be opened.
#define PARTYLINE_CLOSED_CONNECT_FAILED 3

// Opening it took longer than `tcp.connect_limit`.
#define PARTYLINE_CLOSED_CONNECT_TIMEOUT 4

// Nothing came within `tcp.first_bytes`.
#define PARTYLINE_CLOSED_SILENT_TOO_LONG 5

// A message took longer than `tcp.message_limit`.
#define PARTYLINE_CLOSED_MESSAGE_TOO_SLOW 6

// Nothing came for `tcp.idle`.
#define PARTYLINE_CLOSED_IDLE 7

// The peer did not read what was sent to it.
#define PARTYLINE_CLOSED_SLOW_READER 8

// No message could be found in what came.
#define PARTYLINE_CLOSED_FRAMING 9

// This program closed it, or stopped its engine.
#define PARTYLINE_CLOSED_LOCAL 10

// The TLS handshake failed, or a record could not be read.
#define PARTYLINE_CLOSED_TLS 11

// The TLS handshake took longer than `tls.handshake_limit`.
#define PARTYLINE_CLOSED_TLS_TOO_SLOW 12

// A TCP or TLS connection.
typedef struct partyline_connection partyline_connection;

// A server: listeners, a leader/follower pool, a chain of plugins.
typedef struct partyline_engine partyline_engine;

// A request or response in the hands of a plugin.
typedef struct partyline_message partyline_message;

// Bindings in a cache over a database.
typedef struct partyline_registrar partyline_registrar;

// What runs on a thread of a group.
typedef void (*partyline_function)(void *user);

// The parts of a URI, pointers into the message with their lengths; an absent part is NULL, 0.
typedef struct {
  // sizeof(partyline_uri), set by the caller.
  size_t size;
  const char *scheme;
  size_t scheme_length;
  const char *user;
  size_t user_length;
  // An IPv6 address with its brackets.
  const char *host;
  size_t host_length;
  // 0 where none is written.
  uint16_t port;
} partyline_uri;

// Figures of one plugin. Set `size` before the call; a later library may know a longer struct and fills only what `size`
// covers. Times are in nanoseconds.
typedef struct {
  // sizeof(partyline_plugin_stats), set by the caller.
  size_t size;
  // 1, set by the library.
  uint32_t version;
  // 1: more than one call in a hundred takes longer than `threads.takeover`, so it is called on other threads only.
  uint32_t blocks;
  // Calls so far, and calls that run now.
  uint64_t calls;
  uint64_t running;
  // Messages that wait for their turn, and messages that were refused because too many did.
  uint64_t queued;
  uint64_t refused;
  // Calls that took longer than the deadline, those that still run included; the longest of those that have ended.
  uint64_t overdue;
  uint64_t longest_ns;
  // How long messages waited, of those that had to.
  uint64_t wait_p50_ns;
  uint64_t wait_p99_ns;
  // How long calls ran.
  uint64_t run_p50_ns;
  uint64_t run_p99_ns;
  // How often leadership changed hands for its calls: given away before one, or taken while one blocked.
  uint64_t promotions;
} partyline_plugin_stats;

// Looks at a message, and returns PARTYLINE_NEXT, PARTYLINE_DONE or PARTYLINE_PENDING; anything else counts as
// PARTYLINE_DONE and is reported in the log. A request that nobody answers gets 501 at the end of the chain.
typedef int (*partyline_callback)(void *user, partyline_message *message);

// Called once for a plugin from a shared object, before its first message: `*user` is the plugin's `user` and may be set.
// Anything but 0 refuses the plugin (on a reload: the old version goes on).
typedef int (*partyline_start_callback)(partyline_engine *engine, void **user);

// Called once for a plugin from a shared object when its last call has ended, before its code is unmapped: it ends the
// plugin's own threads and cancels its timers.
typedef void (*partyline_stop_callback)(void *user);

// What a plugin is. Set all to zero first, then `size`; fields that a later version adds are then zero.
typedef struct {
  // sizeof(partyline_plugin).
  size_t size;
  // 1.
  uint32_t version;
  // PARTYLINE_SERIAL and so on.
  int policy;
  // PARTYLINE_FIRST and so on.
  int phase;
  // The plugin's name, for the log and the statistics; copied.
  const char *name;
  // The methods that it wants to see, separated by commas, "REGISTER,OPTIONS"; all but these: "!REGISTER"; NULL: all.
  // Responses are seen as their CSeq says. Copied.
  const char *methods;
  partyline_callback callback;
  // Passed to the callback. It has to live until partyline_engine_free().
  void *user;
  // A call longer than this many milliseconds is named in the log; 0: the engine's `watchdog` option.
  uint32_t deadline_ms;
  // Most calls at once (PARTYLINE_PARALLEL and keyed); 0: no bound but the number of threads.
  uint32_t concurrency;
  // For a shared object; may be NULL.
  partyline_start_callback start;
  // For a shared object; may be NULL.
  partyline_stop_callback stop;
} partyline_plugin;

// What the pool has done and holds, over all threads. `allocated` = `freed` + `live` in every reading. Set `size`
// before the call; a later library may know a longer struct and fills only what `size` covers.
typedef struct {
  // sizeof(partyline_pool_stats), set by the caller.
  size_t size;
  // 1, set by the library.
  uint32_t version;
  // Size classes, one for large blocks included.
  uint32_t classes;
  // Blocks handed out since the start, those of them that came back, and those that are out.
  uint64_t allocated;
  uint64_t freed;
  uint64_t live;
  // Bytes in live blocks, rounded up to their size classes (1 KiB above 8 KiB, 64 KiB above 256 KiB).
  uint64_t live_bytes;
  // Of `freed`: by another thread than the one that had allocated.
  uint64_t cross_thread_frees;
  // Blocks of libc that came to osip_free() or partyline_free() and were passed on.
  uint64_t foreign_frees;
  // Calls of realloc.
  uint64_t reallocs;
  // Bytes that the pool has in use with memory behind them, rounded up to 64 KiB per size class up to 8 KiB and thread:
  // now, and at most so far.
  uint64_t used_bytes;
  uint64_t peak_bytes;
  // Bytes that lie idle with memory behind them; partyline_pool_trim() gives them back.
  uint64_t idle_bytes;
  // Bytes taken from the system and given back to it since the start.
  uint64_t from_os;
  uint64_t to_os;
  // The limit in bytes; UINT64_MAX when there is none.
  uint64_t limit;
  // Heaps made: the largest number of threads that used the pool at a time.
  uint64_t heaps;
} partyline_pool_stats;

// One binding, as partyline_registrar_lookup() shows it. The strings end in NUL and live during the callback.
typedef struct {
  // sizeof(partyline_binding), set by the library: a later library may append fields.
  size_t size;
  uint32_t version;
  // Seconds until it ends.
  uint32_t expires;
  // Preference, 0 to 1000.
  uint32_t q;
  uint32_t cseq;
  // The contact's URI.
  const char *contact;
  const char *call_id;
  // "" where there is none.
  const char *user_agent;
  // Where the REGISTER came from, if that differs from the contact: "sip:192.0.2.1:40000"; else "".
  const char *received;
  // Path header values; "" where there are none.
  const char *path;
} partyline_binding;

// Sees one binding; 0 goes on, anything else ends the look-up.
typedef int (*partyline_binding_callback)(void *user, const partyline_binding *binding);

// Counts since the engine was made. Set `size` before the call; a later library may know a longer struct and fills only
// what `size` covers.
typedef struct {
  // sizeof(partyline_stats), set by the caller.
  size_t size;
  // 1, set by the library.
  uint32_t version;
  // Threads of the engine now.
  uint32_t threads;
  // Messages received.
  uint64_t received;
  // Messages sent.
  uint64_t sent;
  // Requests that got a final answer.
  uint64_t answered;
  // Datagrams dropped without an answer: not SIP, cut off, too large, or nobody to answer to.
  uint64_t dropped;
  // Requests answered with 400 because they could not be understood.
  uint64_t malformed;
  // Answers that could not be sent.
  uint64_t send_errors;
  // Requests refused with 503 because a bound was reached.
  uint64_t overload;
  // Messages deferred by plugins and not finished yet.
  uint64_t deferred;
  // How often leadership changed hands: given away by a leader that had something to handle, or taken while it was
  // blocked.
  uint64_t promotions;
  // Calls of plugins.
  uint64_t plugin_calls;
  // Bindings in the registrar's cache.
  uint64_t bindings;
  // Look-ups that the cache answered, and that it could not.
  uint64_t cache_hits;
  uint64_t cache_misses;
  // SELECT statements sent to the database since the registrar was opened.
  uint64_t selects;
  // Rows written and transactions committed.
  uint64_t rows_written;
  uint64_t commits;
  // Statements that failed.
  uint64_t database_errors;
} partyline_stats;

// A connection is there: accepted, or opened by this program. The first call for a connection.
typedef void (*partyline_connected)(void *user, partyline_connection *connection);

// It has ended, for one of PARTYLINE_CLOSED_*. The last call for a connection, also for one that could not be opened.
typedef void (*partyline_disconnected)(void *user, partyline_connection *connection, int reason);

// A system call on it failed with `error` (errno), or its stream could not be followed (`error` 0). `text` is valid
// during the call.
typedef void (*partyline_failed)(void *user, partyline_connection *connection, int error, const char *text);

// A whole message came; its bytes are valid during the call and end with no NUL. Returns PARTYLINE_NEXT: it is handled
// as SIP; PARTYLINE_DONE: it is done with; PARTYLINE_PENDING: as DONE, and this program will answer it with
// partyline_connection_send(), so the connection stays open for that when its peer has closed its side.
typedef int (*partyline_received)(void *user, partyline_connection *connection, const char *bytes, size_t length);

// The system has taken so many bytes more.
typedef void (*partyline_sent)(void *user, partyline_connection *connection, size_t bytes);

// Finds the end of a message, in place of SIP's framing. `bytes` begin where a message begins. Returns its length (1 to
// `length`), 0 if more has to come first, or a negative number: this is no message, the connection is closed. It is
// asked again with what it has seen already and more. A message longer than `max_message` closes the connection.
typedef int64_t (*partyline_framing)(void *user, partyline_connection *connection, const char *bytes, size_t length);

// Who watches an engine's connections. Set all to zero first, then `size`; any callback may be NULL.
//
// All are called on the engine's threads (those that partyline_engine_stop() ends on the thread that stops): for one
// connection one at a time, in the order in which things happened; for several connections at once. They may block:
// that costs one thread and holds up nothing but their connection. What another thread does (a send, a close) is told by
// an engine's thread afterwards.
typedef struct {
  // sizeof(partyline_watch).
  size_t size;
  // 1.
  uint32_t version;
  partyline_connected connected;
  partyline_disconnected disconnected;
  partyline_failed error;
  partyline_received received;
  partyline_sent sent;
  // NULL: SIP's framing.
  partyline_framing framing;
  // Passed to the callbacks. It has to live until partyline_engine_free().
  void *user;
} partyline_watch;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The library's version, "major.minor.patch". A static string.
const char *partyline_version(void);

// The sentence that belongs to the last error on the calling thread, "" if there was none. It stays valid until the
// next failing call of this thread; do not free it. Never NULL.
const char *partyline_last_error(void);

// The name of a code, such as "PARTYLINE_EINVAL"; "unknown code" for any other number. A static string.
const char *partyline_strerror(int code);

// Runs `function(user)` once on a thread of the group. Any thread may post, callbacks too; the call does not wait. Events
// of one poster for one group start in the order of posting, and may then run at the same time on several threads.
// PARTYLINE_EFULL: as many events wait as the option `queue_limit` allows. PARTYLINE_ESTATE: the engine does not run.
int partyline_post(partyline_engine *engine,
                   int group,
                   partyline_function function,
                   void *user);

// Calls `function(user)` on a thread of the group after `delay_ms` milliseconds, and then every `period_ms`
// milliseconds (0: only once). A period's call is skipped while the one before still runs. `timer` receives a number,
// never 0, for partyline_timer_cancel(); it may be NULL.
int partyline_timer_start(partyline_engine *engine,
                          int group,
                          uint32_t delay_ms,
                          uint32_t period_ms,
                          partyline_function function,
                          void *user,
                          uint64_t *timer);

// Cancels a timer: when this returns 0 its function will not start again, but it may still run on another thread. Waits
// for nothing. PARTYLINE_ENOTFOUND: it has fired its last time already, was cancelled, or never was.
int partyline_timer_cancel(partyline_engine *engine, uint64_t timer);

// Makes an engine with default options. Nothing is started and no address is taken. Free it with
// partyline_engine_free().
int partyline_engine_new(partyline_engine **engine);

// Sets an option by name, before partyline_engine_start(). docs/options.md lists the names, their units and defaults.
// PARTYLINE_ECONFIG: no such option, or a value that cannot be used; PARTYLINE_ESTATE: started already.
int partyline_engine_set(partyline_engine *engine, const char *name, const char *value);

// Takes an address: "udp:127.0.0.1:5060", "tcp:[::1]:5060", "tls:127.0.0.1:5061" (the options `tls.certificate` and
// `tls.key` first); port 0 lets the system choose. `port` receives the port, and may be NULL. Answers go over the connection that the request came on. Before partyline_engine_start(). PARTYLINE_EADDR: in use (also where another program shares the port
// with SO_REUSEPORT), not an address of this host, or no permission.
int partyline_engine_listen(partyline_engine *engine,
                            const char *address,
                            uint16_t *port);

// Lets the engine answer REGISTER by itself, from `registrar`, after all plugins have passed a request on: the fast
// path, without a call into C. The engine keeps the registrar alive; freeing the handle is still the caller's business.
int partyline_engine_attach(partyline_engine *engine, partyline_registrar *registrar);

// Starts the engine's threads and returns. Signals are blocked in them: they stay the program's business.
int partyline_engine_start(partyline_engine *engine);

// Starts the engine, if it is not started yet, and waits until partyline_engine_stop() has been called by another thread
// or by a callback.
int partyline_engine_run(partyline_engine *engine);

// Stops the engine: takes nothing new, waits at most `drain_ms` milliseconds for what is in hand (also for answers that
// wait for the database), ends its threads. Returns how many messages were left unanswered, or a negative code. Called
// from a callback it only asks for the stop, and returns 0. Not for signal handlers.
int partyline_engine_stop(partyline_engine *engine, uint32_t drain_ms);

// Frees the engine; stops it first, without draining, if it still runs. The handle is not valid any more. NULL does
// nothing. In a forked child it only lets go of the handle. PARTYLINE_ESTATE: called from one of its own callbacks.
int partyline_engine_free(partyline_engine *engine);

// All figures of the engine, its plugins and its registrar in Prometheus' text format (version 0.0.4), with a NUL at the
// end. `length` (may be NULL) receives the length without the NUL. PARTYLINE_ETOOSMALL: `length` receives the capacity
// that is needed; call with capacity 0 to ask for it.
int partyline_engine_metrics(partyline_engine *engine,
                             char *buffer,
                             size_t capacity,
                             size_t *length);

// The request's method, "REGISTER". As with all parts of a message: `bytes` receives a pointer into the message, without
// a NUL at the end, valid as long as the message; PARTYLINE_ENOTFOUND: the message has no such part (a response has no
// method).
int partyline_message_method(partyline_message *message,
                             const char **bytes,
                             size_t *length);

// The request URI.
int partyline_message_uri(partyline_message *message, const char **bytes, size_t *length);

// The value of header line number `index` (from 0) among those with this name, compact forms included; `name` in any
// case. Folded lines come with their line breaks overwritten by spaces.
int partyline_message_header(partyline_message *message,
                             const char *name,
                             size_t index,
                             const char **bytes,
                             size_t *length);

// Takes one of the message's URIs apart; `which` is PARTYLINE_URI_REQUEST and so on, and `uri->size` is set by the caller.
// PARTYLINE_ENOTFOUND: there is none, or it cannot be read. Of a URI that is neither sip nor sips only the scheme is
// given.
int partyline_message_uri_parts(partyline_message *message,
                                int which,
                                partyline_uri *uri);

// The body; length 0 if there is none.
int partyline_message_body(partyline_message *message, const char **bytes, size_t *length);

// The whole message as it came, but for folded lines; what osip_message_parse() takes.
int partyline_message_text(partyline_message *message, const char **bytes, size_t *length);

// Where the message came from: the numeric address into `host` (46 bytes are always enough), the port into `port` (may
// be NULL).
int partyline_message_source(partyline_message *message, char *host, size_t capacity, uint16_t *port);

// Answers a request: Via (with received and rport), From, To (with a tag), Call-ID and CSeq come from it. `reason` NULL:
// the status code's own phrase. `headers` NULL, or lines that each end in CRLF. `body` of `length` bytes may be NULL, 0.
// The answer leaves with the batch of the calling thread, or at once where there is none. A message is answered once:
// PARTYLINE_ESTATE for a second final answer. A deferred message is finished by its final answer: the handle is not
// valid any more. PARTYLINE_EINVAL: a status outside 100 to 699, a header line that does not end, a response.
int partyline_reply(partyline_message *message,
                    int status,
                    const char *reason,
                    const char *headers,
                    const char *body,
                    size_t length);

// Keeps a copy of the message for later. The callback then returns PARTYLINE_PENDING. `later` is valid on any thread; it
// has to be finished by a final partyline_reply(), by partyline_message_resume() or by partyline_message_drop().
// PARTYLINE_EFULL: as many are kept as the option `deferred_limit` allows.
int partyline_message_defer(partyline_message *message,
                            partyline_message **later);

// Finishes a deferred message as its callback would have: `verdict` PARTYLINE_NEXT passes it on to the next plugin,
// PARTYLINE_DONE ends it. The handle is not valid any more.
int partyline_message_resume(partyline_message *later, int verdict);

// Lets go of a deferred message without an answer.
int partyline_message_drop(partyline_message *later);

// Sends bytes as they are: to "udp:192.0.2.1:5060" from the engine's first UDP listener; to "tcp:192.0.2.1:5060" over an
// open connection with that peer, whoever opened it, else over a new one; to "tls:192.0.2.1:5061;domain=example.org" over
// one that was opened for that domain, else over a new one on which the peer has to show a certificate of example.org
// (options `tls.client.*`; without a domain: a certificate of the address). The address is numeric: nothing here looks up
// names. Waits for nothing, and delivery is not confirmed. PARTYLINE_EFULL: the peer has not read as much as the option
// `tcp.outbound` allows.
int partyline_send(partyline_engine *engine,
                   const char *address,
                   const char *bytes,
                   size_t length);

// Adds a plugin from a shared object to the engine's chain, before partyline_engine_start(): a file that exports
// `const partyline_plugin partyline_plugin_descriptor`. It is loaded from a private copy, so the file may be replaced or
// overwritten at any time. PARTYLINE_EIO: there is no such file, it is cut off, or the loader refused it;
// PARTYLINE_EINVAL: it exports no descriptor, or one that partyline_plugin_register() would refuse; PARTYLINE_ESTATE: its
// `start` refused, or the engine was started already.
int partyline_plugin_load(partyline_engine *engine,
                          const char *path);

// Exchanges a loaded plugin's code while the engine serves. `path` NULL: the file that it was loaded from, as it is now.
// The new version is loaded first; one that cannot be loaded, whose `start` refuses, or that differs in name, policy,
// phase, methods or concurrency leaves the old one in place. Then messages for the plugin wait, running calls end (at most
// `wait_ms` milliseconds), and what waited, and what the old version has deferred and not finished, goes to the new one;
// no request is lost. Handles of messages that went over are not valid any more. Returns how many calls still run in the
// old code: it stays until the last of them has ended. PARTYLINE_ENOTFOUND: no such plugin. PARTYLINE_ESTATE: it was
// registered by the program, the engine does not run, or called on a thread of PARTYLINE_GROUP_IO (all callbacks are).
int partyline_plugin_reload(partyline_engine *engine,
                            const char *name,
                            const char *path,
                            uint32_t wait_ms);

// Fills `stats`, whose `size` the caller has set. PARTYLINE_ENOTFOUND: no such plugin; PARTYLINE_ESTATE: the engine is not
// started yet; PARTYLINE_EINVAL: a size smaller than the first three fields.
int partyline_plugin_stats_get(partyline_engine *engine,
                               const char *name,
                               partyline_plugin_stats *stats);

// Adds a plugin to the engine's chain, before partyline_engine_start(). The struct is copied.
// PARTYLINE_EINVAL: a size or version that is not known, no name, no callback, an unknown policy, phase or method list, or
// `start` or `stop`, which are for shared objects.
int partyline_plugin_register(partyline_engine *engine,
                              const partyline_plugin *plugin);

// Memory from the pool, at least `size` bytes, aligned to 16 (to 8 where `size` is 8 or less). Not zeroed. NULL with
// errno ENOMEM when there is none, or past the limit. Give it back with partyline_free(), osip_free() or, where
// libpartyline.so is loaded, free(), from any thread.
void *partyline_malloc(size_t size);

// The same for `count` elements of `size` bytes, zeroed. NULL when the product overflows.
void *partyline_calloc(size_t count, size_t size);

// Changes the size of a block of the pool or of libc; it may move. On NULL the old block is as it was. A NULL block
// gives a new one; size 0 frees the block and gives NULL.
void *partyline_realloc(void *block, size_t size);

// Frees a block of the pool; one of libc is passed on. NULL does nothing.
void partyline_free(void *block);

// Bytes that a block can hold, at least what was asked for; 0 for NULL.
size_t partyline_usable_size(void *block);

// Fills `stats`, whose `size` the caller has set. PARTYLINE_EINVAL: a size smaller than the first three fields.
int partyline_pool_stats_get(partyline_pool_stats *stats);

// The same, with a line per size class that was used, as text for a person. Writes the text and a NUL into `buffer`;
// `length` (may be NULL) gets its length, or on PARTYLINE_ETOOSMALL the capacity that is needed.
int partyline_pool_stats_text(char *buffer, size_t capacity, size_t *length);

// The same as a JSON object.
int partyline_pool_stats_json(char *buffer, size_t capacity, size_t *length);

// Gives what the calling thread and threads that have exited hold unused, and all idle memory, back to the system.
int partyline_pool_trim(void);

// Sets the most that the pool may have in use, in bytes (spans, regions and large blocks as a whole); 0 takes the limit
// away. Past it osip_malloc() and partyline_malloc() give NULL; what is in use already stays. The library's own memory is not bound.
int partyline_pool_set_limit(size_t bytes);

// Makes a registrar with default options; nothing is opened. Free it with partyline_registrar_free().
int partyline_registrar_new(partyline_registrar **registrar);

// Sets an option by name ("mode", "expires.max", ...; docs/options.md), before partyline_registrar_open().
int partyline_registrar_set(partyline_registrar *registrar, const char *name, const char *value);

// Opens the store: "sqlite:/var/lib/sip/location.db", "mysql://user:password@host:3306/database", or "memory:" for none.
// Creates the tables where they are missing, checks their version, starts the threads that write, and (option `preload`)
// reads the bindings in. A MySQL database that is away is no error: it is reached later, see docs/storage.md. PARTYLINE_EDB:
// it does not let us in, or a SQLite file cannot be opened; PARTYLINE_ESCHEMA: tables of an unknown version.
int partyline_registrar_open(partyline_registrar *registrar,
                             const char *url);

// Writes out what is not written yet (mode write_back) and waits for it, at most `timeout_ms` milliseconds. Returns how
// many bindings are still unwritten, or a negative code.
int partyline_registrar_flush(partyline_registrar *registrar, uint32_t timeout_ms);

// Lets go of the registrar. Its threads end, after writing out what waits, when no engine uses it any more. NULL does
// nothing.
int partyline_registrar_free(partyline_registrar *registrar);

// For a plugin's callback: does for a REGISTER all of RFC 3261 section 10.3 and answers it, in the mode write_through after
// the commit. Returns PARTYLINE_DONE; PARTYLINE_PENDING when the bindings have to be read from the database first: the
// callback returns that, and is called again for the message when they are there; PARTYLINE_NEXT if the message is no
// REGISTER; or a negative code. Never waits.
int partyline_registrar_handle(partyline_registrar *registrar,
                               partyline_message *message);

// For a plugin's callback: checks the user by the registrar's option `auth`: `none` lets everybody pass, `user` wants the
// user in the table subscriber (else 404), `digest` wants credentials (else 401 with a challenge, 403). Returns
// PARTYLINE_NEXT when the user may pass, PARTYLINE_DONE when the request was answered, PARTYLINE_PENDING when the user has
// to be read from the database first: the callback returns that and is called again; or a negative code. Never waits.
int partyline_registrar_authorize(partyline_registrar *registrar,
                                  partyline_message *message);

// Forgets what is cached about the user of an address-of-record ("sip:alice@example.test"), whose row in the table subscriber
// has changed: a new password counts at once, and an old one no longer. From any thread.
int partyline_registrar_forget_user(partyline_registrar *registrar,
                                    const char *aor);

// Calls `callback` for each binding of an address-of-record ("sip:alice@example.test"), best q first. Returns how many it
// was called for. Reads the database, and waits for it, if the cache does not know the address-of-record.
int partyline_registrar_lookup(partyline_registrar *registrar,
                               const char *aor,
                               partyline_binding_callback callback,
                               void *user);

// Fills `stats`, whose `size` the caller has set. PARTYLINE_EINVAL: a size smaller than the first two fields.
int partyline_stats_get(partyline_engine *engine, partyline_stats *stats);

// Has an engine's connections watched, before partyline_engine_start(). The struct is copied. PARTYLINE_EINVAL: a size
// or version that is not known, no callback at all; PARTYLINE_ESTATE: somebody watches already.
int partyline_engine_watch(partyline_engine *engine, const partyline_watch *watch);

// Sends bytes over a connection, behind what was sent before. What the system does not take at once waits, up to the
// option `tcp.outbound`; never blocks. From any thread, in any callback. PARTYLINE_EIO: the connection has closed;
// PARTYLINE_EFULL: its peer reads too slowly, and it is being closed.
int partyline_connection_send(partyline_connection *connection, const char *bytes, size_t length);

// Closes a connection; what waits to be sent is lost. `disconnected` follows, on one of the engine's threads. Closing
// one that has closed is no error.
int partyline_connection_close(partyline_connection *connection);

// The peer's address, as text with a NUL ("127.0.0.1", "::1"), and its port (may be NULL). PARTYLINE_ETOOSMALL: 46 bytes
// are always enough.
int partyline_connection_peer(partyline_connection *connection,
                              char *host,
                              size_t capacity,
                              uint16_t *port);

// Holds a connection's handle, once more at each call: it stays valid, and no other connection gets it, until
// partyline_connection_free() was called as often. Without that a handle is valid from `connected` until `disconnected`
// has returned. A held connection closes like any other: sending then gives PARTYLINE_EIO.
int partyline_connection_hold(partyline_connection *connection);

// Lets a handle go that partyline_connection_hold() has held. Does not close the connection. NULL does nothing.
// PARTYLINE_EINVAL: it is not held.
int partyline_connection_free(partyline_connection *connection);

// Leaves a pointer of the program's with the connection; the library does not look at it.
int partyline_connection_set_user(partyline_connection *connection, void *user);

// The pointer that was left with the connection; NULL at first.
int partyline_connection_user(partyline_connection *connection, void **user);

// Reads the certificate files of the engine's TLS addresses again (options `tls.certificate`, `tls.key`), and those for the
// TLS connections that it opens (`tls.client.*`); connections that are opened from now on get the new ones, nothing
// restarts. PARTYLINE_ECONFIG: they cannot be used, and the old ones stay; PARTYLINE_ESTATE: the engine has neither.
int partyline_engine_reload_certificates(partyline_engine *engine);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* PARTYLINE_H */

/*
 * osip2's names. In osip2 2.2 to 5.x on Unix osip_malloc and its siblings are macros over function pointers, which the
 * library sets when it is loaded; these functions serve osip2 2.0.0 to 2.0.5, builds with DEBUG_MEM, and programs that
 * want the pool by its old name. The brackets keep osip2's macros from taking the names apart.
 */
#ifdef __cplusplus
extern "C" {
#endif
void *(osip_malloc)(size_t size);
void *(osip_realloc)(void *block, size_t size);
void (osip_free)(void *block);
void *(_osip_malloc)(size_t size, char *file, unsigned short line);
void *(_osip_realloc)(void *block, size_t size, char *file, unsigned short line);
void (_osip_free)(void *block);
#ifdef __cplusplus
}
#endif
