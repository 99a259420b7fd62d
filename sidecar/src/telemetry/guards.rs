//! The counts of the guards of listeners, as metrics.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use weft_listen::counts::{IDLE_CLOSED, TOO_MANY_REQUESTS};

/// Reads the counts at each scrape.
#[derive(Debug)]
pub(super) struct Guards;

impl Collector for Guards {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, help, count) in [
            ("weft_idle_connections_closed", "Idle connections closed for newer ones", &IDLE_CLOSED),
            ("weft_too_many_requests", "Requests of the local APIs answered with 429", &TOO_MANY_REQUESTS),
        ] {
            let counter = ConstCounter::new(count.value());
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}
