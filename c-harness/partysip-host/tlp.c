/* The transport loop: select over the plugins' sockets, one datagram per turn. */
#include "host.h"

#include <string.h>
#include <sys/select.h>

int pspm_tlp_init(pspm_tlp_t **out) {
  pspm_tlp_t *new = osip_malloc(sizeof *new);
  if (new == NULL) return -1;
  new->tlp_plugins = NULL;
  if (module_init(&new->module, MOD_THREAD, "tlp") != 0) {
    osip_free(new);
    return -1;
  }
  *out = new;
  return 0;
}

void pspm_tlp_free(pspm_tlp_t *tlp) {
  if (tlp == NULL) return;
  module_free(tlp->module);
  while (tlp->tlp_plugins != NULL) {
    tlp_plugin_t *plugin = tlp->tlp_plugins;
    PSP_REMOVE(tlp->tlp_plugins, plugin);
    osip_free(plugin->rcv_func);
    osip_free(plugin->snd_func);
    osip_free(plugin);
  }
  osip_free(tlp);
}

int pspm_tlp_release(pspm_tlp_t *tlp) { return module_release(tlp->module) != 0 ? -1 : 0; }

int pspm_tlp_start(pspm_tlp_t *tlp, void *(*loop)(void *), void *arg) { return module_start(tlp->module, loop, arg); }

static void add(fd_set *set, int *top, int fd) {
  if (fd <= 0) return;
  FD_SET(fd, set);
  if (fd > *top) *top = fd;
}

static int in_set(const fd_set *set, int fd) { return fd > 0 && FD_ISSET(fd, set); }

int pspm_tlp_execute(pspm_tlp_t *tlp, int seconds, int microseconds, int max) {
  for (;;) {
    int wake = ppl_pipe_get_read_descr(tlp->module->wakeup), top = 0;
    if (wake <= 1) return -1;
    fd_set set;
    FD_ZERO(&set);
    add(&set, &top, wake);
    for (tlp_plugin_t *plugin = tlp->tlp_plugins; plugin != NULL; plugin = plugin->next)
      if (plugin->in_socket > 0) {
        add(&set, &top, plugin->in_socket);
        add(&set, &top, plugin->out_socket);
        add(&set, &top, plugin->mcast_socket);
      }
    struct timeval limit = {seconds, microseconds};
    max--;
    if (select(top + 1, &set, NULL, NULL, seconds == -1 || microseconds == -1 ? NULL : &limit) < 0) FD_ZERO(&set);
    if (in_set(&set, wake)) {
      char byte;
      if (ppl_pipe_read(tlp->module->wakeup, &byte, 1) == 1 && byte == 'q') return 0;
    }
    for (tlp_plugin_t *plugin = tlp->tlp_plugins; plugin != NULL; plugin = plugin->next)
      if (plugin->in_socket <= 0) plugin->rcv_func->cb_rcv_func(5);
      else if (in_set(&set, plugin->in_socket) || in_set(&set, plugin->out_socket) || in_set(&set, plugin->mcast_socket))
        plugin->rcv_func->cb_rcv_func(1);
    if (max == 0) return 0;
  }
}

int pspm_tlp_send_message(pspm_tlp_t *tlp, osip_transaction_t *transaction, osip_message_t *message, char *host, int port,
                          int out_socket) {
  if (tlp->module == NULL || tlp->module->wakeup == NULL) return -1;
  for (tlp_plugin_t *plugin = tlp->tlp_plugins; plugin != NULL; plugin = plugin->next) {
    int code = plugin->snd_func->cb_snd_func(transaction, message, host, port, out_socket);
    if (code == -1 || code == 0) return code;
  }
  return -1;
}

int psp_core_load_tlp_plugin(tlp_plugin_t **out, psp_plugin_t *plugin, int flag) {
  tlp_plugin_t *new = osip_malloc(sizeof *new);
  if (new == NULL) return -1;
  memset(new, 0, sizeof *new);
  new->psp_plugin = plugin;
  new->plug_id = plugin->plug_id;
  new->in_socket = new->out_socket = new->mcast_socket = -1;
  new->flag = flag;
  PSP_ADD(core->tlp->tlp_plugins, new);
  *out = new;
  return 0;
}

int tlp_plugin_set_input_socket(tlp_plugin_t *plugin, int in_socket) {
  plugin->in_socket = in_socket;
  return 0;
}

int tlp_plugin_set_output_socket(tlp_plugin_t *plugin, int out_socket) {
  plugin->out_socket = out_socket;
  return 0;
}

int tlp_plugin_set_mcast_socket(tlp_plugin_t *plugin, int mcast_socket) {
  plugin->mcast_socket = mcast_socket;
  return 0;
}

int tlp_plugin_set_rcv_hook(tlp_plugin_t *plugin, tlp_rcv_func_t *function) {
  plugin->rcv_func = function;
  return 0;
}

int tlp_plugin_set_snd_hook(tlp_plugin_t *plugin, tlp_snd_func_t *function) {
  plugin->snd_func = function;
  return 0;
}

int tlp_rcv_func_init(tlp_rcv_func_t **out, int (*callback)(int), int plug_id) {
  if ((*out = osip_malloc(sizeof **out)) == NULL) return -1;
  (*out)->plug_id = plug_id;
  (*out)->cb_rcv_func = callback;
  return 0;
}

int tlp_snd_func_init(tlp_snd_func_t **out, int (*callback)(osip_transaction_t *, osip_message_t *, char *, int, int),
                      int plug_id) {
  if ((*out = osip_malloc(sizeof **out)) == NULL) return -1;
  (*out)->plug_id = plug_id;
  (*out)->cb_snd_func = callback;
  return 0;
}
