# Partyline. `make demo` and `make test` install what is missing (they list it first), build, run, and end by themselves.
#
#   make demo [DB=sqlite|mysql]   the C server before and after, as a table; figures in target/demo/report.json
#                                 (DEMO_ARGS='--step 3 --hold 5 --bisect 0' for a short look; see scripts/demo.py --help)
#   make test                     every test, with a private MariaDB
#   make serve [PORT=5060]        the accelerated C server on 127.0.0.1, until Ctrl-C; it registers whoever asks
#                                 (SERVE_ARGS='--auth user' for those in table subscriber only)
#   make install PREFIX=/usr/local
#   make lib | harness            target/lib (libraries, header, .pc files) | target/harness (the C programs)
#   make header                   include/partyline.h anew from the sources
#   make bench-pool | loom        the pool beside other allocators | models of the concurrent cores
#   make bench-transport          answering through net and the scheduler beside bare loops in C
#   make bench-registrar          the registrar beside Kamailio, 11 minutes (BENCH_ARGS=--quick: 4)
#   make test-differential        a thousand REGISTER sequences against Kamailio and us
#
# Rust 1.85 or later; where there is no cargo, Debian's rustc-web and cargo-web are installed.

SHELL := /bin/bash
PREFIX ?= /usr/local
PORT ?= 5060
DB ?= sqlite
DEMO_ARGS ?=
SERVE_ARGS ?= --auth none
CARGO ?= cargo
OUT := target/lib
# rustup's, where the shell that called did not read its profile (root through su, cron, CI).
export PATH := $(PATH):$(HOME)/.cargo/bin
# scripts/ and tests/ look there.
export CARGO
unexport CARGO_TARGET_DIR

.PHONY: all lib harness demo test serve install install-files header deps deps-demo deps-test deps-bench lint clean bench-pool bench-osip bench-registrar bench-transport test-differential loom
# apt and cargo take locks of their own, and both use all cores by themselves.
.NOTPARALLEL:

all: lib harness

deps:
	@scripts/deps.sh build

deps-demo:
	@scripts/deps.sh build demo $(filter mysql,$(DB))

deps-bench:
	@scripts/deps.sh build mysql bench

deps-test:
	@scripts/deps.sh build demo mysql test

# The shared library alone exports free, realloc, reallocarray and malloc_usable_size: see docs/allocator.md.
# One is built after the other into the same place, so cargo takes each for stale after the other: make looks at the times.
lib: deps
	@$(MAKE) --no-print-directory $(OUT)/.built
	@scripts/pkgconfig.sh "$(CURDIR)/$(OUT)" "$(CURDIR)/include" $(OUT)/pkgconfig

$(OUT)/.built: $(shell find src -type f) Cargo.toml Cargo.lock build.rs
	$(CARGO) build --release --lib
	mkdir -p $(OUT)/pkgconfig
	cp -f target/release/libpartyline.a $(OUT)/libpartyline.a
	$(CARGO) rustc --release --lib --crate-type cdylib --features interpose-libc
	cp -f target/release/libpartyline.so $(OUT)/libpartyline.so.0.new
	mv -f $(OUT)/libpartyline.so.0.new $(OUT)/libpartyline.so.0
	ln -sf libpartyline.so.0 $(OUT)/libpartyline.so
	touch $@

harness: lib
	$(MAKE) -C c-harness/server
	$(MAKE) -C c-harness/tests

demo: deps-demo harness
	scripts/demo.py --db $(DB) $(DEMO_ARGS)

serve: harness
	target/harness/server-partyline --port $(PORT) --store sqlite:target/serve.db $(SERVE_ARGS)

test:
	@scripts/test.sh

header:
	$(CARGO) run --quiet --example header

install: lib install-files
	@test -n "$(DESTDIR)" || scripts/after-install.sh "$(abspath $(PREFIX))/lib"

# What `make lib` has made, put in its place; builds nothing.
install-files: PREFIX := $(abspath $(PREFIX))
install-files:
	install -d "$(DESTDIR)$(PREFIX)/lib/pkgconfig" "$(DESTDIR)$(PREFIX)/include"
	install -m 755 $(OUT)/libpartyline.so.0 "$(DESTDIR)$(PREFIX)/lib/libpartyline.so.0"
	ln -sf libpartyline.so.0 "$(DESTDIR)$(PREFIX)/lib/libpartyline.so"
	install -m 644 $(OUT)/libpartyline.a "$(DESTDIR)$(PREFIX)/lib/libpartyline.a"
	install -m 644 include/partyline.h "$(DESTDIR)$(PREFIX)/include/partyline.h"
	scripts/pkgconfig.sh "$(PREFIX)/lib" "$(PREFIX)/include" "$(DESTDIR)$(PREFIX)/lib/pkgconfig"

# The pool beside the allocators of Debian (libjemalloc2 libmimalloc2.0 libtcmalloc-minimal4, where installed).
bench-pool: lib
	scripts/bench-pool.sh

# One osip2 program on stock osip2 and preloaded: CPU, rate, memory by transactions alive. `quick` for the short form.
bench-osip: lib
	scripts/bench-osip.sh $(BENCH_ARGS)

# UDP and TCP beside bare loops over the same system calls, idle connections. `quick` for the short form.
bench-transport: deps
	scripts/bench-transport.py $(BENCH_ARGS)
# The registrar beside Debian's Kamailio: CPU, rate, response times, memory. See scripts/bench_registrar.py --help.
bench-registrar: lib deps-bench
	$(MAKE) -C c-harness/bench -f registrar.mk
	scripts/bench_registrar.py $(BENCH_ARGS)

# The same sequences of REGISTER to Kamailio and to us; what differs without a reason in docs/differences.md fails.
test-differential: lib deps-bench
	$(MAKE) -C c-harness/bench -f registrar.mk
	scripts/differential.py $(DIFF_ARGS)

# Every interleaving of the small concurrent cores, in a target folder of its own.
loom:
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom $(CARGO) test --release --test sched_loom --test pool_loom

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings

clean:
	$(CARGO) clean
