//! A reverse proxy in front of an application in the same pod: what a web server or a mesh sidecar is. It exists
//! to show that a request which passes two containers of a pod is counted once; it does nothing else.

use std::{
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
};

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{
    Request, Response, StatusCode, Uri, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use tokio::net::TcpListener;

use crate::terminated;

/// Flags of `sample proxy`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Port to listen at
    #[arg(long, default_value_t = 80)]
    pub port: u16,
    /// Where to forward, for example http://127.0.0.1:8080
    #[arg(long)]
    pub to: Uri,
}

type Body = BoxBody<Bytes, hyper::Error>;

/// Forwards to one address, over connections that it keeps open.
#[derive(Debug)]
pub struct Proxy {
    client: Client<HttpConnector, Incoming>,
    to: Uri,
}

impl Proxy {
    /// A proxy to an `http://` address.
    pub fn new(to: Uri) -> Arc<Self> {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Arc::new(Self { client, to })
    }

    /// Accepts connections for ever.
    pub async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                continue;
            };
            let _ = stream.set_nodelay(true);
            let proxy = Arc::clone(&self);
            tokio::spawn(async move {
                let service = service_fn(|request| proxy.forward(request));
                let _ = http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, hyper::http::Error> {
        let mut uri = std::mem::take(request.uri_mut()).into_parts();
        uri.scheme = self.to.scheme().cloned();
        uri.authority = self.to.authority().cloned();
        *request.uri_mut() = Uri::from_parts(uri)?;
        match self.client.request(request).await {
            Ok(response) => Ok(response.map(BodyExt::boxed)),
            Err(error) => {
                let text = Full::from(format!("{error}\n")).map_err(|never| match never {});
                Response::builder()
                    .status(StatusCode::BAD_GATEWAY)
                    .body(text.boxed())
            }
        }
    }
}

/// Forwards until told to stop.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, args.port));
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind(("0.0.0.0", args.port))
            .await
            .with_context(|| format!("cannot listen at port {}", args.port))?,
    };
    tokio::spawn(Proxy::new(args.to).accept(listener));
    terminated().await;
    Ok(())
}
