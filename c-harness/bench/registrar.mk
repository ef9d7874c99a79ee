# What bench-registrar and test-differential run: the generator, and our registrar without plugins.
ROOT := ../..
OUT := $(ROOT)/target/harness/bench
LIB := $(abspath $(ROOT)/target/lib)
CFLAGS ?= -O2 -g
CFLAGS += -std=gnu11 -Wall -Wextra -Werror -I$(ROOT)/include

# Only where libmariadb-dev is installed.
MARIADB := $(shell pkg-config --exists libmariadb && pkg-config --cflags --libs libmariadb)

all: $(OUT)/reg_load $(OUT)/reg_server $(if $(MARIADB),$(OUT)/batch_floor)

$(OUT)/reg_load: reg_load.c bare.h
	@mkdir -p $(OUT)
	$(CC) $(CFLAGS) -o $@ $< $$(pkg-config --cflags --libs libosip2 2>/dev/null || echo -losipparser2)

$(OUT)/reg_server: reg_server.c $(ROOT)/include/partyline.h $(LIB)/libpartyline.so.0
	@mkdir -p $(OUT)
	$(CC) $(CFLAGS) -o $@ $< -L$(LIB) -Wl,-rpath,$(LIB) -lpartyline

$(OUT)/batch_floor: batch_floor.c
	@mkdir -p $(OUT)
	$(CC) $(CFLAGS) -o $@ $< $(MARIADB) -pthread

.PHONY: all
