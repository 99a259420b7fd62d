//! Response flags: the reasons why a request was not served normally, as in Envoy's logs and metrics.

use std::fmt;

/// One reason. In Envoy's order of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResponseFlag {
    /// No healthy upstream.
    NoHealthyUpstream,
    /// The request's timeout.
    UpstreamRequestTimeout,
    /// The sidecar reset the stream.
    LocalReset,
    /// The upstream reset the stream.
    UpstreamRemoteReset,
    /// Upstream connection failure.
    UpstreamConnectionFailure,
    /// The upstream closed the connection.
    UpstreamConnectionTermination,
    /// Upstream overflow: a circuit breaker.
    UpstreamOverflow,
    /// No route.
    NoRoute,
    /// A delay was injected.
    DelayInjected,
    /// A fault was injected.
    FaultInjected,
    /// Rate limited.
    RateLimited,
    /// Refused by authorization.
    UnauthorizedExternalService,
    /// The client closed the connection.
    DownstreamConnectionTermination,
    /// The retries of the policy are exhausted and the last one failed.
    UpstreamRetryLimitExceeded,
    /// A stream was idle for too long.
    StreamIdleTimeout,
    /// A strictly checked header is invalid.
    InvalidEnvoyRequestHeaders,
    /// The client's request breaks HTTP.
    DownstreamProtocolError,
    /// The maximum duration of a stream or connection was exceeded.
    DurationTimeout,
    /// The upstream's response breaks HTTP.
    UpstreamProtocolError,
    /// No cluster.
    NoCluster,
}

/// All flags in order, with Envoy's short forms.
const NAMES: [(ResponseFlag, &str); 20] = [
    (ResponseFlag::NoHealthyUpstream, "UH"),
    (ResponseFlag::UpstreamRequestTimeout, "UT"),
    (ResponseFlag::LocalReset, "LR"),
    (ResponseFlag::UpstreamRemoteReset, "UR"),
    (ResponseFlag::UpstreamConnectionFailure, "UF"),
    (ResponseFlag::UpstreamConnectionTermination, "UC"),
    (ResponseFlag::UpstreamOverflow, "UO"),
    (ResponseFlag::NoRoute, "NR"),
    (ResponseFlag::DelayInjected, "DI"),
    (ResponseFlag::FaultInjected, "FI"),
    (ResponseFlag::RateLimited, "RL"),
    (ResponseFlag::UnauthorizedExternalService, "UAEX"),
    (ResponseFlag::DownstreamConnectionTermination, "DC"),
    (ResponseFlag::UpstreamRetryLimitExceeded, "URX"),
    (ResponseFlag::StreamIdleTimeout, "SI"),
    (ResponseFlag::InvalidEnvoyRequestHeaders, "IH"),
    (ResponseFlag::DownstreamProtocolError, "DPE"),
    (ResponseFlag::DurationTimeout, "DT"),
    (ResponseFlag::UpstreamProtocolError, "UPE"),
    (ResponseFlag::NoCluster, "NC"),
];

impl ResponseFlag {
    /// Envoy's short form, for example `UH`.
    pub fn as_str(self) -> &'static str {
        NAMES[self as usize].1
    }
}

/// All reasons of one request: a refused connection (`UF`) and exhausted retries (`URX`) are both listed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ResponseFlags(u32);

impl ResponseFlags {
    /// No flag: the request was served normally.
    pub const NONE: ResponseFlags = ResponseFlags(0);

    /// Adds a flag.
    pub fn insert(&mut self, flag: ResponseFlag) {
        self.0 |= 1 << flag as u32;
    }

    /// Adds the flags of `other`.
    pub fn extend(&mut self, other: ResponseFlags) {
        self.0 |= other.0;
    }

    /// Whether there is no flag.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl From<ResponseFlag> for ResponseFlags {
    fn from(flag: ResponseFlag) -> ResponseFlags {
        ResponseFlags(1 << flag as u32)
    }
}

impl From<Option<ResponseFlag>> for ResponseFlags {
    fn from(flag: Option<ResponseFlag>) -> ResponseFlags {
        flag.map_or(ResponseFlags::NONE, ResponseFlags::from)
    }
}

impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        let set = NAMES.iter().filter(|(flag, _)| self.0 & (1 << *flag as u32) != 0);
        for (i, (_, name)) in set.enumerate() {
            f.write_str(if i == 0 { "" } else { "," })?;
            f.write_str(name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_the_order_of_the_flags() {
        for (i, (flag, name)) in NAMES.iter().enumerate() {
            assert_eq!((*flag as usize, flag.as_str()), (i, *name));
        }
    }

    #[test]
    fn several_are_listed_in_envoys_order() {
        let mut flags = ResponseFlags::NONE;
        assert_eq!(flags.to_string(), "-");
        flags.insert(ResponseFlag::UpstreamRetryLimitExceeded);
        flags.insert(ResponseFlag::UpstreamConnectionFailure);
        assert_eq!(flags.to_string(), "UF,URX");
        assert_eq!(ResponseFlags::from(ResponseFlag::NoCluster).to_string(), "NC");
    }
}
