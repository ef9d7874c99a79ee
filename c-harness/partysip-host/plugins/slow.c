/* For tests: sleeps in the REGISTER hook for as long as SLOW_MS says, and passes the request on. Writes to SLOW_FILE how often it was
 * called and how many calls ran at once at most. */
#include "hooks.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

psp_plugin_t slow_plugin = {.name = "Plugin that takes its time", .version = "1.0", .description = "takes its time", .flag = PSP_PLUGIN_SFP};
static unsigned milliseconds;
static atomic_uint calls, inside, most;

static int cb_slow(psp_request_t *request) {
  unsigned now = atomic_fetch_add(&inside, 1) + 1, seen = atomic_load(&most);
  while (now > seen && !atomic_compare_exchange_weak(&most, &seen, now)) continue;
  atomic_fetch_add(&calls, 1);
  usleep(milliseconds * 1000);
  atomic_fetch_sub(&inside, 1);
  psp_request_set_state(request, PSP_CONTINUE);
  return 0;
}

int plugin_init(char *name_config) {
  (void)name_config;
  sfp_plugin_t *sfp;
  sfp_inc_func_t *in;
  char *text = getenv("SLOW_MS");
  milliseconds = text != NULL ? (unsigned)atoi(text) : 20;
  psp_plugin_take_ownership(&slow_plugin);
  if (psp_core_load_sfp_plugin(&sfp, &slow_plugin) != 0 || sfp_inc_func_init(&in, cb_slow, slow_plugin.plug_id) != 0) return -1;
  return psp_core_add_sfp_inc_register_hook(in, PSP_HOOK_REALLY_FIRST);
}

int plugin_start(void) { return 0; }

int plugin_release(void) {
  char *file = getenv("SLOW_FILE");
  FILE *out = file != NULL ? fopen(file, "w") : NULL;
  if (out == NULL) return 0;
  fprintf(out, "calls %u most %u\n", calls, most);
  fclose(out);
  return 0;
}
