/* The server's plugins. Each registers itself with the house; they share nothing. */
#ifndef PLUGINS_H
#define PLUGINS_H

#include "../house.h"

int syntax_plugin(struct house *house);                        /* all methods, really first */
int auth_plugin(struct house *house, enum house_auth policy);  /* REGISTER, first */
int registrar_plugin(struct house *house);                     /* REGISTER, middle */

#endif
