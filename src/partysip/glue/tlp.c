/* pspm_tlp_execute: the transport plugins' sockets stand in the pool's epoll; a wake-up reads until the socket is empty. */
#include "loops.h"

#include <poll.h>

/* What a wake-up reads at most before others get the thread. */
#define BATCH 64

static void nothing(void) {}

static int readable(int fd) {
  struct pollfd in = {fd, POLLIN, 0};
  return poll(&in, 1, 0) > 0;
}

/* Hooks of a transport plugin were written for one thread: one of its sockets at a time. */
static pthread_mutex_t receiving = PTHREAD_MUTEX_INITIALIZER;

static void socket_ready(void *arg, int fd) {
  tlp_plugin_t *plugin = arg;
  pthread_mutex_lock(&receiving);
  for (int i = 0; i < BATCH && (i == 0 || readable(fd)); i++) plugin->rcv_func->cb_rcv_func(1);
  pthread_mutex_unlock(&receiving);
}

static int sockets_of(const tlp_plugin_t *plugin, int fds[3]) {
  int count = 0, all[] = {plugin->in_socket, plugin->out_socket, plugin->mcast_socket};
  if (plugin->in_socket <= 0) return 0;
  for (int i = 0; i < 3; i++) {
    int known = all[i] <= 0;
    for (int j = 0; j < count; j++) known |= fds[j] == all[i];
    if (!known) fds[count++] = all[i];
  }
  return count;
}

/* As many turns as are asked for, on the caller's thread. */
static int bounded(pspm_tlp_t *tlp, const struct timeval *limit, int max) {
  for (; max > 0; max--) {
    struct pollfd in[1 + 3 * 16];
    tlp_plugin_t *of[1 + 3 * 16];
    nfds_t count = 1;
    in[0] = (struct pollfd){ppl_pipe_get_read_descr(tlp->module->wakeup), POLLIN, 0};
    for (tlp_plugin_t *plugin = tlp->tlp_plugins; plugin != NULL && count + 3 <= sizeof in / sizeof *in; plugin = plugin->next) {
      int fds[3], n = sockets_of(plugin, fds);
      for (int i = 0; i < n; i++, count++) in[count] = (struct pollfd){fds[i], POLLIN, 0}, of[count] = plugin;
    }
    poll(in, count, limit == NULL ? -1 : (int)(limit->tv_sec * 1000 + limit->tv_usec / 1000));
    char byte;
    if ((in[0].revents & POLLIN) && ppl_pipe_read(tlp->module->wakeup, &byte, 1) == 1 && byte == 'q') return 0;
    for (nfds_t i = 1; i < count; i++)
      if (in[i].revents & POLLIN) of[i]->rcv_func->cb_rcv_func(1);
    for (tlp_plugin_t *plugin = tlp->tlp_plugins; plugin != NULL; plugin = plugin->next)
      if (plugin->in_socket <= 0) plugin->rcv_func->cb_rcv_func(5);
  }
  return 0;
}

int pspm_tlp_execute(pspm_tlp_t *tlp, int seconds, int microseconds, int max) {
  LOOPS_COUNT(pspm_tlp_execute);
  struct timeval limit = {seconds, microseconds}, *until = seconds == -1 || microseconds == -1 ? NULL : &limit;
  if (max > 0) return bounded(tlp, until, max);
  struct loops_module *own = (struct loops_module *)tlp->module;
  int fds[3], unwatched = 0;
  partyline_loops_enter(own, nothing);
  for (tlp_plugin_t *plugin = tlp->tlp_plugins; plugin != NULL; plugin = plugin->next) {
    int n = sockets_of(plugin, fds);
    for (int i = 0; i < n; i++) partyline_psp_watch(fds[i], socket_ready, plugin);
    unwatched |= plugin->in_socket <= 0;
  }
  /* A plugin that reads by itself is called from time to time, as ever. */
  while (!partyline_loops_sleep(own, unwatched ? until : NULL))
    for (tlp_plugin_t *plugin = tlp->tlp_plugins; plugin != NULL; plugin = plugin->next)
      if (plugin->in_socket <= 0) plugin->rcv_func->cb_rcv_func(5);
  for (tlp_plugin_t *plugin = tlp->tlp_plugins; plugin != NULL; plugin = plugin->next) {
    int n = sockets_of(plugin, fds);
    for (int i = 0; i < n; i++) partyline_psp_unwatch(fds[i]);
  }
  partyline_loops_leave(own);
  return 0;
}
