/* module_*: partysip's modules. What wakes one of the loops that stand here costs an atomic operation and never blocks; the others
 * (resolv) keep their pipe, whose writing end does not block: a full pipe means 'wake up' already. */
#include "loops.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

atomic_ullong partyline_loops_counts[LOOPS_COUNTS];
static const char *const names[LOOPS_COUNTS] = {
#define X(name) #name,
    LOOPS_COUNTED(X)
#undef X
};

int partyline_loops_start(void) { return partyline_psp_start(names, partyline_loops_counts, LOOPS_COUNTS); }

void partyline_loops_stop(void) { partyline_psp_stop(); }

int module_init(module_t **out, int flag, char *filename) {
  LOOPS_COUNT(module_init);
  struct loops_module *new = osip_malloc(sizeof *new);
  if (new == NULL) return -1;
  memset(new, 0, sizeof *new);
  new->module.flag = flag;
  new->module.filename = osip_strdup(filename);
  new->module.wakeup = ppl_pipe();
  if (new->module.wakeup == NULL) {
    osip_free(new->module.filename);
    osip_free(new);
    *out = NULL;
    return -1;
  }
  int writing = new->module.wakeup->pipes[1];
  fcntl(writing, F_SETFL, fcntl(writing, F_GETFL) | O_NONBLOCK);
  pthread_mutex_init(&new->mutex, NULL);
  pthread_condattr_t monotonic;
  pthread_condattr_init(&monotonic);
  pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
  pthread_cond_init(&new->told, &monotonic);
  pthread_condattr_destroy(&monotonic);
  *out = &new->module;
  return 0;
}

void module_free(module_t *module) {
  LOOPS_COUNT(module_free);
  if (module == NULL || module->thread != NULL) return;
  struct loops_module *own = (struct loops_module *)module;
  osip_free(module->filename);
  ppl_pipe_close(module->wakeup);
  pthread_cond_destroy(&own->told);
  pthread_mutex_destroy(&own->mutex);
  osip_free(module);
}

/* Through the pipe, for a loop that is not ours. */
static int put(module_t *module, char what) {
  for (;;) {
    ssize_t n = write(module->wakeup->pipes[1], &what, 1);
    if (n == 1) return 0;
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {
      if (what == 'w') return 0;
      /* A 'q' has to get in; its reader makes room. */
      struct timespec pause = {0, 1000000};
      nanosleep(&pause, NULL);
      continue;
    }
    return -1;
  }
}

int module_release(module_t *module) {
  LOOPS_COUNT(module_release);
  if (module == NULL) return -1;
  if (!(module->flag & MOD_THREAD) || module->wakeup == NULL) return 0;
  struct loops_module *own = (struct loops_module *)module;
  pthread_mutex_lock(&own->mutex);
  own->quit = 1;
  pthread_cond_broadcast(&own->told);
  pthread_mutex_unlock(&own->mutex);
  /* A loop that has not been entered yet, or is not ours, reads it there. */
  if (!atomic_load(&own->inside) && put(module, 'q') != 0) return -1;
  if (module->thread == NULL) return 0;
  if (osip_thread_join(module->thread) != 0) return -1;
  osip_free(module->thread);
  module->thread = NULL;
  return 0;
}

int module_start(module_t *module, void *(*loop)(void *), void *arg) {
  LOOPS_COUNT(module_start);
  if (module == NULL || loop == NULL) return -1;
  if (!(module->flag & MOD_THREAD)) return 0;
  module->thread = osip_thread_create(20000, loop, arg);
  return module->thread == NULL ? -1 : 0;
}

int module_set_flag(module_t *module, int flag) {
  LOOPS_COUNT(module_set_flag);
  if (module == NULL) return -1;
  module->flag = flag;
  return 0;
}

int module_wakeup(module_t *module) {
  LOOPS_COUNT(module_wakeup);
  if (module == NULL) return -1;
  struct loops_module *own = (struct loops_module *)module;
  if (!atomic_load_explicit(&own->inside, memory_order_acquire)) return put(module, 'w');
  own->wake();
  return 0;
}

/* Somebody has written to the pipe past module_wakeup and module_release. */
static void pipe_ready(void *arg, int fd) {
  struct loops_module *own = arg;
  char bytes[50];
  ssize_t n = read(fd, bytes, sizeof bytes);
  if (n > 0 && memchr(bytes, 'q', (size_t)n) != NULL) {
    pthread_mutex_lock(&own->mutex);
    own->quit = 1;
    pthread_cond_broadcast(&own->told);
    pthread_mutex_unlock(&own->mutex);
  }
  own->wake();
}

void partyline_loops_enter(struct loops_module *own, void (*wake)(void)) {
  own->wake = wake;
  atomic_store(&own->inside, 1);
  /* What was written before this shows at once. */
  partyline_psp_watch(ppl_pipe_get_read_descr(own->module.wakeup), pipe_ready, own);
}

int partyline_loops_sleep(struct loops_module *own, const struct timeval *limit) {
  struct timespec until;
  clock_gettime(CLOCK_MONOTONIC, &until);
  if (limit != NULL) {
    until.tv_sec += limit->tv_sec;
    until.tv_nsec += limit->tv_usec * 1000;
    if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
  }
  pthread_mutex_lock(&own->mutex);
  while (!own->quit)
    if (limit == NULL) pthread_cond_wait(&own->told, &own->mutex);
    else if (pthread_cond_timedwait(&own->told, &own->mutex, &until) != 0) break;
  int quit = own->quit;
  pthread_mutex_unlock(&own->mutex);
  return quit;
}

void partyline_loops_leave(struct loops_module *own) {
  partyline_psp_unwatch(ppl_pipe_get_read_descr(own->module.wakeup));
  atomic_store(&own->inside, 0);
  own->quit = 0;
}
