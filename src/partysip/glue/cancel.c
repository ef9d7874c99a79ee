/* dispatch_cancel_event: a CANCEL finds its INVITE by a key, where partysip looks through every request that is alive. What is
 * answered, and when it comes too late, is as ever. Only an INVITE is found: RFC 3261 section 9.2 gives a CANCEL of anything else no
 * effect. */
#include "loops.h"

#include <string.h>

static const char *branch_of(osip_via_t *via) {
  osip_generic_param_t *branch = NULL;
  if (via != NULL) osip_via_param_get_byname(via, "branch", &branch);
  return branch != NULL && branch->gvalue != NULL ? branch->gvalue : NULL;
}

/* By the branch; by the Call-ID where a caller of RFC 2543 has none. Never 0. */
static uint64_t key_of(osip_via_t *via, const osip_call_id_t *call_id) {
  const char *branch = branch_of(via);
  if (branch != NULL) return partyline_loops_hash(branch, 0xcbf29ce484222325u, 0) | 1;
  return partyline_loops_hash(call_id != NULL ? call_id->number : NULL, 0x84222325cbf29ce4u, 0) | 1;
}

uint64_t partyline_loops_cancel_key(const psp_request_t *request) {
  const osip_transaction_t *invite = request->inc_tr;
  if (invite == NULL || invite->orig_request == NULL || !MSG_IS_INVITE(invite->orig_request)) return 0;
  return key_of(invite->topvia, invite->callid);
}

static int concerns(const osip_transaction_t *invite, const osip_message_t *cancel, osip_via_t *via) {
  const char *own = branch_of(invite->topvia), *other = branch_of(via);
  if (own != NULL || other != NULL) return own != NULL && other != NULL && strcmp(own, other) == 0;
  return osip_call_id_match(invite->callid, cancel->call_id) == 0 &&
         (core->disable_check_for_osip_to_tag_in_cancel != 0 || osip_to_tag_match(invite->to, cancel->to) == 0) &&
         osip_from_tag_match(invite->from, cancel->from) == 0 &&
         strcmp(invite->cseq->number, cancel->cseq->number) == 0 && osip_via_match(invite->topvia, via) == 0;
}

static psp_request_t *find(const osip_message_t *cancel) {
  osip_via_t *via = osip_list_get(&cancel->vias, 0);
  if (via == NULL) return NULL;
  uint64_t key = key_of(via, cancel->call_id);
  psp_request_t *request;
  for (size_t n = 0; (request = partyline_psp_live_find(key, n)) != NULL; n++)
    if (request->inc_tr != NULL && concerns(request->inc_tr, cancel, via)) return request;
  return NULL;
}

static int answer(osip_transaction_t *cancel, int status) {
  osip_message_t *response;
  if (osip_msg_build_response(&response, status, cancel->orig_request) != 0) return -1;
  osip_event_t *event = osip_new_outgoing_sipmessage(response);
  if (event == NULL) {
    osip_message_free(response);
    return -1;
  }
  event->transactionid = cancel->transactionid;
  osip_transaction_add_event(cancel, event);
  psp_osip_wakeup(core->psp_osip);
  return 0;
}

void dispatch_cancel_event(pspm_sfp_t *sfp, osip_transaction_t *cancel) {
  LOOPS_COUNT(dispatch_cancel_event);
  psp_request_t *request = find(cancel->orig_request);
  osip_list_add(sfp->broken_transactions, cancel, 0);
  if (request == NULL || request->state == PROXY_CALLING /* nobody has answered it yet */ ||
      request->inc_tr->state == IST_COMPLETED || request->inc_tr->state == IST_TERMINATED) {
    answer(cancel, 481);
    return;
  }
  psp_event_t *event = answer(cancel, 200) == 0 ? __psp_event_new(EVT_RCV_CANCEL) : NULL;
  if (event == NULL) return;
  psp_request_execute(request, event);
  partyline_psp_live_mark(request);
}
