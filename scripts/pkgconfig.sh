#!/usr/bin/env bash
# Writes partyline.pc, partyline-static.pc and partyline-partysip.pc: scripts/pkgconfig.sh LIBDIR INCLUDEDIR INTO
set -euo pipefail
libdir=$1 includedir=$2 into=$3
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml" | head -1)
mkdir -p "$into"
# --no-as-needed: a program may need nothing by name and still want the library loaded, since its constructor does the work.
cat >"$into/partyline.pc" <<PC
libdir=$libdir
includedir=$includedir

Name: partyline
Description: Memory pool, scheduler, transport, transaction engine and cached registrar for C SIP servers on osip2
Version: $version
Cflags: -I\${includedir}
Libs: -L\${libdir} -Wl,--push-state,--no-as-needed -lpartyline -Wl,--pop-state
PC
# --allow-multiple-definition: osip2's members that hold what we stand in for hold other functions too; the first definition wins,
# and that is ours. The other -u: our references to osip2 are weak and pull no member of libosip2.a by themselves.
# -u: the archive's member with the constructor is taken in even when the program names nothing of ours. What the archive needs
# stands in Libs, not in Libs.private: this file is for an archive whether or not --static is said.
cat >"$into/partyline-static.pc" <<PC
libdir=$libdir
includedir=$includedir

Name: partyline-static
Description: Partyline as an archive; name it before libosip2
Version: $version
Cflags: -I\${includedir}
Libs: -Wl,--allow-multiple-definition -Wl,-u,partyline_constructor -Wl,-u,osip_transaction_execute,-u,osip_gettimeofday,-u,osip_sem_trywait,-u,osip_fifo_init \${libdir}/libpartyline.a -lpthread -ldl -lm -lgcc_s
PC
# One token up to --no-whole-archive: libtool sorts separate ones apart. In front of partysip's own objects, where automake puts
# LDFLAGS, the archive's definitions come first and win, also for calls inside one of partysip's objects.
cat >"$into/partyline-partysip.pc" <<PC
libdir=$libdir
includedir=$includedir

Name: partyline-partysip
Description: Partyline in partysip's place: relink partysip with these LDFLAGS (docs/partysip.md)
Version: $version
Cflags: -I\${includedir}
Libs: -Wl,--allow-multiple-definition,--whole-archive,\${libdir}/libpartyline_partysip.a,--no-whole-archive -L\${libdir} -Wl,--push-state,--no-as-needed -lpartyline -Wl,--pop-state
PC
