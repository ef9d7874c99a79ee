//! (room osip)
