/* The plugins' hooks. A plugin whose policy is serial, as all are that nothing says otherwise of, is called in the turn, under the
 * global lock, as ever. The hooks for new requests of one that PARTYLINE_PLUGINS calls `parallel`, `keyed:aor` or `keyed:callid` are
 * called beside the loops, without the lock; the request's next hook is called when that one has returned. Hooks for answers and for
 * forwarding belong to the request state machine and stay in the turn, whatever the policy. */
#define _GNU_SOURCE 1 /* dladdr */

#include "loops.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PLUGINS 256

/* By plug_id. Written before the first request, and only read from then on. */
static struct loops_plugin plugins[PLUGINS];
static int any;

/* Where a request stands between two hooks. */
struct walk {
  psp_request_t *request;
  pspm_sfp_t *sfp;
  sfp_inc_func_t *hook; /* the next one; NULL: its list has ended */
  int level;            /* of its list: 0 to 4, 5 for `final` */
  int code;
  struct walk *next;
};

static pthread_mutex_t back_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct walk *back_first, **back_last = &back_first;
static pthread_cond_t back_all = PTHREAD_COND_INITIALIZER;
static int beside; /* hooks that run beside or are about to; under back_mutex */

sfp_inc_func_tab_t *partyline_loops_table(pspm_sfp_t *sfp, const osip_message_t *message) {
  return MSG_IS_REGISTER(message)    ? sfp->rcv_registers
         : MSG_IS_INVITE(message)    ? sfp->rcv_invites
         : MSG_IS_ACK(message)       ? sfp->rcv_acks
         : MSG_IS_BYE(message)       ? sfp->rcv_byes
         : MSG_IS_OPTIONS(message)   ? sfp->rcv_optionss
         : MSG_IS_INFO(message)      ? sfp->rcv_infos
         : MSG_IS_CANCEL(message)    ? sfp->rcv_cancels
         : MSG_IS_NOTIFY(message)    ? sfp->rcv_notifys
         : MSG_IS_SUBSCRIBE(message) ? sfp->rcv_subscribes
                                     : sfp->rcv_unknowns;
}

static sfp_inc_func_t *list(sfp_inc_func_tab_t *table, int level) {
  sfp_inc_func_t *const lists[] = {table->really_first, table->first, table->middle, table->last, table->really_last, table->final};
  return lists[level];
}

static enum loops_policy parse(const char *text, size_t length) {
  static const struct {
    const char *name;
    enum loops_policy policy;
  } known[] = {{"serial", LOOPS_SERIAL},
               {"parallel", LOOPS_PARALLEL},
               {"keyed:aor", LOOPS_KEYED_AOR},
               {"keyed:callid", LOOPS_KEYED_CALL_ID}};
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (strlen(known[i].name) == length && memcmp(known[i].name, text, length) == 0) return known[i].policy;
  return LOOPS_SERIAL; /* safe for whatever was meant */
}

/* The policy that `name=policy,...` gives to a plugin. */
static enum loops_policy policy_of(const char *settings, const char *name) {
  size_t length = strlen(name);
  while (settings != NULL && *settings != '\0') {
    size_t item = strcspn(settings, ",");
    if (item > length && memcmp(settings, name, length) == 0 && settings[length] == '=')
      return parse(settings + length + 1, item - length - 1);
    settings += item;
    if (*settings == ',') settings++;
  }
  return LOOPS_SERIAL;
}

/* The policy of a plugin by the name that it is loaded by: libpsp_NAME.so. The one in psp_plugin_t is a title. */
static enum loops_policy policy_of_plugin(const char *settings, const psp_plugin_t *plugin) {
  Dl_info file;
  char name[128];
  if (dladdr(plugin, &file) != 0 && file.dli_fname != NULL) {
    const char *last = strrchr(file.dli_fname, '/');
    if (sscanf(last != NULL ? last + 1 : file.dli_fname, "libpsp_%127[^.]", name) == 1) {
      enum loops_policy policy = policy_of(settings, name);
      if (policy != LOOPS_SERIAL) return policy;
    }
  }
  return plugin->name != NULL ? policy_of(settings, plugin->name) : LOOPS_SERIAL;
}

void partyline_loops_hooks_open(pspm_sfp_t *sfp) {
  const char *settings = getenv("PARTYLINE_PLUGINS");
  any = 0;
  for (sfp_plugin_t *plugin = sfp->sfp_plugins; plugin != NULL; plugin = plugin->next) {
    int id = plugin->psp_plugin->plug_id;
    if (id < 0 || id >= PLUGINS) continue;
    plugins[id].policy = policy_of_plugin(settings, plugin->psp_plugin);
    if (plugins[id].policy == LOOPS_SERIAL) continue;
    any = 1;
    if (plugins[id].strands == NULL) plugins[id].strands = partyline_psp_strands_new(plugins[id].policy != LOOPS_PARALLEL);
  }
}

void partyline_loops_hooks_close(void) {
  for (int i = 0; i < PLUGINS; i++) {
    partyline_psp_strands_free(plugins[i].strands);
    plugins[i] = (struct loops_plugin){LOOPS_SERIAL, NULL};
  }
  any = 0;
}

static void count_beside(int by) {
  pthread_mutex_lock(&back_mutex);
  beside += by;
  pthread_mutex_unlock(&back_mutex);
}

int partyline_loops_hooks_beside(void) {
  pthread_mutex_lock(&back_mutex);
  int count = beside;
  pthread_mutex_unlock(&back_mutex);
  return count;
}

void partyline_loops_hooks_wait(void) {
  pthread_mutex_lock(&back_mutex);
  while (beside > 0) pthread_cond_wait(&back_all, &back_mutex);
  pthread_mutex_unlock(&back_mutex);
}

static const struct loops_plugin *plugin_of(const sfp_inc_func_t *hook) {
  static const struct loops_plugin serial = {LOOPS_SERIAL, NULL};
  return hook->plug_id >= 0 && hook->plug_id < PLUGINS ? &plugins[hook->plug_id] : &serial;
}

static uint64_t hash(const char *text, uint64_t seed, int lower) {
  for (; text != NULL && *text != '\0'; text++) {
    unsigned char byte = (unsigned char)*text;
    if (lower && byte >= 'A' && byte <= 'Z') byte |= 0x20;
    seed = (seed ^ byte) * 0x100000001b3u;
  }
  return seed ^ seed >> 29;
}

static uint64_t key_of(const osip_message_t *message, enum loops_policy policy) {
  const uint64_t seed = 0xcbf29ce484222325u;
  if (policy == LOOPS_KEYED_CALL_ID) return message->call_id != NULL ? hash(message->call_id->number, seed, 0) : seed;
  /* The address-of-record: To of a REGISTER, else the request URI; users are known by name alone, in any case. */
  const osip_uri_t *uri = MSG_IS_REGISTER(message) && message->to != NULL ? message->to->url : message->req_uri;
  return uri != NULL ? hash(uri->username, seed, 1) : seed;
}

/* The next hook by the rules: within a list, then the next list; after MANDATE only `final`, after STOP none. */
static sfp_inc_func_t *advance(struct walk *walk, sfp_inc_func_tab_t *table) {
  if (walk->request->flag & PSP_STOP) {
    walk->code = -2;
    return NULL;
  }
  if (walk->request->flag & PSP_MANDATE) {
    if (walk->level == 5) return NULL;
    walk->level = 5;
    return walk->hook = table->final;
  }
  while (walk->hook == NULL && walk->level < 4) walk->hook = list(table, ++walk->level);
  return walk->hook;
}

static void give_back(struct walk *walk) {
  walk->next = NULL;
  pthread_mutex_lock(&back_mutex);
  *back_last = walk;
  back_last = &walk->next;
  if (--beside == 0) pthread_cond_broadcast(&back_all);
  pthread_mutex_unlock(&back_mutex);
  partyline_loops_turn_wake();
}

static void call_beside(void *arg) {
  struct walk *walk = arg;
  LOOPS_COUNT(hooks_beside);
  walk->hook->callback(walk->request);
  walk->hook = walk->hook->next;
  give_back(walk);
}

/* Calls hooks until there is none (1), one runs beside (0), or its plugin takes no more (-1). */
static int go_on(struct walk *walk) {
  sfp_inc_func_tab_t *table = partyline_loops_table(walk->sfp, psp_request_get_request(walk->request));
  while ((walk->hook = advance(walk, table)) != NULL) {
    const struct loops_plugin *plugin = plugin_of(walk->hook);
    if (plugin->policy != LOOPS_SERIAL) {
      uint64_t key = plugin->policy == LOOPS_PARALLEL ? 0 : key_of(psp_request_get_request(walk->request), plugin->policy);
      count_beside(1);
      if (partyline_psp_strands_run(plugin->strands, key, call_beside, walk) == 0) return 0;
      count_beside(-1);
      return -1;
    }
    LOOPS_COUNT(hooks_in_turn);
    walk->hook->callback(walk->request);
    walk->hook = walk->hook->next;
  }
  return 1;
}

int partyline_loops_hooks_call(pspm_sfp_t *sfp, psp_request_t *request, int *code) {
  osip_message_t *message = psp_request_get_request(request);
  *code = -1;
  if (message == NULL) return 1;
  struct walk here = {request, sfp, partyline_loops_table(sfp, message)->really_first, 0, 0, NULL};
  if (!any) {
    go_on(&here);
    *code = here.code;
    return 1;
  }
  struct walk *walk = osip_malloc(sizeof *walk);
  if (walk == NULL) return -1;
  *walk = here;
  int done = go_on(walk);
  if (done != 0) {
    *code = walk->code;
    osip_free(walk);
  }
  return done;
}

/* A request whose hooks are through, or whose plugin takes no more (*code 1). */
psp_request_t *partyline_loops_hooks_back(int *code) {
  for (;;) {
    pthread_mutex_lock(&back_mutex);
    struct walk *walk = back_first;
    if (walk != NULL && (back_first = walk->next) == NULL) back_last = &back_first;
    pthread_mutex_unlock(&back_mutex);
    if (walk == NULL) return NULL;
    int done = go_on(walk);
    if (done == 0) continue;
    psp_request_t *request = walk->request;
    *code = done < 0 ? 1 : walk->code;
    osip_free(walk);
    return request;
  }
}

/* By name, for whoever else calls it: in the caller's thread, one hook after another, whatever the policies. */
int pspm_sfp_inc_call_plugins(pspm_sfp_t *sfp, psp_request_t *request) {
  LOOPS_COUNT(pspm_sfp_inc_call_plugins);
  osip_message_t *message = psp_request_get_request(request);
  if (message == NULL) return -1;
  sfp_inc_func_tab_t *table = partyline_loops_table(sfp, message);
  struct walk walk = {request, sfp, table->really_first, 0, 0, NULL};
  while ((walk.hook = advance(&walk, table)) != NULL) {
    LOOPS_COUNT(hooks_in_turn);
    walk.hook->callback(request);
    walk.hook = walk.hook->next;
  }
  return walk.code;
}

#define WALK(type, table, call)                                                                                     \
  do {                                                                                                              \
    type *const lists[] = {(table)->really_first, (table)->first, (table)->middle, (table)->last, (table)->really_last}; \
    for (int level = 0; level < 5; level++)                                                                         \
      for (type *hook = lists[level]; hook != NULL; hook = hook->next) {                                            \
        LOOPS_COUNT(hooks_in_turn);                                                                                 \
        call;                                                                                                       \
        if (request->flag & PSP_STOP) return 0;                                                                     \
      }                                                                                                             \
  } while (0)

int pspm_sfp_call_plugins_for_request(pspm_sfp_t *sfp, psp_request_t *request, sfp_branch_t *branch) {
  (void)branch;
  LOOPS_COUNT(pspm_sfp_call_plugins_for_request);
  osip_message_t *message = psp_request_get_request(request);
  if (message == NULL) return -1;
  sfp_fwd_func_tab_t *table = MSG_IS_INVITE(message)      ? sfp->fwd_invites
                              : MSG_IS_ACK(message)       ? sfp->fwd_acks
                              : MSG_IS_REGISTER(message)  ? sfp->fwd_registers
                              : MSG_IS_BYE(message)       ? sfp->fwd_byes
                              : MSG_IS_OPTIONS(message)   ? sfp->fwd_optionss
                              : MSG_IS_INFO(message)      ? sfp->fwd_infos
                              : MSG_IS_CANCEL(message)    ? sfp->fwd_cancels
                              : MSG_IS_NOTIFY(message)    ? sfp->fwd_notifys
                              : MSG_IS_SUBSCRIBE(message) ? sfp->fwd_subscribes
                                                          : sfp->fwd_unknowns;
  WALK(sfp_fwd_func_t, table, hook->callback(request));
  return 0;
}

int pspm_sfp_call_plugins_for_rcv_response(pspm_sfp_t *sfp, psp_request_t *request, sfp_branch_t *branch) {
  (void)branch;
  LOOPS_COUNT(pspm_sfp_call_plugins_for_rcv_response);
  if (request == NULL || request->inc_tr == NULL || request->inc_tr->last_response == NULL) return -1;
  sfp_rcv_func_tab_t *const tables[] = {sfp->rcv_1xxs, sfp->rcv_2xxs, sfp->rcv_3xxs, sfp->rcv_4xxs, sfp->rcv_5xxs, sfp->rcv_6xxs};
  int class = request->inc_tr->last_response->status_code / 100;
  if (class < 1 || class > 6) return -1;
  WALK(sfp_rcv_func_t, tables[class - 1], hook->callback(request));
  return 0;
}

int pspm_sfp_call_plugins_for_snd_response(pspm_sfp_t *sfp, psp_request_t *request, osip_message_t *response) {
  LOOPS_COUNT(pspm_sfp_call_plugins_for_snd_response);
  sfp_snd_func_tab_t *const tables[] = {sfp->snd_1xxs, sfp->snd_2xxs, sfp->snd_3xxs, sfp->snd_4xxs, sfp->snd_5xxs, sfp->snd_6xxs};
  int class = response->status_code / 100;
  if (class < 1 || class > 6) return -1;
  WALK(sfp_snd_func_t, tables[class - 1], hook->callback(request, response));
  return 0;
}
