/* What the plugins share: a hook on every method. */
#ifndef HOOKS_H
#define HOOKS_H

#include <partyline/partysip.h>

static inline int hook_all_methods(int (*callback)(psp_request_t *), int plug_id, int level) {
  int (*const add[])(sfp_inc_func_t *, int) = {
      psp_core_add_sfp_inc_invite_hook,  psp_core_add_sfp_inc_ack_hook,     psp_core_add_sfp_inc_register_hook,
      psp_core_add_sfp_inc_bye_hook,     psp_core_add_sfp_inc_options_hook, psp_core_add_sfp_inc_info_hook,
      psp_core_add_sfp_inc_cancel_hook,  psp_core_add_sfp_inc_notify_hook,  psp_core_add_sfp_inc_subscribe_hook,
      psp_core_add_sfp_inc_unknown_hook,
  };
  for (unsigned i = 0; i < sizeof add / sizeof *add; i++) {
    sfp_inc_func_t *function;
    if (sfp_inc_func_init(&function, callback, plug_id) != 0 || add[i](function, level) != 0) return -1;
  }
  return 0;
}

static inline int answer_with(psp_request_t *request, int status) {
  psp_request_set_uas_status(request, status);
  psp_request_set_mode(request, PSP_UAS_MODE);
  psp_request_set_state(request, PSP_MANDATE);
  return 0;
}

#endif
