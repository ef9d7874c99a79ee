/* A module: a thread that sleeps in select on its pipe. */
#include "legacy.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/select.h>
#include <unistd.h>

int module_open(struct module *module) {
  module->thread = NULL;
  if (pipe(module->pipe) != 0) {
    module->pipe[0] = module->pipe[1] = -1;
    return -1;
  }
  /* Neither end blocks: a full pipe already means 'wake up', and a writer that waited under the lock could wait for ever. */
  for (int i = 0; i < 2; i++) {
    fcntl(module->pipe[i], F_SETFL, O_NONBLOCK);
    fcntl(module->pipe[i], F_SETFD, FD_CLOEXEC);
  }
  return 0;
}

int module_start(struct module *module, void *(*loop)(void *), void *arg) {
  module->thread = osip_thread_create(20000, loop, arg);
  return module->thread == NULL ? -1 : 0;
}

static void put(struct module *module, char what) {
  ssize_t n;
  do n = write(module->pipe[1], &what, 1);
  while (n < 0 && errno == EINTR);
}

void module_wake(struct module *module) { put(module, 'w'); }

int module_sleep(struct module *module, int extra, int *readable, const struct timeval *limit) {
  fd_set set;
  FD_ZERO(&set);
  FD_SET(module->pipe[0], &set);
  int top = module->pipe[0];
  if (extra >= 0) {
    FD_SET(extra, &set);
    if (extra > top) top = extra;
  }
  struct timeval left;
  if (limit != NULL) left = *limit;
  int ready = select(top + 1, &set, NULL, NULL, limit != NULL ? &left : NULL);
  if (readable != NULL) *readable = ready > 0 && extra >= 0 && FD_ISSET(extra, &set);
  if (ready <= 0 || !FD_ISSET(module->pipe[0], &set)) return 0;
  char bytes[512];
  ssize_t n = read(module->pipe[0], bytes, sizeof bytes);
  for (ssize_t i = 0; i < n; i++)
    if (bytes[i] == 'q') return 1;
  return 0;
}

void module_end(struct module *module) {
  if (module->thread == NULL) return;
  /* A full pipe would swallow the 'q'; the thread drains it, so this ends. */
  char q = 'q';
  while (write(module->pipe[1], &q, 1) != 1) {
    struct timeval pause = {0, 1000};
    select(0, NULL, NULL, NULL, &pause);
  }
  osip_thread_join(module->thread);
  osip_free(module->thread);
  module->thread = NULL;
}

void module_close(struct module *module) {
  for (int i = 0; i < 2; i++) {
    if (module->pipe[i] >= 0) close(module->pipe[i]);
    module->pipe[i] = -1;
  }
}
