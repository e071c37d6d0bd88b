//! Servers and clients that speak TLS, with a certificate of their own, and the probes on the libraries that they run.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use ebpf_scaler_collector::agent::tls::libraries_of;

use super::{Pod, SERVER, World, eventually};

/// A process of a test, asked to end with it.
pub struct Process(pub Child);

impl Process {
    pub fn start(command: &mut Command) -> Process {
        Process(command.stdin(Stdio::null()).spawn().unwrap())
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SAFETY: a signal to our own child.
        unsafe { libc::kill(self.0.id() as i32, libc::SIGTERM) };
        let _ = self.0.wait();
    }
}

/// A world whose programs may count inside TLS, with one pod of which that is wanted, this thread being a client.
pub struct Scene {
    pub world: World,
    pub pod: Pod,
    pub files: PathBuf,
}

impl Scene {
    pub fn new() -> Scene {
        let mut world = World::with(|options| options.tls = true);
        let pod = world.pod("pod");
        world.probes.count_tls(pod.slot, true);
        let files = files(&world.name);
        world.enter_client();
        Scene { world, pod, files }
    }

    /// A command in the pod, in the directory of the certificate.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = self.pod.command(program);
        command.args(arguments).current_dir(&self.files);
        command
    }

    /// Starts a server in the pod, waits for its port, and probes what it runs.
    pub fn serve(&mut self, command: &mut Command, port: u16) -> Process {
        let server = self.serve_unprobed(command, port);
        self.probe(server.id());
        server
    }

    pub fn serve_unprobed(&self, command: &mut Command, port: u16) -> Process {
        let mut server = Process::start(command);
        let up = eventually(Duration::from_secs(20), || {
            assert!(
                server.0.try_wait().unwrap().is_none(),
                "it ended: {command:?}"
            );
            TcpStream::connect((SERVER, port)).is_ok()
        });
        assert!(up, "nobody listens: {command:?}");
        server
    }

    /// Probes the libraries of a process; how many those are.
    pub fn probe(&mut self, process: u32) -> usize {
        let libraries = libraries_of(process).unwrap();
        assert!(!libraries.is_empty(), "no TLS library in {process}");
        for library in &libraries {
            self.world.probes.probe(library).unwrap();
        }
        libraries.len()
    }

    pub fn nginx(&mut self, port: u16) -> Process {
        let config = nginx_config(&self.files, port);
        let mut command = self.command("nginx", &["-c", config.to_str().unwrap()]);
        self.serve(command.stderr(Stdio::null()), port)
    }

    pub fn requests(&self) -> u64 {
        self.world.counters(&self.pod).requests
    }

    /// Waits until so many requests are counted and answered, and fails if there are more.
    pub fn counts(&self, expected: u64) {
        self.counts_of(expected, 0);
    }

    pub fn counts_of(&self, expected: u64, in_flight: u64) {
        let now = || self.world.counters(&self.pod);
        let done = eventually(Duration::from_secs(10), || {
            let now = now();
            now.requests >= expected && now.requests_in_flight == in_flight
        });
        let now = now();
        assert!(
            done && now.requests == expected,
            "expected {expected}: {now:?}; {}",
            self.world.troubles()
        );
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.files);
    }
}

/// A directory with a certificate and its key, and what nginx serves.
pub fn files(name: &str) -> PathBuf {
    let directory = std::env::temp_dir().join(name);
    std::fs::create_dir(&directory).unwrap();
    let made = rcgen::generate_simple_self_signed([SERVER.to_owned()]).unwrap();
    std::fs::write(directory.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(directory.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(directory.join("file"), vec![b'x'; 100_000]).unwrap();
    directory
}

pub fn nginx_config(files: &Path, port: u16) -> PathBuf {
    let config = format!(
        "daemon off; master_process off; pid {0}/pid; error_log {0}/error.log; events {{ worker_connections 512; }}
         http {{ access_log off; sendfile on; keepalive_requests 100000000;
                 client_body_temp_path {0}/body; proxy_temp_path {0}/proxy; fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;
                 server {{ listen {SERVER}:{port} ssl http2; ssl_certificate {0}/cert.pem; ssl_certificate_key {0}/key.pem;
                           location / {{ root {0}; }} location /hello {{ return 200 hello; }} location /no {{ return 503; }}
                           location /status {{ stub_status; }} }} }}",
        files.display()
    );
    let path = files.join("nginx.conf");
    std::fs::write(&path, config).unwrap();
    path
}

/// A client whose every byte is the test's choice: `openssl s_client`, of which each line is text that is sent.
pub struct Client {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Client {
    pub fn connect(mut command: Command, port: u16) -> Client {
        command
            .args(["s_client", "-quiet", "-nocommands", "-connect"])
            .arg(format!("{SERVER}:{port}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        Client {
            stdin: child.stdin.take().unwrap(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    /// Sends text, which becomes one record.
    pub fn send(&mut self, text: &str) {
        self.stdin.write_all(text.as_bytes()).unwrap();
        self.stdin.flush().unwrap();
    }

    /// Reads one answer, whose length is told: its status.
    pub fn answer(&mut self) -> u32 {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status line: {line:?}"));
        let mut length = 0;
        loop {
            line.clear();
            assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "the end");
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        self.stdout.read_exact(&mut vec![0; length]).unwrap();
        status
    }

    pub fn ask(&mut self, path: &str) -> u32 {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: pod\r\n\r\n"));
        self.answer()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What curl is answered, whatever the certificate.
pub fn curl(arguments: &[&str]) -> String {
    let mut command = Command::new("curl");
    let output = command
        .args(["--silent", "--show-error", "--insecure", "--max-time", "20"])
        .args(arguments)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {told}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What wrk says that it completed.
pub fn wrk(connections: u32, seconds: u32, header: &str, url: &str) -> u64 {
    wrk_by(Command::new("wrk"), connections, seconds, header, url)
}

/// The same of a command that runs wrk in its own way.
pub fn wrk_by(mut wrk: Command, connections: u32, seconds: u32, header: &str, url: &str) -> u64 {
    let output = wrk
        .args([
            "-t2",
            &format!("-d{seconds}s"),
            &format!("-c{connections}"),
            "-H",
            header,
            url,
        ])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let completed = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok());
    completed.unwrap_or_else(|| panic!("{text}"))
}
