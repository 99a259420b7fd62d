//! The ClientHello of a TLS connection, read before TLS is terminated or passed through.

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};
use weft_core::tls_hello::{Hello, MAX_HELLO, client_hello};

use crate::tls::identity::alpn;

/// A ClientHello.
pub struct ClientHello {
    /// All bytes that were read.
    pub bytes: BytesMut,
    /// The server name in lower case; empty: none.
    pub name: String,
    /// It offers an ALPN of the mesh.
    pub mesh: bool,
}

/// Reads on after `bytes` until a ClientHello is whole. The error holds the bytes that were read instead.
///
/// # Errors
/// It is no TLS, or the connection has ended.
pub async fn hello<S: AsyncRead + Unpin>(stream: &mut S, mut bytes: BytesMut) -> Result<ClientHello, BytesMut> {
    loop {
        match client_hello(&bytes) {
            Hello::ClientHello { sni, alpn } => {
                let mesh = alpn.iter().any(|offered| alpn::ALL.contains(&offered.as_slice()));
                return Ok(ClientHello { bytes, name: sni.unwrap_or_default(), mesh });
            }
            Hello::NotTls if !bytes.is_empty() => return Err(bytes),
            _ if bytes.len() >= MAX_HELLO => return Err(bytes),
            _ => {}
        }
        bytes.reserve(2048);
        if !matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
            return Err(bytes);
        }
    }
}
