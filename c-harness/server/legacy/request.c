/* What plugins see of a request, and the answers that they give: osip_message_t behind house.h. */
#include "legacy.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

static struct house_text text(const char *string) {
  return (struct house_text){string, string != NULL ? strlen(string) : 0};
}

struct house_text house_method(struct house_request *request) { return text(request->message->sip_method); }

int house_uri(struct house_request *request, enum house_uri_of which, struct house_uri *uri) {
  const osip_message_t *message = request->message;
  const osip_uri_t *from = which == HOUSE_URI_REQUEST ? message->req_uri
                           : which == HOUSE_URI_TO    ? message->to->url
                                                      : message->from->url;
  if (from == NULL || from->scheme == NULL) return 0;
  *uri = (struct house_uri){text(from->scheme), text(from->username), text(from->host), text(from->port)};
  return 1;
}

/* Keeps a rendered value until the plugins have run. */
static int keep(struct house_request *request, int code, char **rendered, struct house_text *value) {
  char *string = *rendered; /* by reference: an argument may be read before its neighbour has been evaluated */
  if (code != 0 || string == NULL) return 0;
  if (request->scratches == sizeof request->scratch / sizeof *request->scratch) {
    osip_free(string);
    return 0;
  }
  request->scratch[request->scratches++] = string;
  *value = text(string);
  return 1;
}

int house_header(struct house_request *request, const char *name, unsigned index, struct house_text *value) {
  osip_message_t *message = request->message;
  char *out = NULL;
  if (strcasecmp(name, "Call-ID") == 0)
    return index == 0 && keep(request, osip_call_id_to_str(message->call_id, &out), &out, value);
  if (strcasecmp(name, "CSeq") == 0) return index == 0 && keep(request, osip_cseq_to_str(message->cseq, &out), &out, value);
  if (strcasecmp(name, "From") == 0) return index == 0 && keep(request, osip_from_to_str(message->from, &out), &out, value);
  if (strcasecmp(name, "To") == 0) return index == 0 && keep(request, osip_to_to_str(message->to, &out), &out, value);
  if (strcasecmp(name, "Contact") == 0) {
    osip_contact_t *contact = osip_list_get(&message->contacts, (int)index);
    return contact != NULL && keep(request, osip_contact_to_str(contact, &out), &out, value);
  }
  if (strcasecmp(name, "Via") == 0) {
    osip_via_t *via = osip_list_get(&message->vias, (int)index);
    return via != NULL && keep(request, osip_via_to_str(via, &out), &out, value);
  }
  int at = -1;
  osip_header_t *header = NULL;
  for (unsigned i = 0; i <= index; i++) {
    at = osip_message_header_get_byname(message, name, at + 1, &header);
    if (at < 0 || header == NULL) return 0;
  }
  *value = text(header->hvalue != NULL ? header->hvalue : "");
  return 1;
}

struct house_text house_source(struct house_request *request) {
  if (request->source[0] == '\0') {
    osip_via_t *via = osip_list_get(&request->message->vias, 0);
    osip_generic_param_t *received = NULL, *rport = NULL;
    osip_via_param_get_byname(via, "received", &received);
    osip_via_param_get_byname(via, "rport", &rport);
    snprintf(request->source, sizeof request->source, "%s:%s", received != NULL && received->gvalue != NULL ? received->gvalue : via->host,
             rport != NULL && rport->gvalue != NULL ? rport->gvalue : via->port != NULL ? via->port : "5060");
  }
  return text(request->source);
}

static osip_message_t *response_to(const osip_message_t *request, int status, const char *reason) {
  osip_message_t *response = NULL;
  if (osip_message_init(&response) != 0) return NULL;
  osip_message_set_version(response, osip_strdup("SIP/2.0"));
  osip_message_set_status_code(response, status);
  osip_message_set_reason_phrase(response, osip_strdup(reason));
  int bad = osip_from_clone(request->from, &response->from) | osip_to_clone(request->to, &response->to) |
            osip_call_id_clone(request->call_id, &response->call_id) | osip_cseq_clone(request->cseq, &response->cseq) |
            osip_list_clone(&request->vias, &response->vias, (int (*)(void *, void **))osip_via_clone);
  osip_generic_param_t *tag = NULL;
  if (bad == 0 && osip_to_get_tag(response->to, &tag) != 0) {
    char random[16];
    snprintf(random, sizeof random, "%08x", osip_build_random_number());
    osip_to_set_tag(response->to, osip_strdup(random));
  }
  if (bad != 0) {
    osip_message_free(response);
    return NULL;
  }
  return response;
}

int house_reply(struct house_request *request, int status, const char *reason, const char *extra) {
  osip_message_t *response = response_to(request->message, status, reason);
  if (response == NULL) return HOUSE_DONE;
  while (extra != NULL && *extra != '\0') {
    const char *colon = strchr(extra, ':');
    const char *end = strstr(extra, "\r\n");
    if (colon == NULL || end == NULL || colon > end) break;
    const char *from = colon + 1;
    while (from < end && *from == ' ') from++;
    char name[64], value[1024];
    snprintf(name, sizeof name, "%.*s", (int)(colon - extra), extra);
    snprintf(value, sizeof value, "%.*s", (int)(end - from), from);
    osip_message_set_header(response, name, value);
    extra = end + 2;
  }
  osip_message_set_content_length(response, "0");
  osip_event_t *event = osip_new_outgoing_sipmessage(response);
  if (event == NULL) {
    osip_message_free(response);
    return HOUSE_DONE;
  }
  request->answered = 1;
  osip_transaction_add_event(request->transaction, event);
  module_wake(&request->house->timers);
  return HOUSE_DONE;
}
