//! (room sip)
