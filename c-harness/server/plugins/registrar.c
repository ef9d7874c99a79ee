/* The registrar proper: RFC 3261, 10.3. The house keeps the bindings and writes the answer. */
#include "plugins.h"

static int registrar(void *user, struct house_request *request) {
  (void)user;
  return house_register(request);
}

int registrar_plugin(struct house *house) {
  static const struct house_plugin plugin = {.name = "registrar",
                                             .methods = "REGISTER",
                                             .phase = HOUSE_MIDDLE,
                                             .policy = HOUSE_PARALLEL,
                                             .handle = registrar};
  return house_plugin_register(house, &plugin);
}
