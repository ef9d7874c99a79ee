/* The module for names. Nothing here is ever looked up: the thread only belongs to the shape. */
#include "host.h"

#include <sys/select.h>

int pspm_resolv_init(pspm_resolv_t **out) {
  pspm_resolv_t *new = osip_malloc(sizeof *new);
  if (new == NULL) return -1;
  if (module_init(&new->module, MOD_THREAD, "resolv") != 0) {
    osip_free(new);
    return -1;
  }
  *out = new;
  return 0;
}

void pspm_resolv_free(pspm_resolv_t *resolv) {
  if (resolv == NULL) return;
  module_free(resolv->module);
  osip_free(resolv);
}

int pspm_resolv_release(pspm_resolv_t *resolv) { return module_release(resolv->module) != 0 ? -1 : 0; }

int pspm_resolv_start(pspm_resolv_t *resolv, void *(*loop)(void *), void *arg) {
  return module_start(resolv->module, loop, arg);
}

int pspm_resolv_execute(pspm_resolv_t *resolv, int seconds, int microseconds, int max) {
  for (;;) {
    int wake = ppl_pipe_get_read_descr(resolv->module->wakeup);
    fd_set set;
    FD_ZERO(&set);
    FD_SET(wake, &set);
    struct timeval limit = {seconds, microseconds};
    max--;
    if (select(wake + 1, &set, NULL, NULL, seconds == -1 || microseconds == -1 ? NULL : &limit) > 0) {
      char byte;
      if (ppl_pipe_read(resolv->module->wakeup, &byte, 1) == 1 && byte == 'q') return 0;
    }
    if (max == 0) return 0;
  }
}
