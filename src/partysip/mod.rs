//! (room partysip)
