/* A SIP registrar. Options, signals, the plugin chain; everything else is in the house (house.h). */
#include "house.h"
#include "plugins/plugins.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void usage(FILE *out) {
  fprintf(out,
          "usage: server-%s [--port N] [--store none|sqlite:PATH|mysql://user[:password]@host:port/database]\n"
          "                 [--auth none|user] [--mode write_through|write_back|memory] [--threads N]\n"
          "Listens on 127.0.0.1, UDP (default port 5060). Prints 'ready' when it answers; SIGTERM ends it.\n",
          house_name());
}

static int number(const char *option, const char *text, int low, int high, int *out) {
  char *end = NULL;
  errno = 0;
  long value = strtol(text, &end, 10);
  if (errno != 0 || end == text || *end != '\0' || value < low || value > high) {
    fprintf(stderr, "server: %s takes a number from %d to %d, not '%s'\n", option, low, high, text);
    return -1;
  }
  *out = (int)value;
  return 0;
}

static int store(const char *text, struct house_config *config) {
  if (strcmp(text, "none") == 0) {
    config->store = HOUSE_STORE_NONE;
    config->store_path = NULL;
  } else if (strncmp(text, "sqlite:", 7) == 0 && text[7] != '\0') {
    config->store = HOUSE_STORE_SQLITE;
    config->store_path = text + 7;
  } else if (strncmp(text, "mysql://", 8) == 0) {
    config->store = HOUSE_STORE_MYSQL;
    config->store_path = text;
  } else {
    fprintf(stderr, "server: --store takes none, sqlite:PATH or mysql://user@host:port/database, not '%s'\n", text);
    return -1;
  }
  return 0;
}

static int options(int argc, char **argv, struct house_config *config) {
  for (int i = 1; i < argc; i++) {
    const char *name = argv[i];
    if (strcmp(name, "--help") == 0) {
      usage(stdout);
      exit(0);
    }
    if (i + 1 == argc) {
      usage(stderr);
      return -1;
    }
    const char *value = argv[++i];
    int bad = 0;
    if (strcmp(name, "--port") == 0) {
      bad = number(name, value, 1, 65535, &config->port);
    } else if (strcmp(name, "--threads") == 0) {
      bad = number(name, value, 1, 1024, &config->threads);
    } else if (strcmp(name, "--store") == 0) {
      bad = store(value, config);
    } else if (strcmp(name, "--mode") == 0) {
      config->mode = value;
    } else if (strcmp(name, "--auth") == 0 && strcmp(value, "none") == 0) {
      config->auth = HOUSE_AUTH_NONE;
    } else if (strcmp(name, "--auth") == 0 && strcmp(value, "user") == 0) {
      config->auth = HOUSE_AUTH_USER;
    } else {
      usage(stderr);
      return -1;
    }
    if (bad != 0) return -1;
  }
  return 0;
}

int main(int argc, char **argv) {
  struct house_config config = {
      .address = "127.0.0.1",
      .port = 5060,
      .store = HOUSE_STORE_NONE,
      .mode = "write_through",
      .auth = HOUSE_AUTH_USER,
  };
  if (options(argc, argv, &config) != 0) return 2;

  /* Blocked before any thread is made, so that every thread inherits it and only sigwait below takes them. */
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGTERM);
  sigaddset(&ends, SIGINT);
  sigprocmask(SIG_BLOCK, &ends, NULL);

  struct house *house = house_open(&config);
  if (house == NULL) return 1;
  int failed = syntax_plugin(house) != 0 || auth_plugin(house, config.auth) != 0 || registrar_plugin(house) != 0 ||
               house_start(house) != 0;
  if (failed) {
    house_close(house);
    return 1;
  }
  printf("ready %s 127.0.0.1:%d\n", house_name(), config.port);
  fflush(stdout);

  int signal_number = 0;
  sigwait(&ends, &signal_number);
  house_stop(house);

  struct house_counters counters;
  house_counters(house, &counters);
  printf("datagrams %llu requests %llu answers %llu dropped %llu\n", counters.datagrams, counters.requests, counters.answers,
         counters.dropped);
  house_close(house);
  return 0;
}
