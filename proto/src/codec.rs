//! Messages on the wire, with small buffers: a control plane has thousands of streams that are idle most of the time,
//! and each keeps its buffers.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::ProstCodec;

/// Initial size of a stream's buffer, by which it grows for larger messages.
pub const BUFFER: usize = 4 << 10;
/// Bytes that are gathered before they are sent: a message that nearly fills the buffer is sent alone, because the next
/// one would make it grow.
const GATHERED: usize = 1 << 10;

/// [`ProstCodec`] with small buffers; those of tonic have 8 KiB and gather 32.
#[derive(Debug, Clone)]
pub struct SmallBuffers<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallBuffers<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallBuffers<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as Codec>::Encoder;
    type Decoder = <ProstCodec<T, U> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER, GATHERED))
    }

    fn decoder(&mut self) -> Self::Decoder {
        // Grows with the messages: requests are short.
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER / 8, GATHERED))
    }
}
