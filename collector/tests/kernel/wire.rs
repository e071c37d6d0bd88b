//! A connection of which the test makes every segment in, and the pod's end of it. It never sends by itself.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use super::raw::Raw;

/// A hand-made client and the pod's end.
pub struct Wire {
    pub client: Raw,
    pub server: TcpStream,
    /// Bytes of the stream in that are no longer new.
    pub sent: usize,
    answered: usize,
}

impl Wire {
    pub fn new(listener: &TcpListener, port: u16) -> Wire {
        let client = Raw::establish(port, listener.local_addr().unwrap().port());
        Wire::accepted(client, listener)
    }

    pub fn accepted(client: Raw, listener: &TcpListener) -> Wire {
        let server = listener.accept().unwrap().0;
        server.set_nodelay(true).unwrap();
        server
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        Wire {
            client,
            server,
            sent: 0,
            answered: 0,
        }
    }

    /// Sends the parts of a message in that order, each as often as it is named.
    pub fn ask(&mut self, message: &str, cuts: &[usize], order: &[usize]) {
        let mut edges = vec![0];
        edges.extend(cuts);
        edges.push(message.len());
        for part in order {
            let (from, to) = (edges[*part], edges[part + 1]);
            self.client
                .send(self.sent + from, &message.as_bytes()[from..to]);
        }
        let mut received = vec![0; message.len()];
        self.server.read_exact(&mut received).unwrap();
        assert!(received == message.as_bytes());
        self.sent += message.len();
    }

    pub fn answer(&mut self, message: &str) {
        self.server.write_all(message.as_bytes()).unwrap();
        self.answered += message.len();
        self.client.receive(self.answered, self.sent);
    }
}
