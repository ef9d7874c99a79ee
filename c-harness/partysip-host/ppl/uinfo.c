/* libppl: users and their bindings, in lists without a lock. Finding a user walks all of them. */
#include <partyline/partysip.h>

#include <stdlib.h>
#include <string.h>
#include <strings.h>

struct osip_mutex *ppl_uinfo_mutex; /* made and destroyed, never taken */
ppl_uinfo_t *user_infos;

int ppl_uinfo_init(void) {
  user_infos = NULL;
  ppl_uinfo_mutex = osip_mutex_init();
  return ppl_uinfo_mutex == NULL ? -1 : 0;
}

ppl_uinfo_t *ppl_uinfo_find_by_aor(osip_uri_t *aor) {
  if (aor == NULL || aor->username == NULL || aor->host == NULL) return NULL;
  for (ppl_uinfo_t *user = user_infos; user != NULL; user = user->next)
    for (aor_t *own = user->aor; own != NULL; own = own->next)
      if (strcasecmp(aor->username, own->url->username) == 0) return user;
  return NULL;
}

ppl_uinfo_t *ppl_uinfo_find_by_login(char *login) {
  if (login == NULL) return NULL;
  for (ppl_uinfo_t *user = user_infos; user != NULL; user = user->next)
    if (user->login != NULL && strcmp(login, user->login) == 0) return user;
  return NULL;
}

static aor_t *aor_of(osip_uri_t *url) {
  aor_t *aor = osip_malloc(sizeof *aor);
  if (aor == NULL) return NULL;
  memset(aor, 0, sizeof *aor);
  if (osip_uri_clone(url, &aor->url) == 0) return aor;
  osip_free(aor);
  return NULL;
}

ppl_uinfo_t *ppl_uinfo_create(osip_uri_t *url, char *login, char *passwd) {
  ppl_uinfo_t *user = osip_malloc(sizeof *user);
  if (user == NULL) return NULL;
  memset(user, 0, sizeof *user);
  user->status = 2;
  user->login = login;
  user->passwd = passwd;
  user->aor = aor_of(url);
  if (user->aor == NULL) {
    osip_free(user);
    return NULL;
  }
  PSP_ADD(user_infos, user);
  return user;
}

int ppl_uinfo_check_binding(binding_t *binding) { return binding == NULL || binding->when < ppl_time() ? -1 : 0; }

void ppl_uinfo_binding_free(binding_t *binding) {
  if (binding == NULL) return;
  osip_contact_free(binding->contact);
  osip_free(binding->path);
  osip_free(binding);
}

int ppl_uinfo_remove_binding(ppl_uinfo_t *user, binding_t *binding) {
  if (user == NULL || binding == NULL) return -1;
  PSP_REMOVE(user->bindings, binding);
  ppl_uinfo_binding_free(binding);
  return 0;
}

void ppl_uinfo_remove_all_bindings(ppl_uinfo_t *user) {
  while (user->bindings != NULL) ppl_uinfo_remove_binding(user, user->bindings);
  user->status = 2;
}

static int same(const char *a, const char *b) {
  return a == NULL || b == NULL ? a == b : strcasecmp(a, b) == 0;
}

/* Two contacts are one binding when user and host are equal, whatever the port. */
static binding_t *find(ppl_uinfo_t *user, osip_contact_t *contact) {
  if (contact->url == NULL || contact->url->host == NULL) return NULL;
  for (binding_t *binding = user->bindings; binding != NULL; binding = binding->next) {
    osip_uri_t *url = binding->contact != NULL ? binding->contact->url : NULL;
    if (url != NULL && url->host != NULL && same(url->username, contact->url->username) && same(url->host, contact->url->host))
      return binding;
  }
  return NULL;
}

int ppl_uinfo_add_binding_with_path(ppl_uinfo_t *user, osip_contact_t *contact, char *expires, char *path) {
  if (user == NULL || contact == NULL) return -1;
  if (contact->displayname != NULL && strcmp(contact->displayname, "*") == 0) {
    ppl_uinfo_remove_all_bindings(user);
    return 0;
  }
  binding_t *old = find(user, contact);
  if (old != NULL) ppl_uinfo_remove_binding(user, old);
  user->status = user->bindings == NULL ? 2 : 1;

  binding_t *new = osip_malloc(sizeof *new);
  if (new == NULL) return -1;
  memset(new, 0, sizeof *new);
  if (osip_contact_clone(contact, &new->contact) != 0) {
    osip_free(new);
    return -1;
  }
  osip_generic_param_t *parameter = NULL;
  if (osip_contact_param_get_byname(new->contact, "expires", &parameter) != 0 || parameter == NULL) {
    char *value = osip_strdup(expires != NULL ? expires : "3600");
    osip_contact_param_add(new->contact, osip_strdup("expires"), value);
    expires = value;
  } else expires = parameter->gvalue;
  int seconds = expires != NULL ? atoi(expires) : 3600;
  if (seconds <= 0) {
    ppl_uinfo_binding_free(new);
    return 0;
  }
  new->path = path != NULL ? osip_strdup(path) : NULL;
  new->when = ppl_time() + seconds;
  osip_generic_param_t *q = NULL;
  osip_contact_param_get_byname(new->contact, "q", &q);
  if (q == NULL || q->gvalue == NULL || q->gvalue[0] == '1') PSP_ADD(user->bindings, new);
  else PSP_APPEND(binding_t, user->bindings, new);
  user->status = 1;
  return 0;
}

int ppl_uinfo_add_binding(ppl_uinfo_t *user, osip_contact_t *contact, char *expires) {
  return ppl_uinfo_add_binding_with_path(user, contact, expires, NULL);
}

int ppl_uinfo_add_third_party(ppl_uinfo_t *user, osip_uri_t *url) {
  aor_t *aor = aor_of(url);
  if (aor == NULL) return -1;
  PSP_ADD(user->aor_3rd_parties, aor);
  return 0;
}

static void free_aors(aor_t *aors) {
  while (aors != NULL) {
    aor_t *aor = aors;
    PSP_REMOVE(aors, aor);
    osip_uri_free(aor->url);
    osip_free(aor);
  }
}

void ppl_uinfo_remove(ppl_uinfo_t *user) {
  if (user == NULL) return;
  PSP_REMOVE(user_infos, user);
  ppl_uinfo_remove_all_bindings(user);
  free_aors(user->aor);
  free_aors(user->aor_3rd_parties);
  osip_free(user->login);
  osip_free(user->passwd);
  osip_free(user);
}

/* There is no dbm here: bindings are kept in memory, as in a partysip that was built without one. */
void ppl_uinfo_store_bindings(ppl_uinfo_t *user) { (void)user; }

int ppl_uinfo_flush_dbm(void) {
  for (ppl_uinfo_t *user = user_infos; user != NULL; user = user->next) {
    binding_t *next;
    for (binding_t *binding = user->bindings; binding != NULL; binding = next) {
      next = binding->next;
      if (ppl_uinfo_check_binding(binding) != 0) ppl_uinfo_remove_binding(user, binding);
    }
  }
  return 0;
}

int ppl_uinfo_set_dbm(char *file) {
  (void)file;
  return 0;
}

void ppl_uinfo_close_dbm(void) { ppl_uinfo_flush_dbm(); }

void ppl_uinfo_free_all(void) {
  while (user_infos != NULL) ppl_uinfo_remove(user_infos);
  osip_mutex_destroy(ppl_uinfo_mutex);
  ppl_uinfo_mutex = NULL;
}
