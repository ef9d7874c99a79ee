//! (room registrar)
#![deny(unsafe_code)]
mod cache;
pub mod store;
