//! `agent/host` and `agent/metrics`: data about the machine and the agent's process, in Consul's forms.
//!
//! The agent has no metrics of its own: those of the surrounding process (the sidecar) are available as OpenMetrics
//! text, which is returned unchanged or converted to Consul's JSON.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};
use weft_registry_api::error::ApiError;
use weft_registry_api::query::Query;
use weft_registry_api::reply::{self, Reply};

/// Returns all metrics as OpenMetrics text.
pub type Exposition = Arc<dyn Fn() -> String + Send + Sync>;

/// `agent/metrics`, also for Prometheus (`?format=prometheus`).
///
/// # Errors
/// If the format is another.
pub fn metrics(exposition: &Exposition, query: &Query) -> Result<Reply, ApiError> {
    match query.value("format").unwrap_or_default() {
        "" => Ok(reply::json(&to_json(&exposition(), SystemTime::now()), query)),
        "prometheus" => {
            let mut reply = reply::text(exposition());
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            reply::set(&mut reply, "content-type", kind);
            Ok(reply)
        }
        other => Err(ApiError::bad_request(format!("Invalid format {other:?}: use prometheus, or omit it for JSON"))),
    }
}

/// One sample of OpenMetrics text.
#[derive(Debug, PartialEq)]
struct Sample<'a> {
    name: &'a str,
    labels: Map<String, Value>,
    value: f64,
}

/// A time in Go's format.
fn timestamp(at: SystemTime) -> String {
    let at = time::OffsetDateTime::from(at);
    let (hour, minute, second) = at.to_hms();
    format!("{} {hour:02}:{minute:02}:{second:02} +0000 UTC", at.date())
}

/// Converts to Consul's JSON: gauges, counters, and histograms as samples.
fn to_json(text: &str, now: SystemTime) -> Value {
    let (mut gauges, mut counters, mut samples) = (Vec::new(), Vec::new(), Vec::new());
    let mut kind = "";
    // The sum of a histogram precedes its count.
    let mut sum = 0.0;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            kind = rest.rsplit(' ').next().unwrap_or_default();
            continue;
        }
        let Some(Sample { name, labels, value }) = sample(line) else { continue };
        let whole = |name: &str, count: f64, sum: f64, labels: Map<String, Value>| {
            let mean = if count > 0.0 { sum / count } else { 0.0 };
            json!({ "Name": name, "Count": count, "Sum": sum, "Mean": mean, "Labels": labels })
        };
        match kind {
            "counter" => counters.push(whole(name, value, value, labels)),
            "histogram" => {
                if name.ends_with("_sum") {
                    sum = value;
                } else if let Some(base) = name.strip_suffix("_count") {
                    samples.push(whole(base, value, sum, labels));
                }
            }
            _ => gauges.push(json!({ "Name": name, "Value": value, "Labels": labels })),
        }
    }
    json!({ "Timestamp": timestamp(now), "Gauges": gauges, "Points": [], "Counters": counters, "Samples": samples })
}

/// Parses `name{label="value"} 1`; `None`: a comment or an invalid line.
fn sample(line: &str) -> Option<Sample<'_>> {
    if line.starts_with('#') {
        return None;
    }
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Map::new(), rest),
    };
    let value = rest.split_ascii_whitespace().next()?.parse().ok().filter(|value: &f64| value.is_finite())?;
    Some(Sample { name, labels, value })
}

/// Parses labels after their opening brace, and returns the text after the closing one.
fn labels(mut rest: &str) -> Option<(Map<String, Value>, &str)> {
    let mut labels = Map::new();
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (name, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at + 1,
                (_, '\\') => value.push(match chars.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, other) => value.push(other),
            }
        };
        labels.insert(name.to_owned(), value.into());
        rest = &after[end..];
    }
}

/// `agent/host`: memory, processors and disk of the machine, as far as the system reports them.
pub fn host() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let uname = rustix::system::uname();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let uptime = seconds(&read("/proc/uptime"));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    json!({
        "Memory": memory(&read("/proc/meminfo")),
        "CPU": processors(&read("/proc/cpuinfo")),
        "Host": {
            "hostname": text(uname.nodename()),
            "uptime": uptime,
            "bootTime": now.saturating_sub(Duration::from_secs(uptime)).as_secs(),
            "os": text(uname.sysname()).to_lowercase(),
            "kernelVersion": text(uname.release()),
            "kernelArch": text(uname.machine()),
        },
        "Disk": disk(Path::new("/")),
        "CollectionTime": u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        "Errors": null,
    })
}

fn seconds(uptime: &str) -> u64 {
    uptime.split('.').next().and_then(|whole| whole.trim().parse().ok()).unwrap_or_default()
}

fn memory(meminfo: &str) -> Value {
    let of = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kilobytes = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        kilobytes.unwrap_or_default().saturating_mul(1024)
    };
    let (total, available, free) = (of("MemTotal"), of("MemAvailable"), of("MemFree"));
    let used = total.saturating_sub(available);
    json!({ "total": total, "available": available, "free": free, "used": used, "usedPercent": percent(used, total) })
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

fn processors(cpuinfo: &str) -> Value {
    let value = |block: &str, name: &str| {
        let line = block.lines().find_map(|line| line.split_once(':').filter(|(key, _)| key.trim() == name));
        line.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let blocks = cpuinfo.split("\n\n").filter(|block| block.lines().any(|line| line.starts_with("processor")));
    let one = |block: &str| {
        json!({
            "cpu": value(block, "processor").parse::<u64>().unwrap_or_default(),
            "vendorId": value(block, "vendor_id"),
            "modelName": value(block, "model name"),
            "mhz": value(block, "cpu MHz").parse::<f64>().unwrap_or_default(),
        })
    };
    Value::Array(blocks.map(one).collect())
}

fn disk(path: &Path) -> Value {
    let Ok(stat) = rustix::fs::statvfs(path) else { return Value::Null };
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    let (total, free) = (bytes(stat.f_blocks), bytes(stat.f_bavail));
    let used = total.saturating_sub(bytes(stat.f_bfree));
    let path = path.to_string_lossy();
    json!({ "path": path, "total": total, "free": free, "used": used, "usedPercent": percent(used, total) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# HELP istio_requests Requests.
# TYPE istio_requests counter
istio_requests_total{reporter="source",path="a \"b\" \\ c,d}"} 7
# TYPE weft_connections gauge
weft_connections 3
# TYPE istio_request_duration_milliseconds histogram
istio_request_duration_milliseconds_sum{a="1"} 30.0
istio_request_duration_milliseconds_count{a="1"} 4
istio_request_duration_milliseconds_bucket{le="+Inf",a="1"} 4
# EOF
"#;

    #[test]
    fn metrics_are_converted_to_consuls_json() {
        let json = to_json(TEXT, SystemTime::UNIX_EPOCH);
        assert_eq!(json["Timestamp"], "1970-01-01 00:00:00 +0000 UTC");
        let counter = &json["Counters"][0];
        assert_eq!((&counter["Name"], &counter["Count"]), (&json!("istio_requests_total"), &json!(7.0)));
        assert_eq!(counter["Labels"], json!({ "reporter": "source", "path": "a \"b\" \\ c,d}" }));
        assert_eq!(json["Gauges"], json!([{ "Name": "weft_connections", "Value": 3.0, "Labels": {} }]));
        let sample = &json["Samples"][0];
        assert_eq!((&sample["Count"], &sample["Sum"], &sample["Mean"]), (&json!(4.0), &json!(30.0), &json!(7.5)));
        assert_eq!(json["Samples"].as_array().unwrap().len(), 1);
        for strange in ["", "x", "x{", "x{a=\"b", "x{a=\"b\"}", "x NaN", "x{a=\"\\"] {
            assert_eq!(sample_of(strange), None, "{strange}");
        }
    }

    fn sample_of(line: &str) -> Option<Sample<'_>> {
        super::sample(line)
    }

    #[test]
    fn metrics_are_available_in_both_formats() {
        let exposition: Exposition = Arc::new(|| TEXT.to_owned());
        let of = |query: &str| metrics(&exposition, &Query::parse(query));
        let text = of("format=prometheus").unwrap();
        assert!(text.headers()["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
        assert_eq!(text.body(), TEXT.as_bytes());
        assert_eq!(of("").unwrap().headers()["content-type"], "application/json");
        assert_eq!(of("format=xml").unwrap_err().status, 400);
    }

    #[test]
    fn host_data_is_parsed_from_procfs() {
        let info = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    400 kB\n";
        let memory = memory(info);
        assert_eq!((&memory["total"], &memory["used"]), (&json!(1_024_000), &json!(614_400)));
        assert_eq!(memory["usedPercent"], 60.0);
        let cpus =
            processors("processor\t: 0\nmodel name\t: X 1\ncpu MHz\t: 2000.5\n\nprocessor\t: 1\n\nHardware: y\n");
        assert_eq!((cpus.as_array().unwrap().len(), &cpus[0]["mhz"]), (2, &json!(2000.5)));
        assert_eq!((seconds("12345.67 1.0"), seconds("")), (12345, 0));
        let host = host();
        assert_eq!(host["Host"]["os"], "linux");
        assert!(host["Memory"]["total"].as_u64().unwrap() > 0 && host["Disk"]["total"].as_u64().unwrap() > 0);
    }
}
