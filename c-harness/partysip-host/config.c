/* "name = value" lines; between "<SUB>" and "</SUB>" lines "name value" of a sub-configuration. */
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
  PSP_ADD(elements, new);
  return 0;
}

int psp_config_add_element(char *name, char *value) { return add(NULL, name, value); }

char *psp_config_get_element(char *name) {
  for (config_element_t *element = elements; element != NULL; element = element->next)
    if (element->sub_config == NULL && strcmp(element->name, name) == 0) return element->value;
  return NULL;
}

config_element_t *psp_config_get_sub_element(char *name, char *sub_config, config_element_t *start) {
  for (config_element_t *element = start == NULL ? elements : start->next; element != NULL; element = element->next)
    if (element->sub_config != NULL && strcmp(element->name, name) == 0 && strcmp(element->sub_config, sub_config) == 0)
      return element;
  return NULL;
}

int psp_config_load(const char *file) {
  FILE *in = fopen(file, "r");
  if (in == NULL) return -1;
  char line[1024], section[64] = "";
  while (fgets(line, sizeof line, in) != NULL) {
    char *text = trimmed(line), *end;
    if (*text == '#' || *text == '\0') continue;
    if (strncmp(text, "</", 2) == 0) section[0] = '\0';
    else if (sscanf(text, "<%63[^>]>", section) == 1) continue;
    else if ((end = section[0] != '\0' ? strpbrk(text, " \t") : strchr(text, '=')) != NULL) {
      *end = '\0';
      add(section[0] != '\0' ? section : NULL, osip_strdup(trimmed(text)), osip_strdup(trimmed(end + 1)));
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
