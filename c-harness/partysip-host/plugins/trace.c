/* For tests: writes each call of a hook with its arguments to the file TRACE_FILE, and finds out whether two calls ever run at once. A hook on every
 * method at two levels, and one on each class of answers. */
#include "hooks.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

psp_plugin_t trace_plugin = {.name = "trace", .version = "1.0", .description = "writes down calls", .flag = PSP_PLUGIN_SFP};
static FILE *out;
static atomic_int inside;

static void note(const char *hook, psp_request_t *request, int status) {
  osip_message_t *message = psp_request_get_request(request);
  int locations = 0;
  for (location_t *location = request->locations; location != NULL; location = location->next) locations++;
  if (atomic_fetch_add(&inside, 1) != 0) fprintf(out, "two at once\n");
  fprintf(out, "%s %s %s %s %d flag=%x state=%d locations=%d uri=%s to=%s contacts=%d vias=%d\n", hook, message->sip_method,
          message->call_id->number, message->cseq->number, status, (unsigned)request->flag, request->state, locations,
          message->req_uri->username, message->to->url->username, osip_list_size(&message->contacts), osip_list_size(&message->vias));
  fflush(out);
  atomic_fetch_sub(&inside, 1);
}

static int cb_first(psp_request_t *request) {
  note("first", request, request->state);
  return 0;
}

static int cb_final(psp_request_t *request) {
  note("final", request, request->uas_status);
  return 0;
}

static int cb_answer(psp_request_t *request, osip_message_t *response) {
  note("answer", request, response->status_code);
  return 0;
}

int plugin_init(char *name_config) {
  (void)name_config;
  sfp_plugin_t *sfp;
  char *file = getenv("TRACE_FILE");
  out = fopen(file != NULL ? file : "/dev/null", "w");
  psp_plugin_take_ownership(&trace_plugin);
  if (out == NULL || psp_core_load_sfp_plugin(&sfp, &trace_plugin) != 0 ||
      hook_all_methods(cb_first, trace_plugin.plug_id, PSP_HOOK_FIRST) != 0 ||
      hook_all_methods(cb_final, trace_plugin.plug_id, PSP_HOOK_FINAL) != 0)
    return -1;
  int (*const add[])(sfp_snd_func_t *, int) = {
      psp_core_add_sfp_snd_1xx_hook, psp_core_add_sfp_snd_2xx_hook, psp_core_add_sfp_snd_3xx_hook,
      psp_core_add_sfp_snd_4xx_hook, psp_core_add_sfp_snd_5xx_hook, psp_core_add_sfp_snd_6xx_hook,
  };
  for (unsigned i = 0; i < sizeof add / sizeof *add; i++) {
    sfp_snd_func_t *function;
    if (sfp_snd_func_init(&function, cb_answer, trace_plugin.plug_id) != 0 || add[i](function, PSP_HOOK_REALLY_LAST) != 0)
      return -1;
  }
  return 0;
}

int plugin_start(void) { return 0; }

int plugin_release(void) {
  fclose(out);
  return 0;
}
