//! Both ends of connections in one thread, so that every byte and its time are the test's choice.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use super::{Pod, SERVER, World, patience};

/// A client outside the pod and the pod's end of the connection.
pub struct Pair {
    pub client: TcpStream,
    pub server: TcpStream,
}

impl Pair {
    /// Connects to the listener; this thread must be where the clients are.
    pub fn new(listener: &TcpListener) -> Pair {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = listener.accept().unwrap().0;
        for end in [&client, &server] {
            end.set_nodelay(true).unwrap();
            end.set_read_timeout(Some(patience(Duration::from_secs(10))))
                .unwrap();
        }
        Pair { client, server }
    }

    /// One segment in.
    pub fn ask(&mut self, bytes: impl AsRef<[u8]>) {
        carry(&mut self.client, &mut self.server, bytes.as_ref());
    }

    /// One segment out.
    pub fn answer(&mut self, bytes: impl AsRef<[u8]>) {
        carry(&mut self.server, &mut self.client, bytes.as_ref());
    }

    pub fn turn(&mut self, request: impl AsRef<[u8]>, response: impl AsRef<[u8]>) {
        self.ask(request);
        self.answer(response);
    }
}

/// Sends, and waits until all has arrived: what follows is another segment.
fn carry(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]) {
    let mut received = vec![0; bytes.len()];
    // Larger than the buffers of both ends needs both at work.
    std::thread::scope(|scope| {
        if bytes.len() > 32_768 {
            scope.spawn(|| from.write_all(bytes).unwrap());
        } else {
            from.write_all(bytes).unwrap();
        }
        to.read_exact(&mut received).unwrap();
    });
    assert!(received == bytes);
}

pub const GET: &str = "GET / HTTP/1.1\r\nHost: pod\r\nUser-Agent: test/1.0\r\nAccept: */*\r\n\r\n";
pub const OK: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello";

pub fn response(status: u32) -> String {
    format!("HTTP/1.1 {status} Some Reason\r\nContent-Length: 2\r\n\r\nok")
}

/// A world with one pod that listens, this thread being a client.
pub fn one_pod(port: u16) -> (World, Pod, TcpListener) {
    let mut world = World::new();
    let pod = world.pod("pod");
    let listener = pod.listen(SERVER, port);
    world.enter_client();
    (world, pod, listener)
}
