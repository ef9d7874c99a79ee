/*
 * partysip's interface, as its last development version (after 2.2.3) has it: the structures in their field order and the
 * functions with their signatures. Written down from observation, for what is built against partysip without its sources:
 * libpartyline_partysip.a, the plugins in c-harness/plugins and the host program c-harness/partysip-host. Needs libosip2 3.0
 * or later; the released partysip 2.2.x has pointers where lists stand here by value, and is not meant.
 *
 * Who owns what
 * - psp_core_event_add_sip_message() takes the event in every case.
 * - location_init() takes the URI; ppl_uinfo_create() takes login and password and copies the URI; bindings copy contact and
 *   path; psp_config_add_element() takes both strings; psp_config_get_element() lends its result.
 * - A hook gets the request (or the answer) on loan. A send hook frees neither message nor host.
 * - psp_plugin_t is static storage of the plugin; sfp_*_func_t belong to the tables once they are added.
 * - A plugin attached twice (to the transport and to requests, say) takes ownership twice.
 *
 * What partysip does with a plugin
 * - It is loaded from PREFIX/lib/partysip/libpsp_NAME.so, in the order of the line `plugins =`, whose names stand between blanks.
 * - plugin_init() is called at once. plugin_start() is looked up and NEVER called (partysip's own return -1 there): what has to
 *   wait for the other plugins waits for the first call of a hook.
 * - `name` in psp_plugin_t is a title for people ("Rgstrar plugin"), not NAME.
 */
#ifndef PARTYLINE_PARTYSIP_H
#define PARTYLINE_PARTYSIP_H

#include <sys/time.h> /* osip.h uses struct timeval and does not ask for it */

#include <osip2/osip.h>
#include <osip2/osip_mt.h>
#include <osipparser2/osip_parser.h>

#ifdef __cplusplus
extern "C" {
#endif

struct addrinfo;

/* Lists of elements with `next` and `parent`. PSP_ADD puts in front, PSP_APPEND behind. */
#define PSP_ADD(first, element)                                \
  do {                                                         \
    (element)->parent = NULL;                                  \
    (element)->next = (first);                                 \
    if ((first) != NULL) (first)->parent = (element);          \
    (first) = (element);                                       \
  } while (0)
#define PSP_APPEND(type, first, element)                       \
  do {                                                         \
    type *psp_last = (first);                                  \
    while (psp_last != NULL && psp_last->next != NULL) psp_last = psp_last->next; \
    (element)->next = NULL;                                    \
    (element)->parent = psp_last;                              \
    if (psp_last != NULL) psp_last->next = (element);          \
    else (first) = (element);                                  \
  } while (0)
#define PSP_REMOVE(first, element)                             \
  do {                                                         \
    if ((element)->parent != NULL) (element)->parent->next = (element)->next; \
    else (first) = (element)->next;                            \
    if ((element)->next != NULL) (element)->next->parent = (element)->parent; \
    (element)->next = (element)->parent = NULL;                \
  } while (0)

/* libppl */
typedef struct {
  int pipes[2]; /* 0 is read, 1 is written */
} ppl_pipe_t;
/* Seconds. Whether the original's type is int or time_t was not to be found out: it is printed as an int. Where it is time_t, what
 * stands behind ctx_start in sfp_branch_t is 8 bytes further; nothing else moves. */
typedef int ppl_time_t;
typedef struct ppl_dso_handle ppl_dso_handle_t;

ppl_pipe_t *ppl_pipe(void);
int ppl_pipe_close(ppl_pipe_t *pipe);
int ppl_pipe_read(ppl_pipe_t *pipe, void *buffer, size_t size);
int ppl_pipe_write(ppl_pipe_t *pipe, const void *buffer, size_t size);
int ppl_pipe_get_read_descr(ppl_pipe_t *pipe);
ppl_time_t ppl_time(void);

typedef struct aor_t {
  osip_uri_t *url;
  struct aor_t *next, *parent;
} aor_t;
typedef struct binding_t {
  osip_contact_t *contact;
  char *path;
  ppl_time_t when;
  struct binding_t *next, *parent;
} binding_t;
typedef struct ppl_uinfo_t {
  int status; /* 2 away, 1 online */
  aor_t *aor;
  char *login, *passwd;
  aor_t *aor_3rd_parties;
  binding_t *bindings;
  struct ppl_uinfo_t *next, *parent;
} ppl_uinfo_t;

extern ppl_uinfo_t *user_infos; /* the head of all users */

int ppl_uinfo_init(void);
ppl_uinfo_t *ppl_uinfo_find_by_aor(osip_uri_t *aor); /* by the user name alone, in any case */
ppl_uinfo_t *ppl_uinfo_find_by_login(char *login);
ppl_uinfo_t *ppl_uinfo_create(osip_uri_t *url, char *login, char *passwd);
int ppl_uinfo_add_binding(ppl_uinfo_t *user, osip_contact_t *contact, char *expires);
int ppl_uinfo_add_binding_with_path(ppl_uinfo_t *user, osip_contact_t *contact, char *expires, char *path);
int ppl_uinfo_check_binding(binding_t *binding); /* 0: it still holds */
int ppl_uinfo_remove_binding(ppl_uinfo_t *user, binding_t *binding);
void ppl_uinfo_remove_all_bindings(ppl_uinfo_t *user);
void ppl_uinfo_remove(ppl_uinfo_t *user);
void ppl_uinfo_binding_free(binding_t *binding);
int ppl_uinfo_add_third_party(ppl_uinfo_t *user, osip_uri_t *url);
void ppl_uinfo_store_bindings(ppl_uinfo_t *user);
int ppl_uinfo_flush_dbm(void);
int ppl_uinfo_set_dbm(char *file);
void ppl_uinfo_close_dbm(void);
void ppl_uinfo_free_all(void);

typedef struct ppl_dns_ip_t {
  int srv_ns_flag;
  unsigned int pref;
  char *name;
  unsigned int port;
  long ttl;
  unsigned int weight, rweight;
  struct addrinfo *addrinfo;
  struct ppl_dns_ip_t *next, *parent;
} ppl_dns_ip_t;

/* Plugins */
enum { PSP_PLUGIN_TLP = 1, PSP_PLUGIN_IMP = 2, PSP_PLUGIN_UAP = 4, PSP_PLUGIN_SFP = 0x16 };

typedef struct psp_plugin_t {
  int plug_id;
  char *name, *version, *description;
  int flag;
  int owners;
  ppl_dso_handle_t *dso_handle;
  int (*plugin_init)(char *name_config);
  int (*plugin_start)(void);
  int (*plugin_release)(void);
} psp_plugin_t;

int psp_plugin_take_ownership(psp_plugin_t *plugin);
int psp_plugin_release_ownership(psp_plugin_t *plugin);
int psp_plugin_get_plug_id(psp_plugin_t *plugin);

enum { TLP_UDP = 1, TLP_TCP = 2, TLP_RELIABLE = 4, TLP_UNRELIABLE = 8, TLP_SCTP = 0x10 };

typedef struct tlp_rcv_func_t {
  int plug_id;
  int (*cb_rcv_func)(int max);
} tlp_rcv_func_t;
typedef struct tlp_snd_func_t {
  int plug_id;
  /* 0 sent, -1 failed, 1 or -2: the next plugin may try */
  int (*cb_snd_func)(osip_transaction_t *transaction, osip_message_t *message, char *host, int port, int out_socket);
} tlp_snd_func_t;
typedef struct tlp_plugin_t {
  psp_plugin_t *psp_plugin;
  int plug_id, in_socket, out_socket, mcast_socket, flag;
  tlp_rcv_func_t *rcv_func;
  tlp_snd_func_t *snd_func;
  struct tlp_plugin_t *next, *parent;
} tlp_plugin_t;

int psp_core_load_tlp_plugin(tlp_plugin_t **tlp, psp_plugin_t *plugin, int flag);
int tlp_plugin_set_input_socket(tlp_plugin_t *tlp, int in_socket);
int tlp_plugin_set_output_socket(tlp_plugin_t *tlp, int out_socket);
int tlp_plugin_set_mcast_socket(tlp_plugin_t *tlp, int mcast_socket);
int tlp_plugin_set_rcv_hook(tlp_plugin_t *tlp, tlp_rcv_func_t *function);
int tlp_plugin_set_snd_hook(tlp_plugin_t *tlp, tlp_snd_func_t *function);
int tlp_rcv_func_init(tlp_rcv_func_t **function, int (*callback)(int), int plug_id);
int tlp_snd_func_init(tlp_snd_func_t **function,
                      int (*callback)(osip_transaction_t *, osip_message_t *, char *, int, int), int plug_id);

/* Requests */
enum { PROXY_PRE_CALLING, PROXY_CALLING, PROXY_PROCEEDING, PROXY_CLOSING, PROXY_CLOSED };
enum {
  PSP_UAS_MODE = 1, PSP_SEQ_MODE = 2, PSP_FORK_MODE = 8, PSP_MODES = 0xf,
  PSP_CONTINUE = 0x10, PSP_PROPOSE = 0x20, PSP_MANDATE = 0x40, PSP_STOP = 0x80, PSP_STATES = 0xf0,
  PSP_STAY_ON_PATH = 0x100
};

typedef struct location_t {
  osip_uri_t *url;
  char *path;
  int expire;
  struct location_t *next, *parent;
} location_t;
typedef struct sfp_branch_t {
  int branchid;
  char branch[45];
  int ctx_start, timer_c, ctx_timeout;
  osip_transaction_t *out_tr;
  osip_uri_t *url;
  ppl_dns_ip_t *fallbacks;
  osip_message_t *request, *response;
  int last_code_forwarded, already_cancelled;
  struct sfp_branch_t *next, *parent;
} sfp_branch_t;
typedef struct psp_request_t {
  int owners, state, start, flag, uas_status;
  /* the _start fields hold the time at which the timer fires; tv_sec -1: it does not run */
  int timer_noanswer_length;
  struct timeval timer_noanswer_start;
  int timer_nofinalanswer_length;
  struct timeval timer_nofinalanswer_start;
  int timer_close_length;
  struct timeval timer_close_start;
  location_t *locations, *fallback_locations;
  osip_transaction_t *inc_tr;
  int branch_index;
  char branch[45];
  sfp_branch_t *branch_notanswered, *branch_answered, *branch_completed, *branch_cancelled;
  osip_message_t *out_response, *inc_ack;
  struct psp_request_t *parent, *next; /* parent before next, as in the hooks below and nowhere else */
} psp_request_t;

int psp_request_init(psp_request_t **request, osip_transaction_t *inc_tr, osip_message_t *inc_ack);
void psp_request_free(psp_request_t *request);
osip_message_t *psp_request_get_request(psp_request_t *request);
int psp_request_set_uas_status(psp_request_t *request, int status);
int psp_request_get_uas_status(psp_request_t *request);
int psp_request_set_mode(psp_request_t *request, int mode);
int psp_request_set_state(psp_request_t *request, int state);
int psp_request_set_property(psp_request_t *request, int property);
/* A hook puts a location in front with PSP_ADD(request->locations, location): there is no function for it. */
int location_init(location_t **location, osip_uri_t *url, int expire);
int location_set_path(location_t *location, char *path);
void location_free(location_t *location);
int sfp_branch_set_transaction(sfp_branch_t *branch, osip_transaction_t *transaction);

/* The request state machine */
enum {
  EVT_RCV_REQUEST, TIMEOUT_NOANSWER, TIMEOUT_NOFINALANSWER, TIMEOUT_CLOSE, EVT_RCV_STATUS_1XX, EVT_RCV_STATUS_3456XX,
  EVT_RCV_STATUS_2XX, EVT_RCV_CANCEL, EVT_NEW_LOCATION, EVT_ALL_BRANCH_ANSWERED, EVT_FALLBACK_LOCATION
};
typedef struct psp_event {
  int type, transactionid, branchid;
} psp_event_t;

psp_event_t *__psp_event_new(int type);
int psp_request_execute(psp_request_t *request, psp_event_t *event); /* takes the event */
psp_event_t *pspm_sfp_test_received_1xx(psp_request_t *request);
psp_event_t *pspm_sfp_test_received_2xx(psp_request_t *request);
psp_event_t *pspm_sfp_test_received_3456xx(psp_request_t *request);
psp_event_t *pspm_sfp_new_location_received(psp_request_t *request);
psp_event_t *pspm_sfp_need_start_fallback_location(psp_request_t *request);
psp_event_t *pspm_sfp_need_timeout_nofinalanswer(psp_request_t *request);
psp_event_t *pspm_sfp_need_timeout_noanswer(psp_request_t *request);
psp_event_t *pspm_sfp_need_timeout_close(psp_request_t *request);

/* Hooks. In each table five lists, called in this order. A hook that leaves PSP_MANDATE ends the walk: then `final` is walked, and
 * that too ends at a hook that leaves PSP_MANDATE, which is the first unless it sets another state. */
enum {
  PSP_HOOK_REALLY_FIRST = -10, PSP_HOOK_FIRST = 0, PSP_HOOK_MIDDLE = 10, PSP_HOOK_LAST = 20, PSP_HOOK_REALLY_LAST = 30,
  PSP_HOOK_FINAL = 40
};

typedef struct sfp_plugin_t {
  psp_plugin_t *psp_plugin;
  struct sfp_plugin_t *next, *parent;
} sfp_plugin_t;
typedef struct sfp_func_t { /* sfp_inc_func_t, sfp_fwd_func_t and sfp_rcv_func_t are alike */
  int plug_id;
  int (*callback)(psp_request_t *request);
  struct sfp_func_t *parent, *next;
} sfp_inc_func_t, sfp_fwd_func_t, sfp_rcv_func_t;
typedef struct sfp_snd_func_t {
  int plug_id;
  int (*callback)(psp_request_t *request, osip_message_t *response);
  struct sfp_snd_func_t *parent, *next;
} sfp_snd_func_t;
typedef struct sfp_inc_func_tab_t {
  sfp_inc_func_t *really_first, *first, *middle, *last, *really_last, *final;
} sfp_inc_func_tab_t;
typedef struct sfp_func_tab_t {
  sfp_fwd_func_t *really_first, *first, *middle, *last, *really_last;
} sfp_fwd_func_tab_t, sfp_rcv_func_tab_t;
typedef struct sfp_snd_func_tab_t {
  sfp_snd_func_t *really_first, *first, *middle, *last, *really_last;
} sfp_snd_func_tab_t;

int psp_core_load_sfp_plugin(sfp_plugin_t **sfp, psp_plugin_t *plugin);
int sfp_inc_func_init(sfp_inc_func_t **function, int (*callback)(psp_request_t *), int plug_id);
int sfp_fwd_func_init(sfp_fwd_func_t **function, int (*callback)(psp_request_t *), int plug_id);
int sfp_rcv_func_init(sfp_rcv_func_t **function, int (*callback)(psp_request_t *), int plug_id);
int sfp_snd_func_init(sfp_snd_func_t **function, int (*callback)(psp_request_t *, osip_message_t *), int plug_id);
int psp_core_add_sfp_inc_invite_hook(sfp_inc_func_t *function, int level);
int psp_core_add_sfp_inc_ack_hook(sfp_inc_func_t *function, int level);
int psp_core_add_sfp_inc_register_hook(sfp_inc_func_t *function, int level);
int psp_core_add_sfp_inc_bye_hook(sfp_inc_func_t *function, int level);
int psp_core_add_sfp_inc_options_hook(sfp_inc_func_t *function, int level);
int psp_core_add_sfp_inc_info_hook(sfp_inc_func_t *function, int level);
int psp_core_add_sfp_inc_cancel_hook(sfp_inc_func_t *function, int level);
int psp_core_add_sfp_inc_notify_hook(sfp_inc_func_t *function, int level);
int psp_core_add_sfp_inc_subscribe_hook(sfp_inc_func_t *function, int level);
int psp_core_add_sfp_inc_unknown_hook(sfp_inc_func_t *function, int level);
int psp_core_add_sfp_snd_1xx_hook(sfp_snd_func_t *function, int level);
int psp_core_add_sfp_snd_2xx_hook(sfp_snd_func_t *function, int level);
int psp_core_add_sfp_snd_3xx_hook(sfp_snd_func_t *function, int level);
int psp_core_add_sfp_snd_4xx_hook(sfp_snd_func_t *function, int level);
int psp_core_add_sfp_snd_5xx_hook(sfp_snd_func_t *function, int level);
int psp_core_add_sfp_snd_6xx_hook(sfp_snd_func_t *function, int level);

/* Modules */
enum { MOD_THREAD = 1 };

typedef struct module_t {
  int flag;
  struct osip_thread *thread;
  ppl_pipe_t *wakeup;
  char *filename;
} module_t;
typedef struct psp_osip_t {
  osip_t *osip;
  osip_fifo_t *osip_tr_terminated; /* not used */
  int delay, exit_flag;
  struct osip_thread *timers;
  ppl_pipe_t *wakeup;
  int total_ict, successfull_ict, total_nict, successfull_nict, total_ist, successfull_ist, total_nist, successfull_nist;
} psp_osip_t;
typedef struct pspm_resolv_t {
  module_t *module;
} pspm_resolv_t;
typedef struct pspm_tlp_t {
  module_t *module;
  tlp_plugin_t *tlp_plugins;
} pspm_tlp_t;
typedef struct pspm_sfp_t {
  module_t *module;
  sfp_plugin_t *sfp_plugins;
  sfp_inc_func_tab_t *rcv_invites, *rcv_acks, *rcv_registers, *rcv_byes, *rcv_optionss, *rcv_infos, *rcv_cancels,
      *rcv_notifys, *rcv_subscribes, *rcv_unknowns;
  osip_fifo_t *sip_ack;              /* of osip_message_t */
  osip_fifo_t *osip_message_traffic; /* of osip_transaction_t */
  sfp_fwd_func_tab_t *fwd_invites, *fwd_acks, *fwd_registers, *fwd_byes, *fwd_optionss, *fwd_infos, *fwd_cancels,
      *fwd_notifys, *fwd_subscribes, *fwd_unknowns;
  sfp_rcv_func_tab_t *rcv_1xxs, *rcv_2xxs, *rcv_3xxs, *rcv_4xxs, *rcv_5xxs, *rcv_6xxs;
  sfp_snd_func_tab_t *snd_1xxs, *snd_2xxs, *snd_3xxs, *snd_4xxs, *snd_5xxs, *snd_6xxs;
  osip_fifo_t *sfull_request; /* of psp_request_t */
  osip_fifo_t *sfull_cancels; /* of osip_transaction_t */
  osip_list_t *broken_transactions;
  psp_request_t *psp_requests;
} pspm_sfp_t;

#define PSP_IDENTIFIERS 32
#define PSP_FIREWALL_ENTRIES 50

typedef struct firewall_entry_t {
  char hash[100], lan_ip[20], lan_port[10], remove_rule[255];
  int birth_date, call_length;
} firewall_entry_t;
typedef struct psp_core_t {
  psp_osip_t *psp_osip;
  pspm_resolv_t *resolv;
  pspm_tlp_t *tlp;
  pspm_sfp_t *sfp;
  int iptables_dynamic_natrule;
  char *ipt_server;
  int ipt_port;
  struct addrinfo *ipt_addr;
  int masquerade_sdp, masquerade_via;
  char *remote_natip, *lan_ip, *lan_fqdn, *lan_mask, *ext_ip, *ext_fqdn, *ext_mask;
  int recovery_delay;
  char *serverip[PSP_IDENTIFIERS], *servername[PSP_IDENTIFIERS];
  int ipv6_enable;
  char *serverip6[PSP_IDENTIFIERS];
  int port;
  struct osip_mutex *gl_lock; /* held for a whole turn by the osip loop and by the sfp loop */
  firewall_entry_t fw_entries[PSP_FIREWALL_ENTRIES];
  int rfc3327, disable_check_for_osip_to_tag_in_cancel;
  char banner[128];
} psp_core_t;

extern psp_core_t *core;

int module_init(module_t **module, int flag, char *filename);
void module_free(module_t *module);
int module_release(module_t *module); /* ends its thread */
int module_start(module_t *module, void *(*loop)(void *), void *arg);
int module_set_flag(module_t *module, int flag);
int module_wakeup(module_t *module);

int psp_osip_init(psp_osip_t **osip, int delay); /* starts the thread of the transactions */
void psp_osip_free(psp_osip_t *osip);
int psp_osip_wakeup(psp_osip_t *osip);
int psp_osip_release(psp_osip_t *osip);
int psp_osip_set_delay(psp_osip_t *osip, int delay);

int pspm_resolv_init(pspm_resolv_t **resolv);
void pspm_resolv_free(pspm_resolv_t *resolv);
int pspm_resolv_release(pspm_resolv_t *resolv);
int pspm_resolv_start(pspm_resolv_t *resolv, void *(*loop)(void *), void *arg);
int pspm_resolv_execute(pspm_resolv_t *resolv, int seconds, int microseconds, int max);
int pspm_tlp_init(pspm_tlp_t **tlp);
void pspm_tlp_free(pspm_tlp_t *tlp);
int pspm_tlp_release(pspm_tlp_t *tlp);
int pspm_tlp_start(pspm_tlp_t *tlp, void *(*loop)(void *), void *arg);
int pspm_tlp_execute(pspm_tlp_t *tlp, int seconds, int microseconds, int max);
int pspm_tlp_send_message(pspm_tlp_t *tlp, osip_transaction_t *transaction, osip_message_t *message, char *host, int port,
                          int out_socket);
int pspm_sfp_init(pspm_sfp_t **sfp);
void pspm_sfp_free(pspm_sfp_t *sfp);
int pspm_sfp_release(pspm_sfp_t *sfp);
int pspm_sfp_start(pspm_sfp_t *sfp, void *(*loop)(void *), void *arg);
int pspm_sfp_execute(pspm_sfp_t *sfp, int seconds, int microseconds, int max); /* 0 after max turns, 1 when told to quit */
int pspm_sfp_inc_dispatch_ack(pspm_sfp_t *sfp, osip_message_t *ack);
int pspm_sfp_inc_dispatch_traffic(pspm_sfp_t *sfp, osip_transaction_t *transaction);
int pspm_sfp_inc_dispatch_psp_request(pspm_sfp_t *sfp, psp_request_t *request);
int pspm_sfp_inc_call_plugins(pspm_sfp_t *sfp, psp_request_t *request); /* -2: drop the request */
int pspm_sfp_call_plugins_for_request(pspm_sfp_t *sfp, psp_request_t *request, sfp_branch_t *branch);
int pspm_sfp_call_plugins_for_rcv_response(pspm_sfp_t *sfp, psp_request_t *request, sfp_branch_t *branch);
int pspm_sfp_call_plugins_for_snd_response(pspm_sfp_t *sfp, psp_request_t *request, osip_message_t *response);
void dispatch_cancel_event(pspm_sfp_t *sfp, osip_transaction_t *cancel);

int psp_core_init(void);
void psp_core_free(void);
int psp_core_lock(void);
int psp_core_unlock(void);
int psp_core_start(int use_this_thread);
int psp_core_execute(void);
int psp_core_event_add_sip_message(osip_event_t *event);
int psp_core_event_add_sfp_inc_traffic(osip_transaction_t *transaction);
int psp_core_event_add_sfp_inc_ack(osip_message_t *ack);
int psp_core_event_add_sfull_request(psp_request_t *request);
int psp_core_event_add_sfull_cancel(osip_transaction_t *transaction);
int psp_core_fix_strict_router_issue(osip_event_t *event);

/* osip2's callbacks */
int psp_core_cb_snd_message(osip_transaction_t *transaction, osip_message_t *message, char *host, int port, int out_socket);
void psp_core_cb_transport_error(int type, osip_transaction_t *transaction, int error);
void psp_core_cb_ict_kill_transaction(int type, osip_transaction_t *transaction);
void psp_core_cb_ist_kill_transaction(int type, osip_transaction_t *transaction);
void psp_core_cb_nict_kill_transaction(int type, osip_transaction_t *transaction);
void psp_core_cb_nist_kill_transaction(int type, osip_transaction_t *transaction);
#define PSP_MESSAGE_CALLBACK(name) void psp_core_cb_##name(int type, osip_transaction_t *transaction, osip_message_t *message)
PSP_MESSAGE_CALLBACK(rcvresp_retransmission);
PSP_MESSAGE_CALLBACK(sndreq_retransmission);
PSP_MESSAGE_CALLBACK(sndresp_retransmission);
PSP_MESSAGE_CALLBACK(rcvreq_retransmission);
PSP_MESSAGE_CALLBACK(sndinvite);
PSP_MESSAGE_CALLBACK(sndack);
PSP_MESSAGE_CALLBACK(sndregister);
PSP_MESSAGE_CALLBACK(sndbye);
PSP_MESSAGE_CALLBACK(sndcancel);
PSP_MESSAGE_CALLBACK(sndinfo);
PSP_MESSAGE_CALLBACK(sndoptions);
PSP_MESSAGE_CALLBACK(sndunkrequest);
PSP_MESSAGE_CALLBACK(rcv1xx);
PSP_MESSAGE_CALLBACK(rcv2xx);
PSP_MESSAGE_CALLBACK(rcv3xx);
PSP_MESSAGE_CALLBACK(rcv4xx);
PSP_MESSAGE_CALLBACK(rcv5xx);
PSP_MESSAGE_CALLBACK(rcv6xx);
PSP_MESSAGE_CALLBACK(snd1xx);
PSP_MESSAGE_CALLBACK(snd2xx);
PSP_MESSAGE_CALLBACK(snd3xx);
PSP_MESSAGE_CALLBACK(snd4xx);
PSP_MESSAGE_CALLBACK(snd5xx);
PSP_MESSAGE_CALLBACK(snd6xx);
PSP_MESSAGE_CALLBACK(rcvinvite);
PSP_MESSAGE_CALLBACK(rcvack);
PSP_MESSAGE_CALLBACK(rcvack2);
PSP_MESSAGE_CALLBACK(rcvregister);
PSP_MESSAGE_CALLBACK(rcvbye);
PSP_MESSAGE_CALLBACK(rcvcancel);
PSP_MESSAGE_CALLBACK(rcvinfo);
PSP_MESSAGE_CALLBACK(rcvoptions);
PSP_MESSAGE_CALLBACK(rcvunkrequest);

/* Configuration: `name = value`, and for sub-configurations `<sub>`, lines `name value`, `</sub>`. The last of several wins. */
typedef struct config_element_t {
  char *sub_config, *name, *value;
  struct config_element_t *next, *parent;
} config_element_t;

char *psp_config_get_element(char *name);
/* The next one behind `start` (NULL: the first). */
config_element_t *psp_config_get_sub_element(char *name, char *sub_config, config_element_t *start);
int psp_config_add_element(char *name, char *value);

#ifdef __cplusplus
}
#endif
#endif
