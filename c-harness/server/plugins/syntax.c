/* What RFC 3261, 8.2.2 and 10.3 step 1 and 2, want to see before anybody works on a request: the mandatory headers, a scheme
 * that we know, no option that we don't. */
#include "plugins.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

static int same(struct house_text text, const char *word) {
  return text.ptr != NULL && text.len == strlen(word) && strncasecmp(text.ptr, word, text.len) == 0;
}

/* CSeq's second word has to be the method (8.1.1.5); methods are case-sensitive (7.1). */
static int cseq_agrees(struct house_text cseq, struct house_text method) {
  size_t i = 0;
  while (i < cseq.len && cseq.ptr[i] >= '0' && cseq.ptr[i] <= '9') i++;
  if (i == 0) return 0;
  size_t digits = i;
  while (i < cseq.len && (cseq.ptr[i] == ' ' || cseq.ptr[i] == '\t')) i++;
  return i > digits && cseq.len - i == method.len && memcmp(cseq.ptr + i, method.ptr, method.len) == 0;
}

static int syntax(void *user, struct house_request *request) {
  (void)user;
  struct house_uri uri;
  struct house_text value;
  if (!house_uri(request, HOUSE_URI_REQUEST, &uri) || (!same(uri.scheme, "sip") && !same(uri.scheme, "sips")))
    return house_reply(request, 416, "Unsupported URI Scheme", NULL);
  if (!house_uri(request, HOUSE_URI_FROM, &uri)) return house_reply(request, 400, "From missing or malformed", NULL);
  if (!house_uri(request, HOUSE_URI_TO, &uri)) return house_reply(request, 400, "To missing or malformed", NULL);
  if (!house_header(request, "Call-ID", 0, &value)) return house_reply(request, 400, "Call-ID missing", NULL);
  if (!house_header(request, "CSeq", 0, &value)) return house_reply(request, 400, "CSeq missing", NULL);
  if (!cseq_agrees(value, house_method(request))) return house_reply(request, 400, "CSeq does not fit the method", NULL);
  if (house_header(request, "Require", 0, &value)) {
    char unsupported[256];
    int n = snprintf(unsupported, sizeof unsupported, "Unsupported: %.*s\r\n", (int)value.len, value.ptr);
    if (n < 0 || (size_t)n >= sizeof unsupported) return house_reply(request, 420, "Bad Extension", NULL);
    return house_reply(request, 420, "Bad Extension", unsupported);
  }
  return HOUSE_NEXT;
}

int syntax_plugin(struct house *house) {
  static const struct house_plugin plugin = {
      .name = "syntax", .methods = NULL, .phase = HOUSE_REALLY_FIRST, .policy = HOUSE_PARALLEL, .handle = syntax};
  return house_plugin_register(house, &plugin);
}
