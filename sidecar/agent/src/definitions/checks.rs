//! Decoding of check definitions.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Uri};
use serde_json::Value;

use super::Fields;
use crate::checks::state::{MAX_OUTPUT, Status, Thresholds};
use crate::checks::target::Own;
use crate::checks::{Definition, Http, Kind, Place, Tls};

const MIN_INTERVAL: Duration = Duration::from_secs(1);
pub(super) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// The default timeout of a script check.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(30);
pub(super) const MIN_DEREGISTER: Duration = Duration::from_secs(60);

/// Decodes the body of `agent/check/register`.
///
/// # Errors
/// The message for status 400, in Consul's words.
pub fn check(body: &[u8], own: Own) -> Result<Definition, String> {
    let mut fields = Fields::of_body("the check", body)?;
    let mut definition = check_fields(&mut fields, own)?;
    definition.service_id = fields.text("serviceid")?;
    fields.finish();
    if definition.name.is_empty() {
        return Err("Missing check name".into());
    }
    if definition.id.is_empty() {
        definition.id.clone_from(&definition.name);
    }
    Ok(definition)
}

/// The HTTP check of the service on the command line.
///
/// # Errors
/// If the path is invalid.
pub fn health_path(
    service_id: &str,
    service: &str,
    port: u16,
    path: &str,
    interval: Duration,
) -> Result<Definition, String> {
    let url = format!("http://localhost:{port}/{}", path.trim_start_matches('/'));
    Ok(Definition {
        id: format!("service:{service_id}"),
        name: format!("Service '{service}' check"),
        notes: String::new(),
        service_id: service_id.to_owned(),
        kind: Kind::Http(Http {
            url: http_url(&url, Own::Pod)?,
            method: Method::GET,
            headers: Vec::new(),
            body: Bytes::new(),
            disable_redirects: false,
            tls: Tls::default(),
        }),
        interval: interval.max(MIN_INTERVAL),
        timeout: DEFAULT_TIMEOUT,
        initial: Status::Critical,
        thresholds: Thresholds::default(),
        max_output: MAX_OUTPUT,
        deregister_after: None,
    })
}

/// The check that takes a service out of use; an empty id stands for all services of the agent.
pub fn maintenance(service_id: &str, notes: &str) -> Definition {
    Definition {
        id: maintenance_id(service_id),
        // Spring Cloud looks a service's maintenance check up by this name.
        name: if service_id.is_empty() { "Node Maintenance Mode" } else { "Service Maintenance Mode" }.into(),
        notes: notes.into(),
        service_id: service_id.to_owned(),
        kind: Kind::Maintenance,
        interval: Duration::ZERO,
        timeout: Duration::ZERO,
        initial: Status::Critical,
        thresholds: Thresholds::default(),
        max_output: MAX_OUTPUT,
        deregister_after: None,
    }
}

/// Consul's id of the maintenance check.
pub fn maintenance_id(service_id: &str) -> String {
    if service_id.is_empty() { "_node_maintenance".into() } else { format!("_service_maintenance:{service_id}") }
}

/// Kinds of checks that Consul supports and this agent does not, by their field.
const UNSUPPORTED: [(&str, &str); 3] = [
    ("dockercontainerid", "a docker check is not supported: the sidecar has no Docker client"),
    ("script", "Script is not supported, as in Consul since 1.1: give the program and its arguments in Args"),
    ("osservice", "an OSService check is not supported"),
];

pub(super) fn check_fields(fields: &mut Fields, own: Own) -> Result<Definition, String> {
    for (field, refusal) in UNSUPPORTED {
        if fields.means(field) {
            return Err(format!("Invalid check: {refusal}"));
        }
    }
    // Fields of other kinds are ignored.
    for field in ["shell", "namespace"] {
        fields.means(field);
    }
    let status = fields.text("status")?;
    let initial = match status.as_str() {
        "" => Status::Critical,
        word => Status::parse(word).ok_or("Status for checks must 'passing', 'warning', 'critical'")?,
    };
    let interval = fields.duration("interval")?;
    let timeout = fields.duration("timeout")?;
    let ttl = fields.duration("ttl")?;
    let kind = kind(fields, ttl, own)?;
    match kind {
        Kind::Ttl(_) if !interval.is_zero() => {
            return Err("Invalid check: Interval and TTL cannot both be specified".into());
        }
        Kind::Ttl(_) | Kind::Maintenance | Kind::Alias(_) => {}
        _ if interval.is_zero() => {
            return Err("Invalid check: Interval must be > 0 for HTTP, H2PING, TCP, UDP or gRPC checks".into());
        }
        _ => {}
    }
    let passing = fields.number("successbeforepassing")?;
    let critical = fields.number("failuresbeforecritical")?;
    let warning = match fields.number("failuresbeforewarning")? {
        0 => critical,
        n if n > critical => {
            return Err("Invalid check: FailuresBeforeWarning can't be higher than FailuresBeforeCritical".into());
        }
        n => n,
    };
    let deregister = fields.duration("deregistercriticalserviceafter")?;
    let max_output = match fields.number("outputmaxsize")? as usize {
        0 => MAX_OUTPUT,
        n => n.min(MAX_OUTPUT),
    };
    let default_timeout = if matches!(kind, Kind::Script(_)) { SCRIPT_TIMEOUT } else { DEFAULT_TIMEOUT };
    let id = fields.text("checkid")?;
    let other_id = fields.text("id")?;
    Ok(Definition {
        id: if id.is_empty() { other_id } else { id },
        name: fields.text("name")?,
        notes: fields.text("notes")?,
        service_id: String::new(),
        kind,
        interval: if interval.is_zero() { interval } else { interval.max(MIN_INTERVAL) },
        timeout: if timeout.is_zero() { default_timeout } else { timeout },
        initial,
        thresholds: Thresholds { passing, warning, critical },
        max_output,
        deregister_after: (!deregister.is_zero()).then(|| deregister.max(MIN_DEREGISTER)),
    })
}

fn kind(fields: &mut Fields, ttl: Duration, own: Own) -> Result<Kind, String> {
    let url = fields.text("http")?;
    let method = fields.text("method")?;
    let headers = headers(fields)?;
    let body = fields.text("body")?;
    let disable_redirects = fields.flag("disableredirects")?;
    let (tcp, udp) = (fields.text("tcp")?, fields.text("udp")?);
    let (grpc, h2ping) = (fields.text("grpc")?, fields.text("h2ping")?);
    let tls = Tls { server_name: fields.text("tlsservername")?, skip_verify: fields.flag("tlsskipverify")? };
    let tcp_tls = fields.flag("tcpusetls")?.then(|| tls.clone());
    let grpc_tls = fields.flag("grpcusetls")?.then(|| tls.clone());
    // The only kind that uses TLS by default.
    let ping_tls = fields.flag_or("h2pingusetls", true)?.then(|| tls.clone());
    let (alias, node) = (fields.text("aliasservice")?, fields.text("aliasnode")?);
    if !node.is_empty() {
        return Err("Invalid check: an alias of another node is not supported, only of a service of this agent".into());
    }
    let mut args = fields.texts("args")?;
    args.extend(fields.texts("scriptargs")?);
    let given = [&url, &tcp, &udp, &grpc, &h2ping, &alias].map(|text| !text.is_empty());
    let others = usize::from(!ttl.is_zero()) + usize::from(!args.is_empty());
    if given.into_iter().filter(|given| *given).count() + others > 1 {
        let text = "Invalid check: only one of HTTP, TCP, UDP, gRPC, H2PING, script, alias and TTL can be specified";
        return Err(text.into());
    }
    if !args.is_empty() {
        return Ok(Kind::Script(args));
    }
    if !url.is_empty() {
        let method = if method.is_empty() { "GET".to_owned() } else { method.to_ascii_uppercase() };
        let method = method.parse().map_err(|_| format!("Invalid check: {method:?} is not an HTTP method"))?;
        let body = Bytes::from(body);
        return Ok(Kind::Http(Http { url: http_url(&url, own)?, method, headers, body, disable_redirects, tls }));
    }
    if !tcp.is_empty() {
        return Ok(Kind::Tcp(place(&tcp, tcp_tls, own)?));
    }
    if !udp.is_empty() {
        return Ok(Kind::Udp(place(&udp, None, own)?));
    }
    if !grpc.is_empty() {
        // The name of a service may follow.
        let (at, service) = grpc.split_once('/').unwrap_or((&grpc, ""));
        return Ok(Kind::Grpc(place(at, grpc_tls, own)?, service.to_owned()));
    }
    if !h2ping.is_empty() {
        return Ok(Kind::Http2Ping(place(&h2ping, ping_tls, own)?));
    }
    if !alias.is_empty() {
        return Ok(Kind::Alias(alias));
    }
    if ttl.is_zero() {
        return Err("Invalid check: TTL must be > 0 for TTL checks".into());
    }
    Ok(Kind::Ttl(ttl))
}

fn place(text: &str, tls: Option<Tls>, own: Own) -> Result<Place, String> {
    let split = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let (host, port) = split.ok_or_else(|| format!("Invalid check: {text:?} is not host:port"))?;
    check_address(host, own)?;
    Ok(Place { host: host.to_owned(), port, tls })
}

fn headers(fields: &mut Fields) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let mut headers = Vec::new();
    for (name, values) in fields.map("header")? {
        let values = match values {
            Value::Array(values) => values,
            Value::Null => Vec::new(),
            one => vec![one],
        };
        for value in values {
            let pair = value.as_str().and_then(|v| Some((name.parse().ok()?, v.parse().ok()?)));
            headers.push(pair.ok_or_else(|| format!("Invalid check: the header {name:?} with {value} is invalid"))?);
        }
    }
    Ok(headers)
}

fn http_url(text: &str, own: Own) -> Result<Uri, String> {
    let url: Uri = text.parse().map_err(|_| format!("Invalid check: {text:?} is not a URL"))?;
    match url.scheme_str() {
        Some("http" | "https") => {}
        _ => return Err(format!("Invalid check: {text:?} is not a URL that begins with http:// or https://")),
    }
    check_address(url.host().unwrap_or_default(), own)?;
    Ok(url)
}

fn check_address(host: &str, own: Own) -> Result<(), String> {
    if own.allowed(host) {
        return Ok(());
    }
    Err(format!("Invalid check: {host} is not an address of {own}; checks go to localhost or its own address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_check_is_decoded() {
        let kind =
            |body: &str| check(format!(r#"{{"name":"c","interval":"1s",{body}}}"#).as_bytes(), Own::Pod).unwrap().kind;
        let place = |tls| Place { host: "localhost".into(), port: 1, tls };
        let verified = Tls::default();
        let any = Tls { server_name: "order".into(), skip_verify: true };
        for (body, expected) in [
            (r#""tcp":"localhost:1""#, Kind::Tcp(place(None))),
            (r#""TCP":"localhost:1","TCPUseTLS":true"#, Kind::Tcp(place(Some(verified.clone())))),
            (r#""udp":"localhost:1""#, Kind::Udp(place(None))),
            (r#""GRPC":"localhost:1/a.B""#, Kind::Grpc(place(None), "a.B".into())),
            (
                r#""grpc":"localhost:1","grpc_use_tls":true,"tls_server_name":"order","TLSSkipVerify":true"#,
                Kind::Grpc(place(Some(any)), String::new()),
            ),
            (r#""H2Ping":"localhost:1""#, Kind::Http2Ping(place(Some(verified)))),
            (r#""h2ping":"localhost:1","h2ping_use_tls":false"#, Kind::Http2Ping(place(None))),
            (r#""AliasService":"web-1""#, Kind::Alias("web-1".into())),
            (r#""Args":["a","-b"]"#, Kind::Script(vec!["a".into(), "-b".into()])),
        ] {
            assert_eq!(kind(body), expected, "{body}");
        }
        assert!(
            matches!(kind(r#""http":"https://localhost:1/","tlsskipverify":true"#), Kind::Http(h) if h.tls.skip_verify)
        );
        let limited = check(br#"{"name":"c","ttl":"1s","OutputMaxSize":10}"#, Own::Pod).unwrap();
        assert_eq!(limited.max_output, 10);
    }
}
