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
#   make test-crash               50 rounds of kill -9: server, MariaDB, both; prints lost = 0 (make test: 3 rounds)
#   make test-cluster             two servers on a Galera cluster of three nodes, one of which is killed
#   make bench-osip | osip-versions  an osip2 program before and after | the tests against another osip2 (docs/osip2.md)
#   make test-crash               50 rounds of kill -9: server, MariaDB, both; prints lost = 0 (make test: 3 rounds)
#   make test-cluster             two servers on a Galera cluster of three nodes, one of which is killed
#   make bench-pool | loom        the pool beside other allocators | models of the concurrent cores
#   make bench-sched              one work under six models of serving, and a plugin that sleeps (100 s)
#   make bench-partysip           partysip's shape before and after, 33 minutes (BENCH_ARGS='--hold 10' for a look); make soak: 90
#   make bench-transport          answering through net and the scheduler beside bare loops in C
#   make bench-registrar          the registrar beside Kamailio, 8 minutes (BENCH_ARGS=--quick: 5)
#   make test-differential        a thousand REGISTER sequences against Kamailio and us
#   make sanitize | memcheck      AddressSanitizer and ThreadSanitizer (needs rustup's nightly) | valgrind
#   make test-windows             the library for Windows: built, and its tests run under Wine (docs/windows.md)
#   make soak-pool | fail-alloc   the pool under everything for SOAK_SECONDS (600) | each allocation of osip2 refused in turn
#   make fuzz                     libFuzzer for FUZZ_SECONDS (60) per target (needs rustup's nightly)
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

.PHONY: FORCE all lib harness demo test serve install install-files header deps deps-demo deps-test deps-bench lint clean loom
.PHONY: bench-pool bench-osip bench-sched bench-transport bench-registrar bench-partysip osip-versions
.PHONY: test-crash test-cluster test-differential test-windows sanitize memcheck soak soak-pool fail-alloc fuzz
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
	@if [ -n "$(OSIP_FLAGS)" ]; then $(MAKE) --no-print-directory $(OUT)/libpartyline_partysip.a; \
	else echo "no osip2 headers: left out is libpartyline_partysip.a"; fi
	@scripts/pkgconfig.sh "$(CURDIR)/$(OUT)" "$(CURDIR)/include" $(OUT)/pkgconfig

# The osip2 that the last build was for: newer than the libraries where it is another one now.
OSIP_NAMED = $(OSIP_CFLAGS) | $(OSIP_LIBS)
$(OUT)/.osip: FORCE
	@mkdir -p $(OUT)
	@[ "$$(cat $@ 2>/dev/null)" = '$(OSIP_NAMED)' ] || echo '$(OSIP_NAMED)' >$@
FORCE:

$(OUT)/.built: $(shell find src -type f) Cargo.toml Cargo.lock build.rs $(OUT)/.osip
	$(CARGO) build --release --lib
	mkdir -p $(OUT)/pkgconfig
	cp -f target/release/libpartyline.a $(OUT)/libpartyline.a
	$(CARGO) rustc --release --lib --crate-type cdylib --features interpose-libc
	cp -f target/release/libpartyline.so $(OUT)/libpartyline.so.0.new
	mv -f $(OUT)/libpartyline.so.0.new $(OUT)/libpartyline.so.0
	ln -sf libpartyline.so.0 $(OUT)/libpartyline.so
	$(CARGO) build --release --bin partyline-import
	touch $@

# What stands in for partysip's internals, relinked with it; see docs/partysip.md. In C, for it reads partysip's structures.
PARTYSIP_GLUE := $(wildcard src/partysip/glue/*.c)
OSIP_FLAGS = $(if $(OSIP_CFLAGS),$(OSIP_CFLAGS),$(shell pkg-config --exists libosip2 && echo -I. $$(pkg-config --cflags libosip2)))

$(OUT)/libpartyline_partysip.a: $(PARTYSIP_GLUE) $(wildcard src/partysip/glue/*.h) src/partysip/psp.h include/partyline/partysip.h $(OUT)/.osip
	mkdir -p target/partysip-glue $(OUT)
	for file in $(PARTYSIP_GLUE); do \
	  cc -std=gnu11 -O2 -g -fPIC -Wall -Wextra -Werror -Iinclude $(OSIP_FLAGS) -c -o target/partysip-glue/$$(basename $$file .c).o $$file || exit 1; \
	done
	rm -f $@
	ar rcs $@ $(patsubst src/partysip/glue/%.c,target/partysip-glue/%.o,$(PARTYSIP_GLUE))

harness: lib
	$(MAKE) -C c-harness/server
	$(MAKE) -C c-harness/tests
	$(MAKE) -C c-harness/partysip-host $(if $(wildcard $(OUT)/libpartyline_partysip.a),relinked)

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
	install -d "$(DESTDIR)$(PREFIX)/lib/pkgconfig" "$(DESTDIR)$(PREFIX)/include" "$(DESTDIR)$(PREFIX)/bin"
	install -m 755 target/release/partyline-import "$(DESTDIR)$(PREFIX)/bin/partyline-import"
	install -m 755 $(OUT)/libpartyline.so.0 "$(DESTDIR)$(PREFIX)/lib/libpartyline.so.0"
	ln -sf libpartyline.so.0 "$(DESTDIR)$(PREFIX)/lib/libpartyline.so"
	install -m 644 $(OUT)/libpartyline.a "$(DESTDIR)$(PREFIX)/lib/libpartyline.a"
	install -m 644 include/partyline.h "$(DESTDIR)$(PREFIX)/include/partyline.h"
	if [ -f $(OUT)/libpartyline_partysip.a ]; then \
	  install -m 644 $(OUT)/libpartyline_partysip.a "$(DESTDIR)$(PREFIX)/lib/libpartyline_partysip.a" && \
	  install -d "$(DESTDIR)$(PREFIX)/include/partyline" && \
	  install -m 644 include/partyline/partysip.h "$(DESTDIR)$(PREFIX)/include/partyline/partysip.h"; fi
	scripts/pkgconfig.sh "$(PREFIX)/lib" "$(PREFIX)/include" "$(DESTDIR)$(PREFIX)/lib/pkgconfig"

# The pool beside the allocators of Debian (libjemalloc2 libmimalloc2.0 libtcmalloc-minimal4, where installed).
bench-pool: lib
	scripts/bench-pool.sh

# One osip2 program on stock osip2 and preloaded: CPU, rate, memory by transactions alive. About 12 minutes;
# HOLD=5 MEASURE=2 ALIVE="1000 10000" for a short look.
bench-osip: lib
	scripts/bench-osip.sh

# The parity and link tests against the osip2 that OSIP_CFLAGS and OSIP_LIBS name; without them, a build without osip2.
osip-versions:
	scripts/osip-versions.sh

# The program of partysip's shape: plain, preloaded, relinked, relinked with our plugins; see docs/partysip.md.
bench-partysip: harness
	scripts/bench_partysip.py $(BENCH_ARGS)

# SOAK_MINUTES (90) at 300 REGISTER/s for the relinked host and c-harness/server, MySQL behind both; curve in target/soak.csv and .svg.
soak: harness
	SOAK_MINUTES=$(or $(SOAK_MINUTES),90) scripts/soak.py

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

# Processes, threads, a queue and leader/follower beside each other; then an engine with a plugin that sleeps.
bench-sched:
	$(CARGO) build --release --example sched_models
	target/release/examples/sched_models all
	target/release/examples/sched_models slow

# Every interleaving of the small concurrent cores, in a target folder of its own.
loom:
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom $(CARGO) test --release --test sched_loom --test pool_loom

# Errors that are planted have to be reported first: docs/sanitizers.md. Code 77 of the script: no nightly, nothing was checked.
sanitize: deps
	scripts/sanitize.sh $(SANITIZERS)

memcheck: lib
	scripts/memcheck.sh

# With mingw and Debian's rustc-web, in target/windows; SKIPPED where the packages cannot be installed.
test-windows:
	@scripts/test-windows.sh

soak-pool: harness
	scripts/soak-pool.sh

fail-alloc: lib
	FAIL_ALLOC_EVERY=1 $(CARGO) test --test osip_parity -- --exact every_allocation_may_fail --nocapture

fuzz: deps
	scripts/fuzz.sh $(FUZZ_TARGETS)

test-crash:
	PARTYLINE_CRASH_ROUNDS=$${PARTYLINE_CRASH_ROUNDS:-50} $(CARGO) test --test registrar_crash -- --nocapture

test-cluster:
	@scripts/deps.sh mysql cluster
	$(CARGO) test --test registrar_cluster -- --ignored --nocapture

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings

clean:
	$(CARGO) clean
