//! Prints the custom resource definition as YAML; writes nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    match ebpf_scaler_crds::manifest() {
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
