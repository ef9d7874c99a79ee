/* Answers. */
#include "host.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

static void add_tag(osip_message_t *response) {
  osip_generic_param_t *tag = NULL;
  if (response->to == NULL || (osip_to_get_tag(response->to, &tag) == 0 && tag != NULL)) return;
  char text[24];
  snprintf(text, sizeof text, "%u", osip_build_random_number());
  osip_to_set_tag(response->to, osip_strdup(text));
}

int osip_msg_build_response(osip_message_t **out, int status, osip_message_t *request) {
  osip_message_t *response;
  if (osip_message_init(&response) != 0) return -1;
  osip_message_set_version(response, osip_strdup("SIP/2.0"));
  osip_message_set_status_code(response, status);
  const char *reason = osip_message_get_reason(status);
  osip_message_set_reason_phrase(response, osip_strdup(reason != NULL ? reason : "Unknown"));
  if (osip_from_clone(request->from, &response->from) != 0 || osip_to_clone(request->to, &response->to) != 0 ||
      osip_call_id_clone(request->call_id, &response->call_id) != 0 || osip_cseq_clone(request->cseq, &response->cseq) != 0)
    goto failed;
  if (status > 100) add_tag(response);
  for (int i = 0; !osip_list_eol(&request->vias, i); i++) {
    osip_via_t *via;
    if (osip_via_clone(osip_list_get(&request->vias, i), &via) != 0) goto failed;
    osip_list_add(&response->vias, via, -1);
  }
  osip_message_set_header(response, "Server", core->banner);
  osip_message_set_content_length(response, "0");
  *out = response;
  return 0;
failed:
  osip_message_free(response);
  return -1;
}
