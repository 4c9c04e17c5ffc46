//! One HTTP/1 request on a connection of its own.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// Far above any answer that is asked for: 1,024 services with every counter.
const LARGEST_ANSWER: usize = 16 << 20;

/// The exchange broke off, or was not understood.
pub type Broken = Box<dyn std::error::Error + Send + Sync>;

/// Sends `request` over `stream`, and reads the whole answer. Waits without end: callers set limits.
///
/// # Errors
/// When the exchange breaks off, and when the answer is longer than 16 MiB.
pub async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), Broken> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let asked = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST_ANSWER);
        Ok((status, body.collect().await?.to_bytes()))
    };
    // The connection moves the bytes; it ends when the answer is read, or with an error that the
    // answer reports too.
    tokio::pin!(asked);
    tokio::select! {
        answer = &mut asked => answer,
        _ = connection => asked.await,
    }
}
