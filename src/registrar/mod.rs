//! (room registrar)
#![deny(unsafe_code)]
pub mod store;
