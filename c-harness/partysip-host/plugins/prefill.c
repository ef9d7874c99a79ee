/* For measurements: PREFILL_USERS users with one binding each are there before the first request comes. */
#include "hooks.h"

#include <stdio.h>
#include <stdlib.h>

psp_plugin_t prefill_plugin = {.name = "prefill", .version = "1.0", .description = "makes users", .flag = PSP_PLUGIN_SFP};

static int make(long number) {
  char text[64];
  osip_uri_t *url;
  osip_contact_t *contact;
  if (osip_uri_init(&url) != 0) return -1;
  snprintf(text, sizeof text, "sip:user%ld@127.0.0.1", number);
  ppl_uinfo_t *user = osip_uri_parse(url, text) == 0 ? ppl_uinfo_create(url, NULL, NULL) : NULL;
  osip_uri_free(url);
  if (user == NULL || osip_contact_init(&contact) != 0) return -1;
  snprintf(text, sizeof text, "<sip:user%ld@127.0.0.1:5062>", number);
  int added = osip_contact_parse(contact, text) == 0 ? ppl_uinfo_add_binding(user, contact, "3600") : -1;
  osip_contact_free(contact);
  return added;
}

int plugin_init(char *name_config) {
  (void)name_config;
  char *text = getenv("PREFILL_USERS");
  psp_plugin_take_ownership(&prefill_plugin);
  for (long number = text != NULL ? atol(text) : 0; number-- > 0;)
    if (make(number) != 0) return -1;
  return 0;
}

int plugin_start(void) { return 0; }

int plugin_release(void) { return 0; }
