#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ebpf_scaler_fuzz::http2::connection(data));
