/* Requests and their state machine. A request is answered here in every mode: what a plugin wants forwarded gets 302 with the
 * locations. */
#include "host.h"

#include <string.h>

int psp_request_init(psp_request_t **out, osip_transaction_t *inc_tr, osip_message_t *inc_ack) {
  psp_request_t *new = osip_malloc(sizeof *new);
  if (new == NULL) return -1;
  memset(new, 0, sizeof *new);
  new->state = PROXY_PRE_CALLING;
  new->inc_tr = inc_tr;
  new->inc_ack = inc_ack;
  new->timer_noanswer_length = 180 * 1000;
  new->timer_nofinalanswer_length = 180 * 1000;
  new->timer_close_length = 180 * 1000;
  new->timer_noanswer_start.tv_sec = new->timer_nofinalanswer_start.tv_sec = new->timer_close_start.tv_sec = -1;
  gettimeofday(&new->timer_noanswer_start, NULL);
  new->timer_noanswer_start.tv_sec += new->timer_noanswer_length / 1000;
  new->start = (int)new->timer_noanswer_start.tv_sec;
  *out = new;
  return 0;
}

static void free_locations(location_t *locations) {
  while (locations != NULL) {
    location_t *location = locations;
    PSP_REMOVE(locations, location);
    location_free(location);
  }
}

void psp_request_free(psp_request_t *request) {
  if (request == NULL) return;
  free_locations(request->locations);
  free_locations(request->fallback_locations);
  if (request->inc_tr != NULL) {
    if (request->inc_tr->state == NIST_TERMINATED || request->inc_tr->state == IST_TERMINATED)
      osip_transaction_free2(request->inc_tr);
    else osip_transaction_free(request->inc_tr);
  }
  osip_message_free(request->out_response);
  osip_message_free(request->inc_ack);
  osip_free(request);
}

osip_message_t *psp_request_get_request(psp_request_t *request) {
  return request->inc_tr != NULL ? request->inc_tr->orig_request : request->inc_ack;
}

int psp_request_set_uas_status(psp_request_t *request, int status) {
  request->uas_status = status;
  return 0;
}

int psp_request_set_mode(psp_request_t *request, int mode) {
  request->flag = (request->flag & ~PSP_MODES) | mode;
  return 0;
}

int psp_request_set_state(psp_request_t *request, int state) {
  request->flag = (request->flag & ~PSP_STATES) | state;
  return 0;
}

int psp_request_set_property(psp_request_t *request, int property) {
  request->flag |= property;
  return 0;
}

int location_init(location_t **out, osip_uri_t *url, int expire) {
  location_t *new = osip_malloc(sizeof *new);
  if (new == NULL) return -1;
  memset(new, 0, sizeof *new);
  new->url = url;
  new->expire = expire;
  *out = new;
  return 0;
}

int location_set_path(location_t *location, char *path) {
  location->path = path;
  return 0;
}

void location_free(location_t *location) {
  if (location == NULL) return;
  osip_uri_free(location->url);
  osip_free(location->path);
  osip_free(location);
}

static int put_locations(psp_request_t *request, osip_message_t *response) {
  for (location_t *location = request->locations; location != NULL; location = location->next) {
    osip_contact_t *contact;
    if (osip_contact_init(&contact) != 0) return -1;
    if (osip_uri_clone(location->url, &contact->url) != 0) {
      osip_contact_free(contact);
      return -1;
    }
    osip_list_add(&response->contacts, contact, -1);
  }
  return 0;
}

int sfp_answer_request(psp_request_t *request) {
  osip_message_t *response;
  int status = request->uas_status;
  if (request->inc_tr == NULL) return -1;
  if (osip_msg_build_response(&response, status, request->inc_tr->orig_request) != 0) return -1;
  if (status >= 300 && status < 400 && put_locations(request, response) != 0) goto failed;
  if (pspm_sfp_call_plugins_for_snd_response(core->sfp, request, response) != 0) goto failed;
  if (request->flag & PSP_STOP) goto failed;
  osip_event_t *event = osip_new_outgoing_sipmessage(response);
  if (event == NULL) goto failed;
  event->transactionid = request->inc_tr->transactionid;
  osip_transaction_add_event(request->inc_tr, event);
  psp_osip_wakeup(core->psp_osip);
  return 0;
failed:
  osip_message_free(response);
  return -1;
}

psp_event_t *__psp_event_new(int type) {
  psp_event_t *new = osip_malloc(sizeof *new);
  if (new == NULL) return NULL;
  memset(new, 0, sizeof *new);
  new->type = type;
  return new;
}

static void close_in(psp_request_t *request, int milliseconds) {
  gettimeofday(&request->timer_close_start, NULL);
  request->timer_close_start.tv_sec += milliseconds / 1000;
}

static void answer(psp_request_t *request) {
  if (!(request->flag & PSP_UAS_MODE)) request->uas_status = request->locations != NULL ? 302 : 404;
  sfp_answer_request(request);
  request->state = PROXY_CLOSING;
  close_in(request, request->timer_close_length);
}

static void give_up(psp_request_t *request) {
  request->uas_status = 408;
  sfp_answer_request(request);
  request->state = PROXY_CLOSING;
  close_in(request, request->timer_close_length);
}

static void end(psp_request_t *request) { request->state = PROXY_CLOSED; }

static const struct {
  int state, event;
  void (*run)(psp_request_t *);
} transitions[] = {
    {PROXY_PRE_CALLING, EVT_RCV_REQUEST, answer},      {PROXY_PRE_CALLING, TIMEOUT_NOANSWER, give_up},
    {PROXY_CALLING, TIMEOUT_NOANSWER, give_up},        {PROXY_PROCEEDING, TIMEOUT_NOFINALANSWER, give_up},
    {PROXY_PROCEEDING, TIMEOUT_CLOSE, end},            {PROXY_CLOSING, TIMEOUT_CLOSE, end},
};

int psp_request_execute(psp_request_t *request, psp_event_t *event) {
  for (size_t i = 0; i < sizeof transitions / sizeof *transitions; i++)
    if (transitions[i].state == request->state && transitions[i].event == event->type) {
      transitions[i].run(request);
      break;
    }
  osip_free(event);
  return 1;
}
