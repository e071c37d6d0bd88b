#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ebpf_scaler_fuzz::wire::connection(data));
