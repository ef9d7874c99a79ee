/* Users and bindings: the legacy order of queries. SELECT from subscriber; UPDATE location, else INSERT; SELECT from location for
 * the 200's Contact headers. All on one connection, while the lock is held. */
#include "legacy.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_EXPIRES 3600

int house_user_check(struct house_request *request) {
  struct store *store = request->house->store;
  const osip_uri_t *aor = request->message->to->url;
  int found = store->ops->user(store, aor->username, aor->host != NULL ? aor->host : "");
  if (found > 0) return HOUSE_NEXT;
  return found == 0 ? house_reply(request, 404, "Not Found", NULL) : house_reply(request, 500, "Server Internal Error", NULL);
}

/* Seconds, or -1 when the text is no number. */
static long seconds(const char *text) {
  char *end = NULL;
  long value = text != NULL ? strtol(text, &end, 10) : -1;
  return text == NULL || end == text || value < 0 ? -1 : value > 0x7fffffff ? 0x7fffffff : value;
}

static long header_expires(osip_message_t *message) {
  osip_header_t *header = NULL;
  if (osip_message_header_get_byname(message, "expires", 0, &header) < 0 || header == NULL) return -1;
  return seconds(header->hvalue);
}

/* The 200's Contact lines grow here. */
struct lines {
  char *text;
  size_t length, room;
  time_t now;
};

static void add_contact(void *arg, const char *contact, double q, time_t expires) {
  struct lines *lines = arg;
  size_t need = strlen(contact) + 64;
  if (lines->length + need > lines->room) {
    size_t room = (lines->length + need) * 2;
    char *text = osip_realloc(lines->text, room);
    if (text == NULL) return;
    lines->text = text;
    lines->room = room;
  }
  char rank[24] = "";
  if (q >= 0) snprintf(rank, sizeof rank, ";q=%.3g", q); /* -1: the contact came without q */
  lines->length += (size_t)snprintf(lines->text + lines->length, lines->room - lines->length, "Contact: <%s>%s;expires=%ld\r\n",
                                    contact, rank, (long)(expires - lines->now));
}

/* One Contact value into the store. 0, or the status to answer with. */
static int change(struct house_request *request, osip_contact_t *contact, struct binding *binding, long otherwise) {
  struct store *store = request->house->store;
  osip_generic_param_t *expires = NULL, *q = NULL;
  char *uri = NULL;
  if (osip_uri_to_str(contact->url, &uri) != 0) return 400;
  osip_contact_param_get_byname(contact, "expires", &expires);
  osip_contact_param_get_byname(contact, "q", &q);
  long lifetime = expires != NULL ? seconds(expires->gvalue) : -1;
  if (lifetime < 0) lifetime = otherwise;
  binding->contact = uri;
  binding->q = q != NULL && q->gvalue != NULL ? atof(q->gvalue) : -1.0;
  binding->expires = binding->now + lifetime;
  int code = lifetime == 0 ? store->ops->remove(store, binding->user, binding->domain, uri) : store->ops->save(store, binding);
  osip_free(uri);
  return code < 0 ? 500 : 0;
}

static int change_all(struct house_request *request, struct binding *binding) {
  osip_message_t *message = request->message;
  struct store *store = request->house->store;
  int count = osip_list_size(&message->contacts);
  long otherwise = header_expires(message);
  for (int i = 0; i < count; i++) {
    osip_contact_t *contact = osip_list_get(&message->contacts, i);
    if (contact->url != NULL) continue;
    /* Contact: * stands alone, and with Expires: 0 */
    if (contact->displayname == NULL || strcmp(contact->displayname, "*") != 0 || count != 1 || otherwise != 0) return 400;
    return store->ops->remove(store, binding->user, binding->domain, NULL) < 0 ? 500 : 0;
  }
  if (otherwise < 0) otherwise = DEFAULT_EXPIRES;
  if (count > 1 && store->ops->begin(store) < 0) return 500;
  int status = 0;
  for (int i = 0; i < count && status == 0; i++) status = change(request, osip_list_get(&message->contacts, i), binding, otherwise);
  if (count > 1 && store->ops->end(store, status == 0) < 0 && status == 0) status = 500;
  return status;
}

int house_register(struct house_request *request) {
  osip_message_t *message = request->message;
  struct store *store = request->house->store;
  const osip_uri_t *aor = message->to->url;
  osip_header_t *agent = NULL;
  char *callid = NULL;
  if (osip_call_id_to_str(message->call_id, &callid) != 0) return house_reply(request, 500, "Server Internal Error", NULL);
  osip_message_header_get_byname(message, "user-agent", 0, &agent);
  struct binding binding = {
      .user = aor->username,
      .domain = aor->host != NULL ? aor->host : "",
      .callid = callid,
      .user_agent = agent != NULL && agent->hvalue != NULL ? agent->hvalue : "",
      .cseq = atoi(message->cseq->number),
      .now = time(NULL),
  };
  struct lines lines = {.now = binding.now};
  int status = change_all(request, &binding);
  if (status == 0 && store->ops->list(store, binding.user, binding.domain, binding.now, add_contact, &lines) < 0) status = 500;
  osip_free(callid);
  int said = status == 0     ? house_reply(request, 200, "OK", lines.text)
             : status == 400 ? house_reply(request, 400, "Bad Contact", NULL)
                             : house_reply(request, 500, "Server Internal Error", NULL);
  osip_free(lines.text);
  return said;
}
