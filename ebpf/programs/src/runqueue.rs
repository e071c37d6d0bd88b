//! Time that runnable threads wait for a CPU (in work).
