//! Unary gRPC over HTTP/2 without TLS, by tonic on both ends. The message is a string that comes back.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::uri::PathAndQuery;
use tonic::body::Body;
use tonic::server::{NamedService, UnaryService};
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::Service;

use crate::generators::Generated;

type Codec = ProstCodec<String, String>;

#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "bench.Echo";
}

impl UnaryService<String> for Echo {
    type Response = String;
    type Future = Ready<Result<Response<String>, Status>>;

    fn call(&mut self, request: Request<String>) -> Self::Future {
        ready(Ok(Response::new(request.into_inner())))
    }
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async {
            let mut grpc = tonic::server::Grpc::new(Codec::default());
            Ok(grpc.unary(Echo, request).await)
        })
    }
}

/// Serves until the process is ended.
pub async fn serve(address: SocketAddr) -> anyhow::Result<()> {
    Ok(Server::builder().add_service(Echo).serve(address).await?)
}

/// Makes so many calls, one after the other on each connection.
pub async fn call(address: String, calls: u64, connections: u64) -> anyhow::Result<Generated> {
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..connections {
        let channel = Channel::from_shared(address.clone())?.connect().await?;
        clients.spawn(calls_of(channel, calls / connections));
    }
    let mut requests = 0;
    while let Some(done) = clients.join_next().await {
        requests += done??;
    }
    Ok(Generated {
        requests,
        ..Generated::default()
    })
}

async fn calls_of(channel: Channel, calls: u64) -> anyhow::Result<u64> {
    let mut grpc = tonic::client::Grpc::new(channel);
    for call in 0..calls {
        crate::interrupt::check()?;
        grpc.ready().await?;
        let path = PathAndQuery::from_static("/bench.Echo/Say");
        let said = call.to_string();
        let answer = grpc
            .unary(Request::new(said.clone()), path, Codec::default())
            .await?;
        anyhow::ensure!(answer.into_inner() == said, "another answer than expected");
    }
    Ok(calls)
}
