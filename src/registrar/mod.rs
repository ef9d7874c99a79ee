//! (room registrar)
