/* "name = value" lines; a section "<plugin NAME>" ... "</plugin>" is a sub-configuration. */
#include "host.h"

#include <stdio.h>
#include <string.h>

static config_element_t *elements;

static char *trimmed(char *text) {
  text += strspn(text, " \t\r\n");
  size_t length = strlen(text);
  while (length > 0 && strchr(" \t\r\n", text[length - 1]) != NULL) text[--length] = '\0';
  return text;
}

static int add(const char *sub_config, char *name, char *value) {
  config_element_t *new = osip_malloc(sizeof *new);
  if (new == NULL) return -1;
  new->sub_config = sub_config != NULL ? osip_strdup(sub_config) : NULL;
  new->name = name;
  new->value = value;
  PSP_APPEND(config_element_t, elements, new);
  return 0;
}

int psp_config_add_element(char *name, char *value) { return add(NULL, name, value); }

static config_element_t *find(const char *name, const char *sub_config, config_element_t *element) {
  for (; element != NULL; element = element->next)
    if (strcmp(element->name, name) == 0 &&
        (sub_config == NULL ? element->sub_config == NULL
                            : element->sub_config != NULL && strcmp(element->sub_config, sub_config) == 0))
      return element;
  return NULL;
}

char *psp_config_get_element(char *name) {
  config_element_t *found = find(name, NULL, elements);
  return found != NULL ? found->value : NULL;
}

config_element_t *psp_config_get_sub_element(char *name, char *sub_config, config_element_t *start) {
  return find(name, sub_config, start != NULL ? start->next : elements);
}

int psp_config_load(const char *file) {
  FILE *in = fopen(file, "r");
  if (in == NULL) return -1;
  char line[1024], section[64] = "";
  while (fgets(line, sizeof line, in) != NULL) {
    char *text = trimmed(line), *equals;
    if (sscanf(text, "<plugin %63[^>]>", section) == 1 || *text == '#') continue;
    if (strcmp(text, "</plugin>") == 0) section[0] = '\0';
    else if ((equals = strchr(text, '=')) != NULL) {
      *equals = '\0';
      add(section[0] != '\0' ? section : NULL, osip_strdup(trimmed(text)), osip_strdup(trimmed(equals + 1)));
    }
  }
  fclose(in);
  return 0;
}

void psp_config_unload(void) {
  while (elements != NULL) {
    config_element_t *element = elements;
    PSP_REMOVE(elements, element);
    osip_free(element->sub_config);
    osip_free(element->name);
    osip_free(element->value);
    osip_free(element);
  }
}
