//! What must hold for any input, one function per target. A function panics when it does not hold; nothing here
//! knows the fuzzer, so a finding is replayed by calling the function.

mod chunks;
pub mod http1;
pub mod http2;
pub mod machine;
pub mod text;
pub mod wire;
