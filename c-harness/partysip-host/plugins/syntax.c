/* Checks what every request must have; first of all hooks. Adds a Warning to 4xx answers. */
#include "hooks.h"

#include <stdlib.h>
#include <string.h>

psp_plugin_t syntax_plugin = {.name = "syntax", .version = "1.0", .description = "checks requests", .flag = PSP_PLUGIN_SFP};

int cb_syntax_check(psp_request_t *request) {
  osip_message_t *message = psp_request_get_request(request);
  osip_header_t *forwards = NULL;
  psp_config_get_element("serverport_udp"); /* a walk of the list per request, as partysip's has it */
  if (message->to == NULL || message->from == NULL || message->call_id == NULL || message->cseq == NULL)
    return answer_with(request, 400);
  if (osip_message_header_get_byname(message, "max-forwards", 0, &forwards) >= 0 && forwards->hvalue != NULL &&
      atoi(forwards->hvalue) == 0)
    return answer_with(request, 483);
  if (message->req_uri == NULL || message->req_uri->scheme == NULL ||
      (strcmp(message->req_uri->scheme, "sip") != 0 && strcmp(message->req_uri->scheme, "sips") != 0))
    return answer_with(request, 416);
  psp_request_set_state(request, PSP_CONTINUE);
  return 0;
}

int cb_syntax_warn(psp_request_t *request, osip_message_t *response) {
  (void)request;
  osip_message_set_header(response, "Warning", "399 partysip-host \"refused\"");
  return 0;
}

int plugin_init(char *name_config) {
  (void)name_config;
  sfp_plugin_t *sfp;
  sfp_snd_func_t *warn;
  psp_plugin_take_ownership(&syntax_plugin);
  if (psp_core_load_sfp_plugin(&sfp, &syntax_plugin) != 0 ||
      hook_all_methods(cb_syntax_check, syntax_plugin.plug_id, PSP_HOOK_REALLY_FIRST) != 0 ||
      sfp_snd_func_init(&warn, cb_syntax_warn, syntax_plugin.plug_id) != 0)
    return -1;
  return psp_core_add_sfp_snd_4xx_hook(warn, PSP_HOOK_FIRST);
}

int plugin_start(void) { return 0; }

int plugin_release(void) { return 0; }
