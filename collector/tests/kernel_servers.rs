//! Real servers and clients, whose own counts are the oracle: nginx and wrk, if they are installed. Needs root and
//! the BPF object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kernel::{SERVER, World, eventually};

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // nginx's master takes its workers with it when it is asked.
        // SAFETY: a signal to our own child.
        unsafe { libc::kill(self.0.id() as i32, libc::SIGTERM) };
        let _ = self.0.wait();
    }
}

fn nginx(pod: &kernel::Pod, directory: &std::path::Path) -> Server {
    let config = format!(
        "daemon off; master_process off; pid {0}/pid; error_log {0}/error.log; events {{ worker_connections 512; }}
         http {{ access_log off; sendfile on; keepalive_requests 100000000;
                 client_body_temp_path {0}/body; proxy_temp_path {0}/proxy; fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;
                 server {{ listen {SERVER}:80 deferred; location / {{ root {0}; }} location /hello {{ return 200 hello; }} }} }}",
        directory.display()
    );
    std::fs::write(directory.join("nginx.conf"), config).unwrap();
    std::fs::write(directory.join("file"), vec![b'x'; 100_000]).unwrap();
    let mut command = pod.command("nginx");
    command
        .arg("-c")
        .arg(directory.join("nginx.conf"))
        .stderr(Stdio::null());
    Server(command.spawn().unwrap())
}

fn installed(program: &str) -> bool {
    Command::new(program)
        .arg("-v")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}

#[test]
fn wrk_and_nginx_agree_with_us() {
    for program in ["nginx", "wrk"] {
        assert!(
            installed(program),
            "{program} is not installed: run hack/setup/packages.sh"
        );
    }
    let mut world = World::new();
    let pod = world.pod("pod");
    let directory = std::env::temp_dir().join(&world.name);
    std::fs::create_dir(&directory).unwrap();
    let server = nginx(&pod, &directory);
    world.enter_client();
    assert!(eventually(Duration::from_secs(5), || TcpStream::connect((
        SERVER, 80
    ))
    .is_ok()));
    for (path, connections, header) in [
        ("hello", 16, "A: b"),
        ("hello", 256, "A: b"),
        ("file", 16, "A: b"),
        ("hello", 16, "Connection: close"),
    ] {
        let before = world.counters(&pod);
        let output = Command::new("wrk")
            .args([
                "-t2",
                "-d2s",
                &format!("-c{connections}"),
                "-H",
                header,
                &format!("http://{SERVER}/{path}"),
            ])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let completed: u64 = text
            .lines()
            .find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok())
            .unwrap_or_else(|| panic!("{text}"));
        let answered = || world.counters(&pod).requests - before.requests >= completed;
        eventually(Duration::from_secs(2), answered);
        let counted = world.counters(&pod).requests - before.requests;
        eprintln!(
            "{path}: wrk {completed}, counted {counted}, {}",
            world.troubles()
        );
        // wrk leaves off with up to one request on each connection.
        assert!(
            (completed..=completed + connections).contains(&counted),
            "wrk {completed}, counted {counted}: {}",
            world.troubles()
        );
        assert!(
            eventually(Duration::from_secs(2), || world
                .counters(&pod)
                .requests_in_flight
                == 0),
            "{}",
            world.troubles()
        );
    }
    drop(server);
    std::fs::remove_dir_all(&directory).unwrap();
}
