#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ebpf_scaler_fuzz::text::duration(data));
