//! Prints a custom resource definition as YAML; writes nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_default();
    match ebpf_scaler_crds::manifest(&name) {
        Ok(yaml) => {
            print!("{yaml}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cannot print the definition: {error}");
            ExitCode::FAILURE
        }
    }
}
