/* The registrar: bindings into libppl's lists, and from there into the 2xx. */
#include "hooks.h"

#include <string.h>

psp_plugin_t rgstrar_plugin = {.name = "Registrar plugin", .version = "1.0", .description = "registrar", .flag = PSP_PLUGIN_SFP};

static void path_of(osip_message_t *message, char *path, size_t size) {
  osip_header_t *header;
  size_t length = 0;
  for (int i = 0; (i = osip_message_header_get_byname(message, "path", i, &header)) >= 0; i++) {
    size_t more = header->hvalue != NULL ? strlen(header->hvalue) : 0;
    if (more == 0 || length + more + 2 > size) continue;
    if (length > 0) path[length++] = ',';
    memcpy(path + length, header->hvalue, more);
    length += more;
  }
  path[length] = '\0';
}

int cb_rgstrar_update_contact_list(psp_request_t *request) {
  osip_message_t *message = psp_request_get_request(request);
  if (message->to == NULL || message->to->url == NULL || message->to->url->username == NULL) return answer_with(request, 403);
  ppl_uinfo_t *user = ppl_uinfo_find_by_aor(message->to->url);
  if (user == NULL) user = ppl_uinfo_create(message->to->url, NULL, NULL);
  if (user == NULL) return answer_with(request, 400);
  osip_header_t *header = NULL;
  char path[500], *expires = osip_message_get_expires(message, 0, &header) >= 0 ? header->hvalue : NULL;
  path_of(message, path, sizeof path);
  for (int i = 0; !osip_list_eol(&message->contacts, i); i++)
    if (ppl_uinfo_add_binding_with_path(user, osip_list_get(&message->contacts, i), expires, path[0] != '\0' ? path : NULL) != 0)
      return answer_with(request, 400);
  return answer_with(request, 200);
}

int cb_rgstrar_add_contacts_in_register(psp_request_t *request, osip_message_t *response) {
  osip_message_t *message = psp_request_get_request(request);
  if (!MSG_IS_REGISTER(message)) return 0;
  ppl_uinfo_t *user = ppl_uinfo_find_by_aor(message->to->url);
  if (user == NULL) {
    psp_request_set_state(request, PSP_STOP);
    return -2;
  }
  osip_contact_t *first = osip_list_get(&message->contacts, 0);
  if (first != NULL && first->displayname != NULL && strcmp(first->displayname, "*") == 0) {
    ppl_uinfo_remove_all_bindings(user);
    osip_message_set_expires(response, "0");
    psp_request_set_state(request, PSP_CONTINUE);
    ppl_uinfo_store_bindings(user);
    return 0;
  }
  binding_t *next;
  for (binding_t *binding = user->bindings; binding != NULL; binding = next) {
    next = binding->next;
    osip_contact_t *contact;
    if (ppl_uinfo_check_binding(binding) != 0) ppl_uinfo_remove_binding(user, binding);
    else if (osip_contact_clone(binding->contact, &contact) == 0) osip_list_add(&response->contacts, contact, -1);
  }
  ppl_uinfo_store_bindings(user);
  psp_request_set_state(request, PSP_CONTINUE);
  return 0;
}

int plugin_init(char *name_config) {
  (void)name_config;
  sfp_plugin_t *sfp;
  sfp_inc_func_t *in;
  sfp_snd_func_t *out;
  psp_plugin_take_ownership(&rgstrar_plugin);
  if (psp_core_load_sfp_plugin(&sfp, &rgstrar_plugin) != 0 ||
      sfp_inc_func_init(&in, cb_rgstrar_update_contact_list, rgstrar_plugin.plug_id) != 0 ||
      sfp_snd_func_init(&out, cb_rgstrar_add_contacts_in_register, rgstrar_plugin.plug_id) != 0)
    return -1;
  psp_core_add_sfp_inc_register_hook(in, PSP_HOOK_FIRST);
  return psp_core_add_sfp_snd_2xx_hook(out, PSP_HOOK_MIDDLE);
}

int plugin_start(void) { return 0; }

int plugin_release(void) { return 0; }
