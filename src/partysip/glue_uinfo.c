/* libppl's users and bindings for uinfo.rs and persist.rs: fields read, osip2's parsers called. All references are weak: where
 * there is no libppl nothing here is called. */
#include "../../include/partyline/partysip.h"

#include <stdint.h>

#define HIDDEN __attribute__((visibility("hidden")))

#pragma weak osip_uri_to_str
#pragma weak osip_uri_param_get_byname
#pragma weak osip_contact_init
#pragma weak osip_contact_parse
#pragma weak osip_contact_free
#pragma weak osip_from_init
#pragma weak osip_from_free
#pragma weak osip_free_func

HIDDEN const char *partyline_glue_uri_user(const osip_uri_t *uri) {
  return uri == NULL || uri->host == NULL ? NULL : uri->username;
}

/* The user name of a user's address-of-record number i; NULL behind the last. */
HIDDEN const char *partyline_glue_user_name(const ppl_uinfo_t *user, size_t i) {
  const aor_t *aor = user->aor;
  while (aor != NULL && i-- > 0) aor = aor->next;
  return aor == NULL || aor->url == NULL ? NULL : aor->url->username;
}

HIDDEN const char *partyline_glue_user_login(const ppl_uinfo_t *user) { return user->login; }

HIDDEN ppl_uinfo_t *partyline_glue_user_next(const ppl_uinfo_t *user) { return user->next; }

HIDDEN binding_t *partyline_glue_binding_first(const ppl_uinfo_t *user) { return user->bindings; }

HIDDEN binding_t *partyline_glue_binding_next(const binding_t *binding) { return binding->next; }

struct partyline_binding_view {
  char *contact; /* to be freed with partyline_glue_text_free */
  const char *path, *q;
  int64_t when;
};

HIDDEN int partyline_glue_binding_read(const binding_t *binding, struct partyline_binding_view *view) {
  osip_generic_param_t *q = NULL;
  if (binding->contact == NULL || binding->contact->url == NULL || osip_uri_to_str(binding->contact->url, &view->contact) != 0)
    return -1;
  osip_uri_param_get_byname(&binding->contact->gen_params, "q", &q);
  view->q = q != NULL ? q->gvalue : NULL;
  view->path = binding->path;
  view->when = binding->when;
  return 0;
}

HIDDEN void partyline_glue_text_free(char *text) { osip_free(text); }

/* A contact as a Contact header has it; NULL where it cannot be read. */
HIDDEN osip_contact_t *partyline_glue_contact_new(const char *text) {
  osip_contact_t *contact;
  if (osip_contact_init(&contact) != 0) return NULL;
  if (osip_contact_parse(contact, text) == 0) return contact;
  osip_contact_free(contact);
  return NULL;
}

HIDDEN void partyline_glue_contact_free(osip_contact_t *contact) { osip_contact_free(contact); }
