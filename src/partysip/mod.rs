//! Symbols that stand in for partysip's, and what they are made of.
//!
//! partysip's own names (`module_*`, `pspm_*`, `psp_*`) never stand in libpartyline: they are C glue in
//! libpartyline_partysip.a (`src/partysip/glue/`), which a program is relinked with, and which calls what is exported here
//! as `partyline_psp_*` (declared in `src/partysip/psp.h`). `ppl_uinfo_*` belongs to partysip's shared library libppl, so
//! libpartyline.so interposes it, and only where a libppl is loaded behind it.
//!
//! | file | holds |
//! |---|---|
//! | [`crew`] | the leader/follower pool that runs partysip's loops: turns, sockets, strands of hooks |
//! | [`live`] | which requests changed or are due, so that a turn looks at no others |
//! | [`transport`] | what libpsp_udp.so needs beyond `partyline.h`: datagrams collected until a turn ends |
//! | [`register`] | the registrar for a hook of partysip's |
//! | `uinfo`, `persist` | users by hash over libppl's list, and their bindings in a database |
//! | [`counts`] | for `PARTYLINE_REPORT` |
//! | `exports` | the C functions |
//!
//! # Contract of every pointer here
//! The archive's glue is the only caller. A function pointer and its argument live until the object that they were given
//! to is freed; what is called back is called under no lock of this room.

pub mod counts;
pub mod crew;
mod exports;
pub mod live;
#[cfg(osip2)]
mod persist;
pub mod register;
pub mod transport;
#[cfg(osip2)]
pub mod uinfo;
