/* Who may register: RFC 3261, 10.3 steps 3 to 5. The address-of-record needs a user part, and with the policy 'user' that user
 * has to be in the table subscriber. */
#include "plugins.h"

static const enum house_auth policies[] = {HOUSE_AUTH_NONE, HOUSE_AUTH_USER};

static int auth(void *user, struct house_request *request) {
  const enum house_auth *policy = user;
  struct house_uri to;
  if (!house_uri(request, HOUSE_URI_TO, &to) || to.user.ptr == NULL || to.user.len == 0)
    return house_reply(request, 404, "Not Found", NULL);
  return *policy == HOUSE_AUTH_USER ? house_user_check(request) : HOUSE_NEXT;
}

int auth_plugin(struct house *house, enum house_auth policy) {
  const struct house_plugin plugin = {.name = "auth",
                                      .methods = "REGISTER",
                                      .phase = HOUSE_FIRST,
                                      .policy = HOUSE_PARALLEL,
                                      .handle = auth,
                                      .user = (void *)&policies[policy]};
  return house_plugin_register(house, &plugin);
}
