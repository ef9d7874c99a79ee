/* The core: its parts, the global lock, and the events that the loops send each other. */
#include "host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

psp_core_t *core;

#define PLUGINS 32
static psp_plugin_t *plugins[PLUGINS];
static int plugin_count;

int psp_core_init(void) {
  core = osip_malloc(sizeof *core);
  if (core == NULL) return -1;
  memset(core, 0, sizeof *core);
  char *text = psp_config_get_element("banner");
  snprintf(core->banner, sizeof core->banner, "%s", text != NULL ? text : "partysip-host");
  text = psp_config_get_element("serverport_udp");
  core->port = text != NULL ? atoi(text) : 5060;
  text = psp_config_get_element("serverip");
  core->serverip[0] = osip_strdup(text != NULL ? text : "127.0.0.1");
  text = psp_config_get_element("recovery_delay");
  core->recovery_delay = text != NULL ? atoi(text) : -1;
  if (psp_osip_init(&core->psp_osip, 500) != 0 || pspm_resolv_init(&core->resolv) != 0 ||
      pspm_tlp_init(&core->tlp) != 0 || pspm_sfp_init(&core->sfp) != 0)
    return -1;
  core->gl_lock = osip_mutex_init();
  return core->gl_lock == NULL ? -1 : 0;
}

int psp_core_load_plugins(const char *folder) {
  char *list = psp_config_get_element("plugins"), name[64];
  while (list != NULL && *list != '\0' && plugin_count < PLUGINS) {
    list += strspn(list, " ,");
    size_t length = strcspn(list, " ,");
    if (length == 0 || length >= sizeof name) break;
    memcpy(name, list, length);
    name[length] = '\0';
    list += length;
    if (psp_plugin_load(&plugins[plugin_count], folder, name) != 0) return -1;
    plugin_count++;
  }
  /* plugin_start is looked up and never called, as in partysip. */
  return 0;
}

void psp_core_remove_all_plugins(void) {
  while (plugin_count > 0) psp_plugin_free(plugins[--plugin_count]);
}

void psp_core_free(void) {
  if (core == NULL) return;
  pspm_resolv_release(core->resolv);
  pspm_tlp_release(core->tlp);
  psp_osip_release(core->psp_osip);
  psp_core_remove_all_plugins();
  pspm_resolv_free(core->resolv);
  pspm_tlp_free(core->tlp);
  pspm_sfp_free(core->sfp);
  psp_osip_free(core->psp_osip);
  osip_mutex_destroy(core->gl_lock);
  for (int i = 0; i < PSP_IDENTIFIERS; i++) {
    osip_free(core->serverip[i]);
    osip_free(core->servername[i]);
    osip_free(core->serverip6[i]);
  }
  osip_free(core);
  core = NULL;
}

int psp_core_lock(void) { return osip_mutex_lock(core->gl_lock); }

int psp_core_unlock(void) { return osip_mutex_unlock(core->gl_lock); }

static void *run_resolv(void *arg) {
  (void)arg;
  pspm_resolv_execute(core->resolv, 5, 0, -1);
  return NULL;
}

static void *run_tlp(void *arg) {
  (void)arg;
  pspm_tlp_execute(core->tlp, 5, 0, -1);
  return NULL;
}

static void *run_sfp(void *arg) {
  (void)arg;
  pspm_sfp_execute(core->sfp, 5, 0, -1);
  return NULL;
}

int psp_core_start(int use_this_thread) {
  if (pspm_resolv_start(core->resolv, run_resolv, core) != 0 || pspm_tlp_start(core->tlp, run_tlp, core) != 0) return -1;
  return use_this_thread ? 0 : pspm_sfp_start(core->sfp, run_sfp, core);
}

int psp_core_execute(void) { return pspm_sfp_execute(core->sfp, 5, 0, -1); }

int psp_core_event_add_sfp_inc_traffic(osip_transaction_t *transaction) {
  osip_fifo_add(core->sfp->osip_message_traffic, transaction);
  module_wakeup(core->sfp->module);
  return 0;
}

int psp_core_event_add_sfp_inc_ack(osip_message_t *ack) {
  osip_fifo_add(core->sfp->sip_ack, ack);
  module_wakeup(core->sfp->module);
  return 0;
}

int psp_core_event_add_sfull_request(psp_request_t *request) {
  osip_fifo_add(core->sfp->sfull_request, request);
  module_wakeup(core->sfp->module);
  return 0;
}

int psp_core_event_add_sfull_cancel(osip_transaction_t *transaction) {
  osip_fifo_add(core->sfp->sfull_cancels, transaction);
  module_wakeup(core->sfp->module);
  return 0;
}

int psp_core_fix_strict_router_issue(osip_event_t *event) {
  osip_uri_param_t *mine = NULL;
  if (!MSG_IS_RESPONSE(event->sip)) osip_uri_uparam_get_byname(event->sip->req_uri, "psp", &mine);
  return 0; /* nothing here adds a Record-Route, so nobody comes back with one */
}

int psp_core_event_add_sip_message(osip_event_t *event) {
  osip_message_t *message = event->sip;
  if (MSG_IS_REQUEST(message) && (message->cseq == NULL || message->cseq->method == NULL || message->sip_method == NULL ||
                                  strcmp(message->cseq->method, message->sip_method) != 0)) {
    osip_event_free(event);
    return -1;
  }
  if (osip_find_transaction_and_add_event(core->psp_osip->osip, event) == 0) {
    psp_osip_wakeup(core->psp_osip);
    return 0;
  }
  if (!MSG_IS_REQUEST(message)) { /* a late answer: nobody forwards here */
    osip_event_free(event);
    return -1;
  }
  if (MSG_IS_ACK(message)) {
    osip_route_t *route = NULL;
    osip_message_get_route(message, 0, &route);
    if (route == NULL) {
      osip_event_free(event);
      return 0;
    }
    psp_core_event_add_sfp_inc_ack(message);
    osip_free(event);
    return 0;
  }
  osip_transaction_t *transaction = osip_create_transaction(core->psp_osip->osip, event);
  if (transaction == NULL) {
    osip_event_free(event);
    return -1;
  }
  osip_transaction_add_event(transaction, event);
  psp_osip_wakeup(core->psp_osip);
  return 0;
}
