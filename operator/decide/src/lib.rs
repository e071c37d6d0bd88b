//! Pure: decides replicas.
