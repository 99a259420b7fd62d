//! Compiles locality load balancing and warm-up.

use std::time::Duration;

use weft_proto::v1;

use super::{At, Result, error, sorted};
use crate::locality::{Distribution, Failover, Label, Locality, Pattern};
use crate::policy::Warmup;

/// `ejects`: outlier detection is configured. Without it, failures of near endpoints stay unnoticed and failover never
/// starts.
pub(super) fn locality(message: Option<&v1::LocalityLb>, ejects: bool) -> Result<Locality> {
    let by_default = v1::LocalityLb::default();
    let message = message.unwrap_or(&by_default);
    if message.disabled {
        return Ok(Locality::Any);
    }
    if !message.distribute.is_empty() {
        let mut all = Vec::with_capacity(message.distribute.len());
        for (i, item) in message.distribute.iter().enumerate() {
            all.push(distribution(item).at(format_args!("distribute[{i}]"))?);
        }
        return Ok(Locality::Distribute(all));
    }
    if !ejects {
        return Ok(Locality::Any);
    }
    let labels: Vec<Label> = message.failover_priority.iter().map(|text| label(text)).collect();
    Ok(Locality::Failover(match (labels.is_empty(), message.failover.is_empty()) {
        (true, _) => Failover::Regions(sorted(&message.failover)),
        (false, true) => Failover::Labels(labels),
        (false, false) => Failover::Both(labels, sorted(&message.failover)),
    }))
}

fn distribution(message: &v1::LocalityShares) -> Result<Distribution> {
    let mut to = Vec::with_capacity(message.to.len());
    let mut shares: Vec<(&String, &u32)> = message.to.iter().collect();
    shares.sort_unstable();
    for (pattern, percent) in shares {
        to.push((Pattern::parse(pattern).at(format_args!("to[{pattern:?}]"))?, *percent));
    }
    let sum: u64 = to.iter().map(|(_, percent)| u64::from(*percent)).sum();
    if sum != 100 {
        return error("to", format!("the weights add up to {sum}, not to 100"));
    }
    Ok(Distribution { from: Pattern::parse(&message.from).at("from")?, to })
}

fn label(text: &str) -> Label {
    match text.split_once('=') {
        Some((name, value)) => Label { name: name.to_owned(), value: Some(value.to_owned()) },
        None => Label { name: text.to_owned(), value: None },
    }
}

pub(super) fn warmup(message: &v1::Warmup) -> Result<Warmup> {
    if message.duration_ms == 0 {
        return error("duration_ms", "must be above 0");
    }
    if !(0.0..=100.0).contains(&message.minimum_percent) {
        return error("minimum_percent", format!("{} is not 0 to 100", message.minimum_percent));
    }
    if !(1.0..=f64::MAX).contains(&message.aggression) {
        return error("aggression", format!("{} is not a number from 1", message.aggression));
    }
    Ok(Warmup {
        duration: Duration::from_millis(message.duration_ms),
        minimum_percent: message.minimum_percent,
        aggression: message.aggression,
    })
}
