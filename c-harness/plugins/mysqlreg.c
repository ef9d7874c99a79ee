/* libpsp_mysqlreg.so: the cached registrar of libpartyline as a plugin of partysip's. REGISTER is decided by RFC 3261 section 10.3
 * over a cache whose rows stand in MySQL or SQLite; the other methods find the locations of a user of this domain there.
 *
 * Where libpsp_udp.so is loaded too and nobody else hooks REGISTER or answers, REGISTER is answered before a transaction exists.
 * Else it is a plugin like any other: its hook for REGISTER at `first`, and one for answers that puts the bindings into the 2xx.
 *
 *   mysqlreg_url = mysql://user:password@host:port/database, or sqlite:PATH, or memory:     (or PARTYLINE_DB in the environment)
 *   mysqlreg_mode = write_through | write_back | memory    when the 200 leaves; as a hook among others at most write_back
 *   mysqlreg_auth = none | user | digest                   by the table subscriber
 *   mysqlreg_realm = text                                  else that of the plugin `auth`
 *   mysqlreg_options = name=value;name=value               any option of docs/options.md
 *   mysqlreg_location = forward | redirect | off           what happens to a request for a user of this domain: to all bindings,
 *                                                          302 with them (outside of a dialog), or nothing
 */
#include <partyline/partysip.h>

#include "../../src/partysip/psp.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

psp_plugin_t mysqlreg_plugin = {
    .name = "mysqlreg", .version = "partyline", .description = "registrar over MySQL", .flag = PSP_PLUGIN_SFP};

static partyline_registrar *registrar;
static int opened, first, redirect;

/* What an answer needs that is not a binding (a challenge, Min-Expires), from the hook for the request to the one for the answer. */
struct extra {
  psp_request_t *request;
  char lines[1024];
  struct extra *next;
};
static pthread_mutex_t extras_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct extra *extras;

static int failed(const char *what) {
  fprintf(stderr, "mysqlreg plugin: %s: %s\n", what, partyline_last_error());
  return -1;
}

#define OTHERS_IN(lists, mine)                                              \
  for (size_t level = 0; level < sizeof lists / sizeof *lists; level++)     \
    for (__typeof__(*lists) hook = lists[level]; hook != NULL; hook = hook->next) \
      if (hook->plug_id != (mine)) return 1;

/* Whether anybody else wants to see a REGISTER or its answer. */
static int others(void) {
  const sfp_inc_func_tab_t *in = core->sfp->rcv_registers;
  sfp_inc_func_t *lists[] = {in->really_first, in->first, in->middle, in->last, in->really_last, in->final};
  OTHERS_IN(lists, mysqlreg_plugin.plug_id)
  const sfp_snd_func_tab_t *classes[] = {core->sfp->snd_1xxs, core->sfp->snd_2xxs, core->sfp->snd_3xxs,
                                         core->sfp->snd_4xxs, core->sfp->snd_5xxs, core->sfp->snd_6xxs};
  for (size_t class = 0; class < sizeof classes / sizeof *classes; class++) {
    sfp_snd_func_t *answers[] = {classes[class]->really_first, classes[class]->first, classes[class]->middle,
                                 classes[class]->last, classes[class]->really_last};
    OTHERS_IN(answers, mysqlreg_plugin.plug_id)
  }
  return 0;
}

static int set(const char *name, const char *value) {
  return value == NULL || partyline_registrar_set(registrar, name, value) >= 0 ? 0 : failed(name);
}

/* `name=value;name=value` */
static int set_all(const char *text) {
  char name[64], value[128];
  int n = 0;
  while (text != NULL && sscanf(text, " %63[^=]=%127[^;]%n", name, value, &n) == 2) {
    if (set(name, value) != 0) return -1;
    text += n;
    if (*text == ';') text++;
    n = 0;
  }
  return 0;
}

static int open_now(int transport) {
  first = transport && !others();
  char *url = psp_config_get_element("mysqlreg_url"), *mode = psp_config_get_element("mysqlreg_mode");
  char *realm = psp_config_get_element("mysqlreg_realm");
  if (url == NULL) url = getenv("PARTYLINE_DB");
  if (url == NULL) url = "memory:";
  if (mode == NULL) mode = strcmp(url, "memory:") == 0 ? "memory" : "write_through";
  if (!first && strcmp(mode, "write_through") == 0) {
    fprintf(stderr, "mysqlreg plugin: other plugins hook REGISTER: mode write_back, a crash can lose the last second\n");
    mode = "write_back";
  }
  if (realm == NULL) {
    config_element_t *element = psp_config_get_sub_element("realm", "auth", NULL);
    if (element != NULL) realm = element->value;
  }
  if (partyline_registrar_new(&registrar) < 0) return failed("new");
  if (set("mode", mode) != 0 || set("use_domain", "off") != 0 || set("auth", psp_config_get_element("mysqlreg_auth")) != 0 ||
      set("realm", realm) != 0 || set_all(psp_config_get_element("mysqlreg_options")) != 0 ||
      (partyline_registrar_open(registrar, url) < 0 && failed("open") != 0)) {
    partyline_registrar_free(registrar);
    registrar = NULL;
    return -1;
  }
  return 0;
}

/* Once, when all plugins have set their hooks: by libpsp_udp.so before a message comes; else at the first request, for partysip calls
 * nothing before. */
static int open_registrar(int transport) {
  static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_mutex_lock(&mutex);
  if (!opened) open_now(transport);
  opened = 1;
  pthread_mutex_unlock(&mutex);
  return registrar != NULL ? 0 : -1;
}

/* For libpsp_udp.so: the registrar, if it may answer REGISTER itself. */
partyline_registrar *mysqlreg_alone(void) { return open_registrar(1) == 0 && first ? registrar : NULL; }

static int answer_with(psp_request_t *request, int status) {
  psp_request_set_uas_status(request, status);
  psp_request_set_mode(request, PSP_UAS_MODE);
  psp_request_set_state(request, PSP_MANDATE);
  return 0;
}

static void keep_lines(psp_request_t *request, const char *lines) {
  struct extra *new = malloc(sizeof *new);
  if (new == NULL) return;
  new->request = request;
  snprintf(new->lines, sizeof new->lines, "%s", lines);
  pthread_mutex_lock(&extras_mutex);
  new->next = extras;
  extras = new;
  pthread_mutex_unlock(&extras_mutex);
}

static struct extra *take_lines(psp_request_t *request) {
  pthread_mutex_lock(&extras_mutex);
  struct extra **at = &extras;
  while (*at != NULL && (*at)->request != request) at = &(*at)->next;
  struct extra *found = *at;
  if (found != NULL) *at = found->next;
  pthread_mutex_unlock(&extras_mutex);
  return found;
}

static int cb_mysqlreg_register(psp_request_t *request) {
  osip_message_t *message = psp_request_get_request(request);
  osip_via_t *via = osip_list_get(&message->vias, 0);
  osip_generic_param_t *received = NULL, *rport = NULL;
  char *text = NULL, lines[1024] = "";
  size_t length = 0;
  if (open_registrar(0) != 0) return answer_with(request, 503);
  if (via == NULL || osip_message_to_str(message, &text, &length) != 0) return answer_with(request, 400);
  osip_via_param_get_byname(via, "received", &received);
  osip_via_param_get_byname(via, "rport", &rport);
  int status = partyline_psp_register(registrar, text, length, received != NULL ? received->gvalue : NULL,
                                      (uint16_t)(rport != NULL && rport->gvalue != NULL ? atoi(rport->gvalue) : 0), lines,
                                      sizeof lines);
  osip_free(text);
  if (lines[0] != '\0') keep_lines(request, lines);
  return answer_with(request, status < 0 ? 500 : status);
}

static int put_binding(void *user, const partyline_binding *binding) {
  osip_message_t *response = user;
  char text[1024];
  int n = snprintf(text, sizeof text, "<%s>;expires=%u", binding->contact, binding->expires);
  if (binding->q < 1000 && n > 0 && (size_t)n < sizeof text - 8) snprintf(text + n, sizeof text - (size_t)n, ";q=0.%03u", binding->q);
  osip_message_set_contact(response, text);
  return 0;
}

/* What lookups go by: users are known by name alone. */
static char *aor_of(osip_uri_t *uri) {
  char *text = NULL;
  return uri != NULL && uri->username != NULL && osip_uri_to_str(uri, &text) == 0 ? text : NULL;
}

static int cb_mysqlreg_answer(psp_request_t *request, osip_message_t *response) {
  osip_message_t *message = psp_request_get_request(request);
  if (!MSG_IS_REGISTER(message)) return 0;
  char *aor = MSG_IS_STATUS_2XX(response) ? aor_of(message->to->url) : NULL;
  if (aor != NULL) partyline_registrar_lookup(registrar, aor, put_binding, response);
  osip_free(aor);
  struct extra *extra = take_lines(request);
  if (extra == NULL) return 0;
  char *rest = extra->lines;
  for (char *line; (line = strtok_r(NULL, "\r\n", &rest)) != NULL;) {
    char *colon = strchr(line, ':');
    if (colon == NULL) continue;
    *colon = '\0';
    char *value = colon + 1 + strspn(colon + 1, " ");
    if (strcasecmp(line, "WWW-Authenticate") == 0) osip_message_set_www_authenticate(response, value);
    else osip_message_set_header(response, line, value);
  }
  free(extra);
  return 0;
}

static int put_location(void *user, const partyline_binding *binding) {
  psp_request_t *request = user;
  osip_uri_t *url;
  location_t *location;
  if (osip_uri_init(&url) != 0) return 0;
  if (osip_uri_parse(url, binding->contact) != 0 || location_init(&location, url, 3600) != 0) {
    osip_uri_free(url);
    return 0;
  }
  location_t **behind = &request->locations, *before = NULL; /* best first */
  while (*behind != NULL) before = *behind, behind = &before->next;
  location->next = NULL;
  location->parent = before;
  *behind = location;
  return 0;
}

static int cb_mysqlreg_locate(psp_request_t *request) {
  osip_message_t *message = psp_request_get_request(request);
  osip_generic_param_t *tag = NULL;
  if (open_registrar(0) != 0) return answer_with(request, 503);
  if (message->to != NULL) osip_to_get_tag(message->to, &tag);
  int within = tag != NULL, routes = osip_list_size(&message->routes);
  if (routes > 1 || (within && routes > 0)) {
    /* Without a location partysip goes by the routes, and behind the last by the request URI: that of a dialog is a contact. */
    psp_request_set_mode(request, PSP_FORK_MODE);
    psp_request_set_state(request, PSP_MANDATE);
    return 0;
  }
  char *aor = aor_of(message->req_uri);
  int found = aor != NULL ? partyline_registrar_lookup(registrar, aor, put_location, request) : 0;
  osip_free(aor);
  if (found < 0) return answer_with(request, 503);
  if (found > 0 && redirect && !within) return answer_with(request, 302);
  /* As partysip's ls_localdb: who is not known here may be known to the next plugin, who is found is not asked for again. */
  psp_request_set_uas_status(request, 404);
  psp_request_set_mode(request, found > 0 ? PSP_FORK_MODE : PSP_UAS_MODE);
  psp_request_set_state(request, found > 0 ? PSP_MANDATE : PSP_CONTINUE);
  return 0;
}

int plugin_init(char *name_config) {
  (void)name_config;
  sfp_plugin_t *sfp;
  sfp_inc_func_t *in;
  int id = mysqlreg_plugin.plug_id;
  psp_plugin_take_ownership(&mysqlreg_plugin);
  if (psp_core_load_sfp_plugin(&sfp, &mysqlreg_plugin) != 0 || sfp_inc_func_init(&in, cb_mysqlreg_register, id) != 0 ||
      psp_core_add_sfp_inc_register_hook(in, PSP_HOOK_FIRST) != 0)
    return -1;
  int (*const answers[])(sfp_snd_func_t *, int) = {psp_core_add_sfp_snd_2xx_hook, psp_core_add_sfp_snd_4xx_hook,
                                                   psp_core_add_sfp_snd_5xx_hook};
  for (unsigned i = 0; i < sizeof answers / sizeof *answers; i++) {
    sfp_snd_func_t *out;
    if (sfp_snd_func_init(&out, cb_mysqlreg_answer, id) != 0 || answers[i](out, PSP_HOOK_MIDDLE) != 0) return -1;
  }
  char *location = psp_config_get_element("mysqlreg_location");
  if (location != NULL && strcmp(location, "off") == 0) return 0;
  redirect = location != NULL && strcmp(location, "redirect") == 0;
  int (*const methods[])(sfp_inc_func_t *, int) = {
      psp_core_add_sfp_inc_invite_hook,    psp_core_add_sfp_inc_ack_hook,  psp_core_add_sfp_inc_bye_hook,
      psp_core_add_sfp_inc_options_hook,   psp_core_add_sfp_inc_info_hook, psp_core_add_sfp_inc_notify_hook,
      psp_core_add_sfp_inc_subscribe_hook, psp_core_add_sfp_inc_unknown_hook};
  for (unsigned i = 0; i < sizeof methods / sizeof *methods; i++)
    if (sfp_inc_func_init(&in, cb_mysqlreg_locate, id) != 0 || methods[i](in, PSP_HOOK_LAST) != 0) return -1;
  return 0;
}

int plugin_start(void) {
  /* Where our transport is loaded it has asked already, or asks next: either way before a message comes. */
  return open_registrar(dlsym(RTLD_DEFAULT, "partyline_udp_transport") != NULL);
}

int plugin_release(void) {
  partyline_registrar_free(registrar);
  registrar = NULL;
  while (extras != NULL) free(take_lines(extras->request));
  return 0;
}
