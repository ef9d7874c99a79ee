/* partysip-host -f CONFIG [-d PLUGIN_FOLDER]: runs until SIGTERM or SIGINT. */
#include "host.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void *wait_for_signal(void *arg) {
  int signal;
  sigwait(arg, &signal);
  pspm_sfp_release(core->sfp); /* it runs in main: this only tells it to end */
  return NULL;
}

int main(int argc, char **argv) {
  const char *config = NULL, *folder = ".";
  for (int option; (option = getopt(argc, argv, "f:d:")) != -1;)
    if (option == 'f') config = optarg;
    else if (option == 'd') folder = optarg;
    else return 2;
  if (config == NULL || psp_config_load(config) != 0) {
    fprintf(stderr, "usage: partysip-host -f CONFIG [-d PLUGIN_FOLDER]\n");
    return 2;
  }
  /* Before any thread: they all inherit it. */
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  pthread_sigmask(SIG_BLOCK, &set, NULL);

  osip_trace_initialize(TRACE_LEVEL0, stderr);
  for (int level = TRACE_LEVEL0; level < END_TRACE_LEVEL; level++) osip_trace_disable_level(level);
  if (ppl_uinfo_init() != 0 || psp_core_init() != 0 || psp_core_load_plugins(folder) != 0) {
    fprintf(stderr, "partysip-host: cannot start\n");
    return 1;
  }
  pthread_t waiter;
  pthread_create(&waiter, NULL, wait_for_signal, &set);
  if (psp_core_start(1) != 0) return 1;
  printf("partysip-host: ready\n");
  fflush(stdout);
  psp_core_execute();
  pthread_join(waiter, NULL);
  psp_core_free();
  ppl_uinfo_free_all();
  psp_config_unload();
  return 0;
}
