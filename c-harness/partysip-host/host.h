/* The host: a program of partysip's shape, written for tests and measurements of what stands in for partysip's internals.
 *
 *   tlp thread              osip thread                       sfp thread (main)
 *   select, one datagram -> timers, state machines,       ->  new requests, hooks one after another, the request state
 *   per turn, through the   callbacks; sends everything   <-  machine; then 8 predicates on every request that is alive
 *   transport plugin
 *
 * Each thread sleeps in select on a blocking pipe. One lock (gl_lock), held by the osip thread for its whole execute turn and by
 * the sfp thread for its whole turn; the tlp thread takes only osip2's mutexes. A request and its transaction live until timer J
 * ends the transaction (32 s on UDP). Users stand in a list that is walked. None of this is ever to be made faster: it is the
 * 'before' of `make bench-partysip`.
 *
 * What partysip has and this does not: forwarding (a request that a plugin wants forwarded is answered with 302 and the
 * locations; an INVITE to ring.invalid with 180, and with 487 after a CANCEL), DNS, NAT helpers, TCP, the interactive mode, dbm files.
 */
#ifndef HOST_H
#define HOST_H

#include <partyline/partysip.h>

/* tables.c */
sfp_inc_func_tab_t *sfp_inc_func_tab_new(void);
sfp_fwd_func_tab_t *sfp_func_tab_new(void);
sfp_snd_func_tab_t *sfp_snd_func_tab_new(void);
void sfp_inc_func_tab_free(sfp_inc_func_tab_t *table);
void sfp_func_tab_free(sfp_fwd_func_tab_t *table);
void sfp_snd_func_tab_free(sfp_snd_func_tab_t *table);

/* request.c */
int sfp_answer_request(psp_request_t *request);

/* plugin.c */
int psp_plugin_load(psp_plugin_t **plugin, const char *folder, const char *name);
void psp_plugin_free(psp_plugin_t *plugin);

/* config.c */
int psp_config_load(const char *file);
void psp_config_unload(void);

/* core.c */
int psp_core_load_plugins(const char *folder);
void psp_core_remove_all_plugins(void);

#endif
