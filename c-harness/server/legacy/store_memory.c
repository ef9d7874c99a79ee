/* --store none: a list of users, found by name as partysip's user base does it (linear, case-blind, the host is not looked at),
 * made at a user's first REGISTER. Nothing is durable. */
#include "store.h"

#include <osipparser2/osip_port.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

struct entry {
  char *contact;
  double q;
  time_t expires;
  struct entry *next;
};

struct user {
  char *name;
  struct entry *entries;
  struct user *next;
};

struct memory {
  struct store store;
  struct user *users;
};

static struct user *find(struct memory *memory, const char *name) {
  for (struct user *user = memory->users; user != NULL; user = user->next)
    if (strcasecmp(user->name, name) == 0) return user;
  return NULL;
}

static int memory_user(struct store *store, const char *user, const char *domain) {
  (void)store;
  (void)user;
  (void)domain;
  return 1;
}

static int memory_begin(struct store *store) {
  (void)store;
  return 0;
}

static int memory_end(struct store *store, int commit) {
  (void)store;
  (void)commit;
  return 0;
}

static int memory_save(struct store *store, const struct binding *binding) {
  struct memory *memory = (struct memory *)store;
  struct user *user = find(memory, binding->user);
  if (user == NULL) {
    user = osip_malloc(sizeof *user);
    if (user == NULL) return -1;
    *user = (struct user){osip_strdup(binding->user), NULL, memory->users};
    memory->users = user;
  }
  struct entry *entry = user->entries;
  while (entry != NULL && strcmp(entry->contact, binding->contact) != 0) entry = entry->next;
  if (entry == NULL) {
    entry = osip_malloc(sizeof *entry);
    if (entry == NULL) return -1;
    *entry = (struct entry){osip_strdup(binding->contact), 0, 0, user->entries};
    user->entries = entry;
  }
  entry->q = binding->q;
  entry->expires = binding->expires;
  return 0;
}

/* Unlinks the entry at *at. */
static void drop(struct entry **at) {
  struct entry *entry = *at;
  *at = entry->next;
  osip_free(entry->contact);
  osip_free(entry);
}

static int memory_remove(struct store *store, const char *name, const char *domain, const char *contact) {
  (void)domain;
  struct user *user = find((struct memory *)store, name);
  for (struct entry **at = user != NULL ? &user->entries : NULL; at != NULL && *at != NULL;) {
    if (contact == NULL || strcmp((*at)->contact, contact) == 0) drop(at);
    else at = &(*at)->next;
  }
  return 0;
}

static int memory_list(struct store *store, const char *name, const char *domain, time_t now, store_each *each, void *arg) {
  (void)domain;
  struct user *user = find((struct memory *)store, name);
  for (struct entry **at = user != NULL ? &user->entries : NULL; at != NULL && *at != NULL;) {
    if ((*at)->expires <= now) {
      drop(at);
      continue;
    }
    each(arg, (*at)->contact, (*at)->q, (*at)->expires);
    at = &(*at)->next;
  }
  return 0;
}

static void memory_close(struct store *store) {
  struct memory *memory = (struct memory *)store;
  while (memory->users != NULL) {
    struct user *user = memory->users;
    memory->users = user->next;
    while (user->entries != NULL) drop(&user->entries);
    osip_free(user->name);
    osip_free(user);
  }
  osip_free(memory);
}

struct store *store_memory_open(void) {
  static const struct store_ops ops = {memory_user,   memory_begin, memory_end,  memory_save,
                                       memory_remove, memory_list,  memory_close};
  struct memory *memory = osip_malloc(sizeof *memory);
  if (memory == NULL) {
    fprintf(stderr, "server: no memory for the list of users\n");
    return NULL;
  }
  *memory = (struct memory){{&ops}, NULL};
  return &memory->store;
}
