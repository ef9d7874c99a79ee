/* Modules: a thread that sleeps on a pipe. 'w' wakes it, 'q' ends it. */
#include "host.h"

int module_init(module_t **module, int flag, char *filename) {
  module_t *new = osip_malloc(sizeof *new);
  if (new == NULL) return -1;
  new->flag = flag;
  new->thread = NULL;
  new->filename = osip_strdup(filename);
  new->wakeup = ppl_pipe();
  if (new->wakeup == NULL) {
    osip_free(new->filename);
    osip_free(new);
    return -1;
  }
  *module = new;
  return 0;
}

void module_free(module_t *module) {
  if (module == NULL || module->thread != NULL) return;
  osip_free(module->filename);
  ppl_pipe_close(module->wakeup);
  osip_free(module);
}

static int put(module_t *module, char what) { return ppl_pipe_write(module->wakeup, &what, 1) == 1 ? 0 : -1; }

int module_release(module_t *module) {
  if (module == NULL) return -1;
  if (!(module->flag & MOD_THREAD) || module->wakeup == NULL) return 0;
  if (put(module, 'q') != 0) return -1;
  if (module->thread == NULL) return 0;
  if (osip_thread_join(module->thread) != 0) return -1;
  osip_free(module->thread);
  module->thread = NULL;
  return 0;
}

int module_start(module_t *module, void *(*loop)(void *), void *arg) {
  if (module == NULL || loop == NULL) return -1;
  if (!(module->flag & MOD_THREAD)) return 0;
  module->thread = osip_thread_create(20000, loop, arg);
  return module->thread == NULL ? -1 : 0;
}

int module_set_flag(module_t *module, int flag) {
  if (module == NULL) return -1;
  module->flag = flag;
  return 0;
}

int module_wakeup(module_t *module) { return module == NULL ? -1 : put(module, 'w'); }
