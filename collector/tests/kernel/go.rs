//! A server with crypto/tls that the installed tool chain builds.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::SERVER;
use super::tls::{Process, Scene};

/// Where hack/setup finds one, or puts it.
fn go() -> Command {
    let debians = std::fs::read_dir("/usr/lib").into_iter().flatten();
    let debians = debians.flatten().map(|entry| entry.path().join("bin/go"));
    let mut places = vec![PathBuf::from("go"), "/usr/local/go/bin/go".into()];
    places.extend(debians.filter(|place| place.is_file()));
    let works = |place: &PathBuf| Command::new(place).arg("version").output().is_ok();
    let found = places.into_iter().find(works);
    let mut go = Command::new(found.expect("Go: hack/setup installs it"));
    go.env("GOTOOLCHAIN", "local").env("GOFLAGS", "");
    go
}

/// Builds the server, with these flags too: its path.
pub fn build(scene: &Scene, name: &str, flags: &[&str]) -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernel/go_server.go");
    let built = scene.files.join(name);
    let mut build = go();
    build.arg("build").args(flags).arg("-o").arg(&built);
    let output = build.arg(source).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    built.to_str().unwrap().to_owned()
}

/// The server in the pod, not probed yet.
pub fn start(scene: &Scene, program: &str, port: u16) -> Process {
    let address = format!("{SERVER}:{port}");
    let mut command = scene.command(program, &[&address]);
    scene.serve_unprobed(command.stderr(Stdio::null()), port)
}
