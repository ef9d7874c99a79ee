# What bench-registrar and test-differential run: the generator, and our registrar without plugins.
ROOT := ../..
OUT := $(ROOT)/target/harness/bench
LIB := $(abspath $(ROOT)/target/lib)
CFLAGS ?= -O2 -g
CFLAGS += -std=gnu11 -Wall -Wextra -Werror -I$(ROOT)/include

all: $(OUT)/reg_load $(OUT)/reg_server

$(OUT)/reg_load: reg_load.c bare.h
	@mkdir -p $(OUT)
	$(CC) $(CFLAGS) -o $@ $< $$(pkg-config --cflags --libs libosip2 2>/dev/null || echo -losipparser2)

$(OUT)/reg_server: reg_server.c $(ROOT)/include/partyline.h $(LIB)/libpartyline.so.0
	@mkdir -p $(OUT)
	$(CC) $(CFLAGS) -o $@ $< -L$(LIB) -Wl,-rpath,$(LIB) -lpartyline

.PHONY: all
