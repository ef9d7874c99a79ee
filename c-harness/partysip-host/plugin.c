/* Plugins: FOLDER/libpsp_NAME.so with a psp_plugin_t called NAME_plugin. */
#include "host.h"

#include <dlfcn.h>
#include <stdio.h>

static int plug_ids;

int psp_plugin_load(psp_plugin_t **out, const char *folder, const char *name) {
  char path[1024], symbol[128];
  snprintf(path, sizeof path, "%s/libpsp_%s.so", folder, name);
  snprintf(symbol, sizeof symbol, "%s_plugin", name);
  void *handle = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
  psp_plugin_t *plugin = handle != NULL ? dlsym(handle, symbol) : NULL;
  if (plugin == NULL) {
    fprintf(stderr, "partysip-host: plugin %s cannot be loaded: %s\n", name, dlerror());
    if (handle != NULL) dlclose(handle);
    return -1;
  }
  plugin->plug_id = ++plug_ids;
  plugin->dso_handle = handle;
  plugin->owners = 0;
  /* By the handle: two plugins may both have functions called plugin_init. */
  *(void **)&plugin->plugin_init = dlsym(handle, "plugin_init");
  *(void **)&plugin->plugin_start = dlsym(handle, "plugin_start");
  *(void **)&plugin->plugin_release = dlsym(handle, "plugin_release");
  if (plugin->plugin_init == NULL || plugin->plugin_init((char *)name) != 0) {
    fprintf(stderr, "partysip-host: plugin %s cannot be initialised\n", name);
    dlclose(handle);
    return -1;
  }
  *out = plugin;
  return 0;
}

void psp_plugin_free(psp_plugin_t *plugin) {
  void *handle = plugin->dso_handle;
  if (plugin->plugin_release != NULL) plugin->plugin_release();
  dlclose(handle);
}

int psp_plugin_take_ownership(psp_plugin_t *plugin) {
  plugin->owners++;
  return 0;
}

int psp_plugin_release_ownership(psp_plugin_t *plugin) {
  plugin->owners--;
  return 0;
}

int psp_plugin_get_plug_id(psp_plugin_t *plugin) { return plugin->plug_id; }
