/* The location service, in its redirecting mode: 302 with the bindings of the user in the request URI, or 404. */
#include "hooks.h"

psp_plugin_t ls_localdb_plugin = {
    .name = "ls_localdb", .version = "1.0", .description = "locations from the registrar", .flag = PSP_PLUGIN_SFP};

int cb_ls_localdb_search_user_location(psp_request_t *request) {
  osip_message_t *message = psp_request_get_request(request);
  if (MSG_IS_REGISTER(message)) return 0; /* nobody has answered it: not for this server */
  ppl_uinfo_t *user = ppl_uinfo_find_by_aor(message->req_uri);
  if (user == NULL) return answer_with(request, 404);
  int found = 0;
  for (binding_t *binding = user->bindings; binding != NULL; binding = binding->next) {
    osip_uri_t *url;
    location_t *location;
    if (ppl_uinfo_check_binding(binding) != 0 || osip_uri_clone(binding->contact->url, &url) != 0) continue;
    if (location_init(&location, url, 3600) != 0) {
      osip_uri_free(url);
      continue;
    }
    PSP_APPEND(location_t, request->locations, location);
    found = 1;
  }
  return answer_with(request, found ? 302 : 480);
}

int plugin_init(char *name_config) {
  (void)name_config;
  sfp_plugin_t *sfp;
  psp_plugin_take_ownership(&ls_localdb_plugin);
  if (psp_core_load_sfp_plugin(&sfp, &ls_localdb_plugin) != 0) return -1;
  return hook_all_methods(cb_ls_localdb_search_user_location, ls_localdb_plugin.plug_id, PSP_HOOK_LAST);
}

int plugin_start(void) { return 0; }

int plugin_release(void) { return 0; }
