//! From the bodies of registrations to what is registered: services and checks, with Consul's defaults and refusals.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Uri};
use serde_json::Value;
use weft_proto::v1::Instance;

use super::decode::Fields;
use crate::checks::state::{Status, Thresholds};
use crate::checks::{Definition, Http, Kind, target};

const MIN_INTERVAL: Duration = Duration::from_secs(1);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const MIN_DEREGISTER: Duration = Duration::from_secs(60);

/// A service to register.
#[derive(Debug, Clone)]
pub struct Service {
    /// As the mesh has it, but for its checks.
    pub instance: Instance,
    /// `Weights.Warning`; the mesh knows one weight only.
    pub warning_weight: u32,
    /// Shown as it was given.
    pub tagged_addresses: Value,
}

/// Reads the body of `agent/service/register`.
///
/// # Errors
/// Consul's words, for a 400.
pub fn service(body: &[u8]) -> Result<(Service, Vec<Definition>), String> {
    let mut fields = Fields::of_body("the service", body)?;
    let name = fields.text("name")?;
    if name.trim().is_empty() {
        return Err("Missing service name".into());
    }
    let mut id = fields.text("id")?;
    if id.is_empty() {
        id.clone_from(&name);
    }
    let address = fields.text("address")?;
    address_allowed(&address)?;
    let kind = fields.text("kind")?;
    if !kind.is_empty() && kind != "typical" {
        return Err(format!("Invalid service kind: {kind:?} is not supported yet"));
    }
    let weights = fields.object("weights", "Weights")?;
    let (mut passing, mut warning) = (1, 1);
    if let Some(mut weights) = weights {
        passing = weights.number("passing")?.max(1);
        warning = weights.number("warning")?;
        weights.finish();
    }
    let mut checks = Vec::new();
    checks.extend(fields.object("check", "Check")?.filter(|c| !c.is_empty()));
    checks.extend(fields.objects("checks", "Checks")?.into_iter().filter(|c| !c.is_empty()));
    let several = checks.len() > 1;
    let mut definitions = Vec::new();
    for (n, mut check) in checks.into_iter().enumerate() {
        let default = if several { format!("service:{id}:{}", n + 1) } else { format!("service:{id}") };
        let mut definition = check_fields(&mut check)?;
        check.finish();
        if definition.id.is_empty() {
            definition.id = default;
        }
        if definition.name.is_empty() {
            definition.name = format!("Service '{name}' check");
        }
        definition.service_id.clone_from(&id);
        definitions.push(definition);
    }
    let service = Service {
        instance: Instance {
            service_id: id,
            service: name,
            address,
            port: fields.number("port")?,
            tags: fields.texts("tags")?,
            meta: fields.text_map("meta")?.into_iter().collect(),
            weight: passing,
            checks: Vec::new(),
            enable_tag_override: fields.flag("enabletagoverride")?,
        },
        warning_weight: warning,
        tagged_addresses: Value::Object(fields.map("taggedaddresses")?.into_iter().collect()),
    };
    fields.finish();
    Ok((service, definitions))
}

fn address_allowed(address: &str) -> Result<(), String> {
    match address.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() => Err("Invalid service address".into()),
        Ok(ip) if !target::is_local(ip) => Err(format!(
            "Invalid service address: {ip} is not an address of this pod; leave it out to use the pod's own"
        )),
        Ok(_) => Ok(()),
        Err(_) if address.is_empty() => Ok(()),
        Err(_) => Err(format!("Invalid service address: {address:?} is not an IP address of this pod")),
    }
}

/// Reads the body of `agent/check/register`.
///
/// # Errors
/// Consul's words, for a 400.
pub fn check(body: &[u8]) -> Result<Definition, String> {
    let mut fields = Fields::of_body("the check", body)?;
    let mut definition = check_fields(&mut fields)?;
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

/// The check of a service that was given on the command line.
///
/// # Errors
/// When the path is none.
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
            url: http_url(&url)?,
            method: Method::GET,
            headers: Vec::new(),
            body: Bytes::new(),
            disable_redirects: false,
        }),
        interval: interval.max(MIN_INTERVAL),
        timeout: DEFAULT_TIMEOUT,
        initial: Status::Critical,
        thresholds: Thresholds::default(),
        deregister_after: None,
    })
}

/// The check by which a service is out of use.
pub fn maintenance(service_id: &str, notes: &str) -> Definition {
    Definition {
        id: maintenance_id(service_id),
        name: "Service Maintenance Mode".into(),
        notes: notes.into(),
        service_id: service_id.to_owned(),
        kind: Kind::Maintenance,
        interval: Duration::ZERO,
        timeout: Duration::ZERO,
        initial: Status::Critical,
        thresholds: Thresholds::default(),
        deregister_after: None,
    }
}

/// Its id, which is Consul's.
pub fn maintenance_id(service_id: &str) -> String {
    format!("_service_maintenance:{service_id}")
}

/// Kinds of check that Consul has and we do not, by the field that asks for them.
const UNSUPPORTED: [(&str, &str); 9] = [
    ("dockercontainerid", "docker"),
    ("script", "script"),
    ("args", "script"),
    ("scriptargs", "script"),
    ("grpc", "gRPC"),
    ("udp", "UDP"),
    ("h2ping", "H2PING"),
    ("aliasservice", "alias"),
    ("aliasnode", "alias"),
];

fn check_fields(fields: &mut Fields) -> Result<Definition, String> {
    for (field, kind) in UNSUPPORTED {
        if fields.means(field) {
            return Err(format!("Invalid check: a {kind} check is not supported yet"));
        }
    }
    // Of kinds that were not asked for, or that a later field makes void.
    for field in ["shell", "grpcusetls", "h2pingusetls", "tlsskipverify", "tlsservername", "outputmaxsize", "namespace"]
    {
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
    let kind = kind(fields, ttl)?;
    match kind {
        Kind::Ttl(_) if !interval.is_zero() => {
            return Err("Invalid check: Interval and TTL cannot both be specified".into());
        }
        Kind::Ttl(_) | Kind::Maintenance => {}
        _ if interval.is_zero() => return Err("Invalid check: Interval must be > 0 for HTTP or TCP checks".into()),
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
    let id = fields.text("checkid")?;
    let other_id = fields.text("id")?;
    Ok(Definition {
        id: if id.is_empty() { other_id } else { id },
        name: fields.text("name")?,
        notes: fields.text("notes")?,
        service_id: String::new(),
        kind,
        interval: if interval.is_zero() { interval } else { interval.max(MIN_INTERVAL) },
        timeout: if timeout.is_zero() { DEFAULT_TIMEOUT } else { timeout },
        initial,
        thresholds: Thresholds { passing, warning, critical },
        deregister_after: (!deregister.is_zero()).then(|| deregister.max(MIN_DEREGISTER)),
    })
}

fn kind(fields: &mut Fields, ttl: Duration) -> Result<Kind, String> {
    let url = fields.text("http")?;
    let method = fields.text("method")?;
    let headers = headers(fields)?;
    let body = fields.text("body")?;
    let disable_redirects = fields.flag("disableredirects")?;
    let tcp = fields.text("tcp")?;
    let tcp_tls = fields.means("tcpusetls");
    if [!url.is_empty(), !tcp.is_empty(), !ttl.is_zero()].into_iter().filter(|given| *given).count() > 1 {
        return Err("Invalid check: only one of HTTP, TCP and TTL can be specified".into());
    }
    if !url.is_empty() {
        let method = if method.is_empty() { "GET".to_owned() } else { method.to_ascii_uppercase() };
        let method = method.parse().map_err(|_| format!("Invalid check: {method:?} is not an HTTP method"))?;
        let body = Bytes::from(body);
        return Ok(Kind::Http(Http { url: http_url(&url)?, method, headers, body, disable_redirects }));
    }
    if !tcp.is_empty() {
        if tcp_tls {
            return Err("Invalid check: a TCP check with TLS is not supported yet".into());
        }
        let split = tcp.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
        let (host, port) = split.ok_or_else(|| format!("Invalid check: {tcp:?} is not host:port"))?;
        ours(host)?;
        return Ok(Kind::Tcp { host: host.to_owned(), port });
    }
    if ttl.is_zero() {
        return Err("Invalid check: TTL must be > 0 for TTL checks".into());
    }
    Ok(Kind::Ttl(ttl))
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
            headers.push(pair.ok_or_else(|| format!("Invalid check: the header {name:?} with {value} is none"))?);
        }
    }
    Ok(headers)
}

fn http_url(text: &str) -> Result<Uri, String> {
    let url: Uri = text.parse().map_err(|_| format!("Invalid check: {text:?} is not a URL"))?;
    match url.scheme_str() {
        Some("http") => {}
        Some("https") => return Err("Invalid check: an https:// check is not supported yet".into()),
        _ => return Err(format!("Invalid check: {text:?} is not a URL that begins with http://")),
    }
    ours(url.host().unwrap_or_default())?;
    Ok(url)
}

fn ours(host: &str) -> Result<(), String> {
    if target::allowed(host) {
        return Ok(());
    }
    Err(format!("Invalid check: {host} is not an address of this pod; checks go to localhost or the pod's own address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_as_each_client_writes_it() {
        let python = br#"{"name":"order-service","id":"order-1","port":8080,"tags":["v1"],
            "check":{"http":"http://localhost:8080/health","interval":"10s","timeout":"5s",
            "DeregisterCriticalServiceAfter":"10s"}}"#;
        let (service, checks) = service(python).unwrap();
        assert_eq!((service.instance.service_id.as_str(), service.instance.port), ("order-1", 8080));
        assert_eq!(checks[0].id, "service:order-1");
        assert_eq!(checks[0].name, "Service 'order-service' check");
        assert_eq!((checks[0].interval, checks[0].timeout), (Duration::from_secs(10), Duration::from_secs(5)));
        assert_eq!(checks[0].deregister_after, Some(MIN_DEREGISTER), "a minute at least");

        let consulate = br#"{"ID":null,"Name":"a","Script":null,"Check":{"TTL":"10s"},
            "Checks":[{"TCP":"127.0.0.1:1","Interval":1000000000,"CheckID":"mine","Status":"passing","Args":[]}]}"#;
        let (service, checks) = super::service(consulate).unwrap();
        assert_eq!(service.instance.service_id, "a", "the name");
        let ids: Vec<_> = checks.iter().map(|c| (c.id.as_str(), c.kind.as_str(), c.initial)).collect();
        assert_eq!(ids, [("service:a:1", "ttl", Status::Critical), ("mine", "tcp", Status::Passing)]);
        assert_eq!(checks[0].timeout, DEFAULT_TIMEOUT);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (body, words) in [
            (r#"{}"#, "Missing service name"),
            (r#"{"name":"a","address":"0.0.0.0"}"#, "Invalid service address"),
            (r#"{"name":"a","address":"192.0.2.1"}"#, "not an address of this pod"),
            (r#"{"name":"a","address":"web"}"#, "not an IP address"),
            (r#"{"name":"a","kind":"connect-proxy"}"#, "not supported yet"),
            (r#"{"name":"a","check":{"interval":"1s"}}"#, "TTL must be > 0"),
            (r#"{"name":"a","check":{"http":"http://localhost/"}}"#, "Interval must be > 0"),
            (r#"{"name":"a","check":{"http":"http://192.0.2.1/","interval":"1s"}}"#, "not an address of this pod"),
            (
                r#"{"name":"a","check":{"http":"https://localhost/","interval":"1s"}}"#,
                "https:// check is not supported",
            ),
            (r#"{"name":"a","check":{"tcp":"localhost","interval":"1s"}}"#, "not host:port"),
            (r#"{"name":"a","check":{"ttl":"1s","interval":"1s"}}"#, "cannot both"),
            (r#"{"name":"a","check":{"ttl":"1s","http":"http://localhost/","interval":"1s"}}"#, "only one of"),
            (r#"{"name":"a","check":{"ttl":"1s","status":"ok"}}"#, "Status for checks must 'passing'"),
            (r#"{"name":"a","check":{"args":["x"],"interval":"1s"}}"#, "a script check is not supported yet"),
            (r#"{"name":"a","check":{"grpc":"x:1","interval":"1s"}}"#, "a gRPC check is not supported yet"),
            (r#"{"name":"a","check":{"ttl":"1s","FailuresBeforeWarning":2}}"#, "can't be higher"),
        ] {
            let error = service(body.as_bytes()).unwrap_err();
            assert!(error.contains(words), "{body}: {error}");
        }
        assert_eq!(check(br#"{"ttl":"1s"}"#).unwrap_err(), "Missing check name");
        let found = check(br#"{"name":"db","ttl":"15s","service_id":"a"}"#).unwrap();
        assert_eq!((found.id.as_str(), found.service_id.as_str()), ("db", "a"));
    }
}
