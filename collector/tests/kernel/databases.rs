//! Real databases in a pod, and their own benchmarks as clients. What they write lies in a directory that goes with them.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{Pod, SERVER, World, eventually};

/// A server that listens; ended with the test.
pub struct Server {
    child: Child,
    directory: PathBuf,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGINT is PostgreSQL's fast shutdown; to Redis and nginx it is as good as SIGTERM.
        // SAFETY: a signal to our own child.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGINT) };
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Server {
    /// Starts it and waits until it listens. This thread becomes a client.
    fn start(world: &World, port: u16, command: impl FnOnce(&Path) -> Command) -> Server {
        let directory = std::env::temp_dir().join(format!("{}-{port}", world.name));
        fs::create_dir(&directory).unwrap();
        let mut command = command(&directory);
        command
            .current_dir(&directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().expect("run hack/setup/packages.sh");
        let server = Server {
            child,
            directory,
            port,
        };
        world.enter_client();
        let listens = || TcpStream::connect((SERVER, port)).is_ok();
        assert!(
            eventually(Duration::from_secs(30), listens),
            "nothing listens at {port}"
        );
        server
    }

    pub fn redis(world: &World, pod: &Pod, port: u16) -> Server {
        Server::start(world, port, |_| {
            let mut command = pod.command("redis-server");
            command
                .args(["--bind", SERVER, "--port", &port.to_string()])
                .args(["--save", "", "--protected-mode", "no"]);
            command
        })
    }

    /// PostgreSQL with an empty database, which trusts everybody.
    pub fn postgresql(world: &World, pod: &Pod, port: u16) -> Server {
        let server = Server::start(world, port, |directory| {
            let initdb = bin("initdb");
            run(Command::new("chown").arg("postgres").arg(directory));
            let mut make = as_postgres(Command::new("setpriv"));
            make.arg(&initdb)
                .args(["--no-sync", "--auth=trust", "--username=bench"])
                .args(["--pgdata=data"])
                .current_dir(directory);
            run(&mut make);
            let rules = directory.join("data/pg_hba.conf");
            fs::write(&rules, "host all all all trust\n").unwrap();
            let mut command = as_postgres(pod.command("setpriv"));
            command
                .arg(initdb.with_file_name("postgres"))
                .args(["-D", "data", "-h", SERVER, "-p", &port.to_string()])
                // No socket files, no fsync: two may run at once, and nothing outlives the test.
                .args(["-k", "", "-F", "-c", "max_connections=40"]);
            command
        });
        // It listens before it lets anybody in.
        let status = server.directory.join("data/postmaster.pid");
        let ready = || fs::read_to_string(&status).is_ok_and(|text| text.contains("ready"));
        assert!(
            eventually(Duration::from_secs(30), ready),
            "PostgreSQL does not get ready"
        );
        server
    }

    /// nginx with TLS and a certificate of its own.
    pub fn https(world: &World, pod: &Pod, port: u16, versions: &str) -> Server {
        Server::start(world, port, |directory| {
            let own = rcgen::generate_simple_self_signed([SERVER.to_owned()]).unwrap();
            fs::write(directory.join("cert"), own.cert.pem()).unwrap();
            fs::write(directory.join("key"), own.signing_key.serialize_pem()).unwrap();
            let place = directory.display();
            let config = format!(
                "daemon off; master_process off; pid {place}/pid; error_log {place}/error.log;
                 events {{ worker_connections 512; }}
                 http {{ access_log off; keepalive_requests 100000000; ssl_certificate {place}/cert;
                         ssl_certificate_key {place}/key; ssl_protocols {versions};
                         client_body_temp_path {place}/b; proxy_temp_path {place}/p;
                         fastcgi_temp_path {place}/f; uwsgi_temp_path {place}/u; scgi_temp_path {place}/s;
                         server {{ listen {SERVER}:{port} ssl; location / {{ return 200 hello; }} }} }}"
            );
            let file = directory.join("nginx.conf");
            fs::write(&file, config).unwrap();
            let mut command = pod.command("nginx");
            command.arg("-c").arg(file);
            command
        })
    }

    /// redis-benchmark with these arguments.
    pub fn redis_benchmark(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("redis-benchmark");
        command.args(["-h", SERVER, "-p", &self.port.to_string(), "-q"]);
        output(command.args(arguments))
    }

    /// pgbench with these arguments, on the database `postgres`.
    pub fn pgbench(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("pgbench");
        command.args(["-h", SERVER, "-p", &self.port.to_string(), "-U", "bench"]);
        // Debian's wrapper looks for a cluster of its own.
        output(command.args(arguments).arg("postgres"))
    }
}

/// PostgreSQL refuses to run as root.
fn as_postgres(mut setpriv: Command) -> Command {
    setpriv.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    setpriv
}

/// A program of PostgreSQL's server, which lies in a directory of its version.
fn bin(program: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("run hack/setup/packages.sh");
    versions
        .map(|version| version.unwrap().path().join("bin").join(program))
        .filter(|path| path.exists())
        .max()
        .expect("run hack/setup/packages.sh")
}

fn run(command: &mut Command) {
    output(command);
}

fn output(command: &mut Command) -> String {
    let output = command.output().expect("run hack/setup/packages.sh");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}
