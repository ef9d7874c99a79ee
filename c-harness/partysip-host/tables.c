/* The tables of hooks. */
#include "host.h"

#include <string.h>

static void *zeroed(size_t size) {
  void *block = osip_malloc(size);
  if (block != NULL) memset(block, 0, size);
  return block;
}

sfp_inc_func_tab_t *sfp_inc_func_tab_new(void) { return zeroed(sizeof(sfp_inc_func_tab_t)); }
sfp_fwd_func_tab_t *sfp_func_tab_new(void) { return zeroed(sizeof(sfp_fwd_func_tab_t)); }
sfp_snd_func_tab_t *sfp_snd_func_tab_new(void) { return zeroed(sizeof(sfp_snd_func_tab_t)); }

#define FREE_LIST(list)                         \
  while ((list) != NULL) {                      \
    __typeof__(list) element = (list);          \
    PSP_REMOVE(list, element);                  \
    osip_free(element);                         \
  }

void sfp_inc_func_tab_free(sfp_inc_func_tab_t *table) {
  if (table == NULL) return;
  FREE_LIST(table->really_first);
  FREE_LIST(table->first);
  FREE_LIST(table->middle);
  FREE_LIST(table->last);
  FREE_LIST(table->really_last);
  FREE_LIST(table->final);
  osip_free(table);
}

void sfp_func_tab_free(sfp_fwd_func_tab_t *table) {
  if (table == NULL) return;
  FREE_LIST(table->really_first);
  FREE_LIST(table->first);
  FREE_LIST(table->middle);
  FREE_LIST(table->last);
  FREE_LIST(table->really_last);
  osip_free(table);
}

void sfp_snd_func_tab_free(sfp_snd_func_tab_t *table) {
  if (table == NULL) return;
  FREE_LIST(table->really_first);
  FREE_LIST(table->first);
  FREE_LIST(table->middle);
  FREE_LIST(table->last);
  FREE_LIST(table->really_last);
  osip_free(table);
}

static int init(sfp_inc_func_t **out, int (*callback)(psp_request_t *), int plug_id) {
  sfp_inc_func_t *new = zeroed(sizeof *new);
  if (new == NULL) return -1;
  new->plug_id = plug_id;
  new->callback = callback;
  *out = new;
  return 0;
}

int sfp_inc_func_init(sfp_inc_func_t **out, int (*callback)(psp_request_t *), int plug_id) {
  return init(out, callback, plug_id);
}

int sfp_fwd_func_init(sfp_fwd_func_t **out, int (*callback)(psp_request_t *), int plug_id) {
  return init(out, callback, plug_id);
}

int sfp_rcv_func_init(sfp_rcv_func_t **out, int (*callback)(psp_request_t *), int plug_id) {
  return init(out, callback, plug_id);
}

int sfp_snd_func_init(sfp_snd_func_t **out, int (*callback)(psp_request_t *, osip_message_t *), int plug_id) {
  sfp_snd_func_t *new = zeroed(sizeof *new);
  if (new == NULL) return -1;
  new->plug_id = plug_id;
  new->callback = callback;
  *out = new;
  return 0;
}

#define PUT(type, table, function, level)                                              \
  switch (level) {                                                                     \
    case PSP_HOOK_REALLY_FIRST: PSP_APPEND(type, (table)->really_first, function); break; \
    case PSP_HOOK_FIRST: PSP_APPEND(type, (table)->first, function); break;            \
    case PSP_HOOK_MIDDLE: PSP_APPEND(type, (table)->middle, function); break;          \
    case PSP_HOOK_LAST: PSP_APPEND(type, (table)->last, function); break;              \
    case PSP_HOOK_REALLY_LAST: PSP_APPEND(type, (table)->really_last, function); break

#define INC(method, field)                                                             \
  int psp_core_add_sfp_inc_##method##_hook(sfp_inc_func_t *function, int level) {      \
    PUT(sfp_inc_func_t, core->sfp->field, function, level);                            \
    case PSP_HOOK_FINAL: PSP_APPEND(sfp_inc_func_t, core->sfp->field->final, function); break; \
    default: return -1;                                                                \
    }                                                                                  \
    return 0;                                                                          \
  }
INC(invite, rcv_invites)
INC(ack, rcv_acks)
INC(register, rcv_registers)
INC(bye, rcv_byes)
INC(options, rcv_optionss)
INC(info, rcv_infos)
INC(cancel, rcv_cancels)
INC(notify, rcv_notifys)
INC(subscribe, rcv_subscribes)
INC(unknown, rcv_unknowns)

#define SND(class)                                                                     \
  int psp_core_add_sfp_snd_##class##_hook(sfp_snd_func_t *function, int level) {       \
    PUT(sfp_snd_func_t, core->sfp->snd_##class##s, function, level);                   \
    default: return -1;                                                                \
    }                                                                                  \
    return 0;                                                                          \
  }
SND(1xx)
SND(2xx)
SND(3xx)
SND(4xx)
SND(5xx)
SND(6xx)
