//! (room pool)
