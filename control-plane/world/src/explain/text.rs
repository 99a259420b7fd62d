//! An explanation in words, one line for each fact, in the order of the decisions.

use std::fmt::{self, Formatter};

use super::report::{Destination, Elsewhere, Endpoint, Explanation, Routes, Setting, Verdict};
use super::settings::labels;

/// Bound on the endpoints that are printed for one destination, besides the picked one.
const MOST_ENDPOINTS: usize = 50;

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let request = &self.request;
        match (request.method.is_empty(), &request.server_name) {
            (false, _) => write!(f, "{} {}", request.method, request.url)?,
            (true, Some(name)) => write!(f, "TLS to server name {name}, port {}", request.port)?,
            (true, None) => write!(f, "a connection to {}, port {}", self.host.query, request.port)?,
        }
        let own = request.url.split_once("://").map_or("", |(_, rest)| rest.split('/').next().unwrap_or_default());
        if !request.method.is_empty() && own != request.authority {
            write!(f, ", host: {}", request.authority)?;
        }
        match self.caller.gateway.as_str() {
            "" => writeln!(f, ", from {}", caller(self))?,
            gateway => writeln!(f, ", from outside through Gateway {gateway}")?,
        }
        self.host(f)?;
        if let Some(port) = &self.port {
            let number =
                if port.number == 0 { "any (the host declares none)".to_owned() } else { port.number.to_string() };
            let name = if port.name.is_empty() { String::new() } else { format!(" {}", port.name) };
            writeln!(f, "port      {number}{name}: {}", port.protocol)?;
        }
        self.route(f)?;
        for Setting { field, value } in &self.effects {
            writeln!(f, "          {field}: {value}")?;
        }
        for destination in &self.destinations {
            of_destination(f, destination)?;
        }
        for note in &self.notes {
            writeln!(f, "note      {note}")?;
        }
        writeln!(f, "result    {}", self.verdict)
    }
}

impl Explanation {
    fn host(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let host = &self.host;
        if host.name.is_empty() {
            return match host.because.as_str() {
                "" => Ok(()),
                because => writeln!(f, "host      {}: {because}", host.query),
            };
        }
        let means =
            if host.query == host.name { host.name.clone() } else { format!("{} is {}", host.query, host.name) };
        let sources = if host.sources.is_empty() { String::new() } else { format!(" ({})", host.sources.join(", ")) };
        writeln!(f, "host      {means}: {}{sources}", host.because)
    }

    fn route(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Some(routes) = &self.routes else {
            return match self.port {
                Some(_) => writeln!(f, "route     none of a VirtualService: the host itself"),
                None => Ok(()),
            };
        };
        let Routes { policy, delegates, taken, passed_over } = routes;
        let joined = if *delegates { ", delegates included" } else { "" };
        match taken {
            Some(taken) => {
                let matched =
                    taken.matched.map_or(", which matches every request".to_owned(), |at| format!(", match[{at}]"));
                writeln!(f, "route     {policy}{joined}: {}{}{matched}", taken.route, quoted(&taken.name))?;
            }
            None if self.destinations.is_empty() => writeln!(f, "route     {policy}{joined}: none matches")?,
            None => writeln!(f, "route     {policy}{joined}: none matches, the request goes to the host itself")?,
        }
        for route in passed_over {
            let because = match route.because.as_slice() {
                [one] => one.clone(),
                several => {
                    let each = several.iter().enumerate().map(|(at, because)| format!("match[{at}]: {because}"));
                    each.collect::<Vec<_>>().join("; ")
                }
            };
            writeln!(f, "          not {}{}: {because}", route.route, quoted(&route.name))?;
        }
        Ok(())
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Served => f.write_str("forwarded to an endpoint"),
            Verdict::Unregistered => f.write_str("forwarded to a registered endpoint (files do not show which)"),
            Verdict::Answered { status, by } => write!(f, "answered {status} by {by}"),
            Verdict::Unknown { passes: Some(false) } => f.write_str("unknown host: refused (502 NR, unknown_host)"),
            Verdict::Unknown { passes: _ } => f.write_str("unknown host: passed through"),
            Verdict::Refused { status: 0, flag, reason } => write!(f, "closed, {flag}: {reason}"),
            Verdict::Refused { status, flag, reason } => write!(f, "{status} {flag}, {reason}"),
        }
    }
}

fn caller(explanation: &Explanation) -> String {
    let caller = &explanation.caller;
    let who = if caller.workload.is_empty() { "a client" } else { &caller.workload };
    let mut text = format!("{who} of namespace {}", caller.namespace);
    if !caller.labels.is_empty() {
        text += &format!(", labels {}", labels(&caller.labels));
    }
    if !caller.locality.is_empty() {
        text += &format!(", locality {}", caller.locality);
    }
    text
}

fn quoted(name: &str) -> String {
    if name.is_empty() { String::new() } else { format!(" \"{name}\"") }
}

fn settings(all: &[Setting]) -> String {
    let each: Vec<String> = all.iter().map(|Setting { field, value }| format!("{field}={value}")).collect();
    each.join(" ")
}

fn of_destination(f: &mut Formatter<'_>, to: &Destination) -> fmt::Result {
    let port = if to.port == 0 { String::new() } else { format!(" port {}", to.port) };
    let subset = match (to.subset.as_str(), to.labels.is_empty()) {
        ("", _) => String::new(),
        (subset, true) => format!(" subset {subset}"),
        (subset, false) => format!(" subset {subset} ({})", labels(&to.labels)),
    };
    writeln!(f, "to        {} %: {}{port}{subset}", percent(to.percent), to.host)?;
    if let Verdict::Refused { reason, .. } = &to.verdict
        && reason.starts_with("cluster_undefined")
    {
        return writeln!(f, "          undefined: {}", to.verdict);
    }
    let policy = if to.policy.is_empty() { "defaults: no DestinationRule sets a trafficPolicy" } else { &to.policy };
    writeln!(f, "          policy: {policy}")?;
    let localities = if to.locality.is_empty() { String::new() } else { format!("; localities: {}", to.locality) };
    writeln!(f, "          balancer: {}{localities}", to.balancer)?;
    if !to.limits.is_empty() {
        writeln!(f, "          limits: {}", settings(&to.limits))?;
    }
    if !to.outlier_detection.is_empty() {
        writeln!(f, "          outlier detection: {}", settings(&to.outlier_detection))?;
    }
    writeln!(f, "          TLS: {}", to.tls)?;
    for Setting { field, value } in &to.effects {
        writeln!(f, "          {field}: {value}")?;
    }
    let picked = to.hash.as_ref().and_then(|hash| hash.endpoint.as_deref());
    let is_picked = |endpoint: &Endpoint| picked == Some(&endpoint.address);
    let shown = to.endpoints.iter().enumerate().filter(|(at, one)| *at < MOST_ENDPOINTS || is_picked(one));
    for (_, endpoint) in shown {
        of_endpoint(f, endpoint, is_picked(endpoint))?;
    }
    if to.endpoints.len() > MOST_ENDPOINTS {
        writeln!(f, "          {} endpoints in all; --output json has them", to.endpoints.len())?;
    }
    if to.levels.len() > 1 {
        let each = to.levels.iter().map(|level| format!("{} % to level {}", level.percent, level.number));
        writeln!(f, "          {}", each.collect::<Vec<_>>().join(", "))?;
    }
    if let Some(Elsewhere { percent, datacenter, gateways, because }) = &to.elsewhere {
        let by = gateways.join(", ");
        writeln!(f, "          {percent} % to data centre {datacenter} through its gateway {by}: {because}")?;
    }
    if let Some(hash) = to.hash.as_ref().filter(|_| !to.endpoints.is_empty()) {
        writeln!(f, "          by {}: {}", hash.by, hash.endpoint.as_ref().unwrap_or(&hash.because))?;
    }
    match &to.verdict {
        Verdict::Served => Ok(()),
        verdict => writeln!(f, "          {verdict}"),
    }
}

fn of_endpoint(f: &mut Formatter<'_>, endpoint: &Endpoint, picked: bool) -> fmt::Result {
    let mark = if picked { "->" } else { "  " };
    let health = if endpoint.ejected { "ejected" } else { &endpoint.health };
    let level = match endpoint.level {
        Some(level) => format!("level {level}"),
        None if endpoint.fails_over => "used for fail-over".to_owned(),
        None => "not used".to_owned(),
    };
    let mut about = format!("{health}, {level}, weight {}, {}", endpoint.weight, endpoint.transport);
    for (name, value) in [
        ("accepts", &endpoint.accepts),
        ("workload", &endpoint.workload),
        ("locality", &endpoint.locality),
        ("labels", &labels(&endpoint.labels)),
        ("data centre", &endpoint.datacenter),
    ] {
        if !value.is_empty() {
            about += &format!(", {name} {value}");
        }
    }
    writeln!(f, "       {mark} {:<21} {about}", endpoint.address)
}

/// Without a fraction of zero.
fn percent(percent: f64) -> String {
    let rounded = (percent * 100.0).round() / 100.0;
    rounded.to_string()
}
