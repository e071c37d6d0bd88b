//! Processes that the bench starts from its own binary, because they must run in a pod's cgroup: a gRPC server, a
//! server of a few requests, threads that wake each other. Each ends by itself or when it is told to.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::grpc;

/// Which one.
#[derive(clap::Subcommand)]
pub enum Actor {
    /// Serve gRPC
    Grpc {
        /// IP:PORT
        address: SocketAddr,
    },
    /// Serve HTTP/1.1 for so long, then end
    Brief {
        /// IP:PORT
        address: SocketAddr,
        /// Milliseconds
        millis: u64,
    },
    /// Pairs of threads that wake each other until told to end
    PingPong {
        /// How many
        pairs: usize,
    },
}

/// Runs to its end.
pub fn run(actor: Actor) -> anyhow::Result<()> {
    match actor {
        Actor::Grpc { address } => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(grpc::serve(address)),
        Actor::Brief { address, millis } => brief(address, Duration::from_millis(millis)),
        Actor::PingPong { pairs } => ping_pong(pairs),
    }
}

fn brief(address: SocketAddr, life: Duration) -> anyhow::Result<()> {
    let end = Instant::now() + life;
    let listener = TcpListener::bind(address)?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(stream));
        }
    });
    thread::sleep(end.saturating_duration_since(Instant::now()));
    Ok(())
}

/// Answers requests without bodies, one at a time.
fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let (mut seen, mut buffer) = (Vec::new(), [0; 1024]);
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            n => seen.extend_from_slice(&buffer[..n]),
        }
        if seen.ends_with(b"\r\n\r\n") {
            seen.clear();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
        }
    }
}

fn ping_pong(pairs: usize) -> anyhow::Result<()> {
    for _ in 0..pairs {
        let (one, other) = UnixStream::pair()?;
        (&one).write_all(&[1])?;
        for mut end in [one, other] {
            thread::spawn(move || {
                let mut byte = [0];
                while end.read_exact(&mut byte).is_ok() && end.write_all(&byte).is_ok() {}
            });
        }
    }
    loop {
        thread::park();
    }
}
