//! Clients of our own, for what no load generator does: connections that are older than the programs, requests in
//! segments of one byte. Every request is answered before the next, so their counts are exact.

use anyhow::bail;
use ebpf_scaler_sample::client::{Connection, Failure, Target};
use tokio::runtime::Runtime;

use crate::generators::Generated;
use crate::interrupt;

/// Connections with no request on its way.
pub struct Clients {
    runtime: Runtime,
    target: Target,
    connections: Vec<Connection>,
}

impl Clients {
    /// Connects so often.
    pub fn connect(url: &str, connections: usize) -> anyhow::Result<Clients> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let target = runtime.block_on(Target::resolve(url, 0))?;
        let opened = (0..connections).map(|_| runtime.block_on(Connection::open(&target)));
        Ok(Clients {
            connections: opened.collect::<Result<_, _>>()?,
            runtime,
            target,
        })
    }

    /// So many requests on each connection, cut into pieces of so many bytes, a segment each.
    pub fn ask(&mut self, rounds: u64, piece: usize) -> anyhow::Result<Generated> {
        let mut requests = 0;
        for _ in 0..rounds {
            interrupt::check()?;
            for connection in &mut self.connections {
                let exchange = exchange(connection, &self.target.request, piece);
                if let Err(failure) = self.runtime.block_on(exchange) {
                    bail!("a request was not answered: {failure:?}");
                }
                requests += 1;
            }
        }
        Ok(Generated {
            requests,
            ..Generated::default()
        })
    }
}

async fn exchange(
    connection: &mut Connection,
    request: &[u8],
    piece: usize,
) -> Result<(), Failure> {
    for piece in request.chunks(piece) {
        connection.write(piece).await?;
        // Two pieces that the kernel still holds would go out as one segment.
        tokio::task::yield_now().await;
    }
    connection.read().await.map(drop)
}
