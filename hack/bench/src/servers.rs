//! The servers whose requests are counted, as their users run them: found on this machine, written here if they are
//! a few lines, or built with the bench. Each serves one workload and then ends.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use ebpf_scaler_testbed::SERVER;

use crate::interrupt;
use crate::process::{self, Running};
use crate::site::{Pod, Site};

/// How long a server may take until it listens: a database is made first.
const START: Duration = Duration::from_secs(30);
/// A compiler on a busy machine.
const BUILD: Duration = Duration::from_secs(300);
/// Size of the file that is served with sendfile.
pub const BIG_FILE: usize = 4 << 20;

const NODE: &str = "require('http').createServer((request, response) => response.end('hello'))
  .listen(Number(process.argv[2]), process.argv[1]);";
const GO: &str = r#"package main
import ("io"; "net/http"; "os")
func main() {
	hello := func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }
	panic(http.ListenAndServe(os.Args[1], http.HandlerFunc(hello)))
}
"#;
const PYTHON: &str = "import sys, http.server
class Hello(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        self.send_response(200)
        self.send_header('Content-Length', '5')
        self.end_headers()
        self.wfile.write(b'hello')
    def log_message(self, *_): pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 256
Server((sys.argv[1], int(sys.argv[2])), Hello).serve_forever()";
const ASYNCIO: &str = "import asyncio, sys
async def serve(reader, writer):
    try:
        while True:
            await reader.readuntil(b'\\r\\n\\r\\n')
            writer.write(b'HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\n\\r\\nhello')
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
async def main():
    await (await asyncio.start_server(serve, sys.argv[1], int(sys.argv[2]))).serve_forever()
asyncio.run(main())";

/// What serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// nginx: `/hello` from memory, `/small` and `/big` by sendfile.
    Nginx,
    /// node:http.
    Node,
    /// net/http of Go.
    Go,
    /// http.server of Python, a thread for each connection.
    Python,
    /// asyncio streams of Python.
    Asyncio,
    /// The sample service of this repository (hyper), with microseconds of CPU work for each request.
    Sample(u32),
    /// nghttp2's server, HTTP/2 without TLS.
    Nghttpd,
    /// A gRPC server (tonic) of this binary.
    Grpc,
    /// Redis.
    Redis,
    /// PostgreSQL.
    Postgres,
}

/// A server that listens.
pub struct Listening {
    /// Its port at [`SERVER`].
    pub port: u16,
    _process: Running,
}

impl Listening {
    /// URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{SERVER}:{}{path}", self.port)
    }
}

impl Server {
    /// Starts it in a pod and waits until it listens.
    pub fn start(self, site: &Site, pod: &Pod) -> anyhow::Result<Listening> {
        let port = site.port();
        let directory = site.directory().join(port.to_string());
        fs::create_dir(&directory)?;
        let mut command = self.command(pod, port, &directory)?;
        let mut process = Running::start(&mut command)?;
        interrupt::until(&format!("{self:?} listens"), START, || {
            process.check()?;
            Ok(TcpStream::connect((SERVER, port)).is_ok())
        })?;
        Ok(Listening {
            port,
            _process: process,
        })
    }

    fn command(self, pod: &Pod, port: u16, directory: &Path) -> anyhow::Result<Command> {
        let port = port.to_string();
        let address = format!("{SERVER}:{port}");
        let run = |program: &Path, args: &[&str]| {
            let mut command = pod.command(program)?;
            command.args(args).current_dir(directory);
            anyhow::Ok(command)
        };
        match self {
            Server::Nginx => {
                let config = nginx(directory, &address)?;
                run(&process::find("nginx")?, &["-c", &config])
            }
            Server::Node => run(&process::find("node")?, &["-e", NODE, SERVER, &port]),
            Server::Go => run(&build_go(directory)?, &[&address]),
            Server::Python => run(&process::find("python3")?, &["-c", PYTHON, SERVER, &port]),
            Server::Asyncio => run(&process::find("python3")?, &["-c", ASYNCIO, SERVER, &port]),
            Server::Sample(micros) => {
                let work = format!("--work-micros={micros}");
                run(
                    &process::sibling("sample")?,
                    &["serve", "--port", &port, &work],
                )
            }
            Server::Nghttpd => {
                fs::write(directory.join("hello"), "hello")?;
                run(
                    &process::find("nghttpd")?,
                    &["--no-tls", "--htdocs=.", "--address", SERVER, &port],
                )
            }
            Server::Grpc => run(&process::sibling("bench")?, &["actor", "grpc", &address]),
            Server::Redis => run(
                &process::find("redis-server")?,
                &[
                    "--bind",
                    SERVER,
                    "--port",
                    &port,
                    "--save",
                    "",
                    "--protected-mode",
                    "no",
                ],
            ),
            Server::Postgres => postgres(pod, &port, directory),
        }
    }
}

fn nginx(directory: &Path, address: &str) -> anyhow::Result<String> {
    let place = directory.display();
    let config = format!(
        "daemon off; master_process off; pid {place}/pid; error_log {place}/error.log;
         events {{ worker_connections 1024; }}
         http {{ access_log off; sendfile on; keepalive_requests 1000000000; client_max_body_size 0;
                 large_client_header_buffers 8 32k;
                 client_body_temp_path {place}/b; proxy_temp_path {place}/p; fastcgi_temp_path {place}/f;
                 uwsgi_temp_path {place}/u; scgi_temp_path {place}/s;
                 server {{ listen {address}; root {place}; location /hello {{ return 200 hello; }} }} }}"
    );
    let file = directory.join("nginx.conf");
    fs::write(&file, config)?;
    fs::write(directory.join("small"), [b'x'; 612])?;
    fs::write(directory.join("big"), vec![b'x'; BIG_FILE])?;
    Ok(file.display().to_string())
}

fn build_go(directory: &Path) -> anyhow::Result<PathBuf> {
    fs::write(directory.join("main.go"), GO)?;
    let mut go = Command::new(process::find("go")?);
    go.args(["build", "-o", "server", "main.go"])
        .env("GOFLAGS", "-mod=mod")
        .current_dir(directory);
    process::output(&mut go, BUILD)?;
    Ok(directory.join("server"))
}

/// PostgreSQL refuses to run as root.
fn postgres(pod: &Pod, port: &str, directory: &Path) -> anyhow::Result<Command> {
    ebpf_scaler_testbed::sh(&format!("chown postgres {}", directory.display()))
        .context("cannot give PostgreSQL its directory")?;
    let setpriv = process::find("setpriv")?;
    let user = ["--reuid=postgres", "--regid=postgres", "--clear-groups"];
    let mut initdb = Command::new(&setpriv);
    initdb
        .args(user)
        .arg(process::find("initdb")?)
        .args([
            "--no-sync",
            "--auth=trust",
            "--username=bench",
            "--pgdata=data",
        ])
        .current_dir(directory);
    process::output(&mut initdb, START)?;
    let hba = directory.join("data/pg_hba.conf");
    let rules = fs::read_to_string(&hba)? + "host all all 10.77.0.0/24 trust\n";
    fs::write(&hba, rules)?;
    let mut command = pod.command(&setpriv)?;
    command
        .args(user)
        .arg(process::find("postgres")?)
        .args(["-D", "data", "-h", SERVER, "-p", port, "-k", "", "-F"])
        .current_dir(directory);
    Ok(command)
}
