//! The settings of one pod's sidecar: the configuration of the mesh with the pod's annotations.
//!
//! A malformed annotation is an error that refuses the pod: a pod that starts with other ports captured than its author
//! wrote is worse than one that does not start.

pub(crate) mod annotations;

use serde_json::{Map, Value};
use weft_policy::{Subnet, duration_ms, yaml};

use crate::config::{Amounts, Config, Readiness, Resources, quantity};
use crate::decide;

/// Errors and warnings about a pod.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// They refuse the pod.
    pub(crate) errors: Vec<String>,
    /// The pod is admitted.
    pub(crate) warnings: Vec<String>,
}

/// The settings of a pod's sidecar.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) image: String,
    pub(crate) resources: Resources,
    pub(crate) log_level: String,
    pub(crate) native: bool,
    pub(crate) hold: bool,
    pub(crate) init_last: bool,
    /// Worker threads; `None`: the proxy's default.
    pub(crate) workers: Option<u32>,
    /// Seconds for which the proxy serves at least after SIGTERM; `None`: the mesh's.
    pub(crate) drain_min_s: Option<u64>,
    pub(crate) rewrite_probes: bool,
    pub(crate) merge_prometheus: bool,
    pub(crate) readiness: Readiness,
    /// Whether other sidecars may call the pod by mutual TLS.
    pub(crate) captures_inbound: bool,
    /// Options of `redirect install`; `None`: nothing is captured.
    pub(crate) capture: Option<Vec<String>>,
    pub(crate) volumes: Vec<Value>,
    pub(crate) mounts: Vec<Value>,
}

impl Settings {
    /// The settings of a pod.
    pub(crate) fn of(config: &Config, pod: &Value, report: &mut Report) -> Self {
        let mut reader = Reader { pod, report };
        reader.templates();
        let proxy_config = reader.proxy_config();
        let resources = reader.resources(&config.resources);
        let init_order = reader.one_of("weft.dev/init-order", &["first", "last"]);
        let native = reader.flag("sidecar.istio.io/nativeSidecar").unwrap_or(config.native_sidecar);
        if !native && init_order == Some("first") {
            reader.error(
                "weft.dev/init-order",
                "first needs native sidecars: in others the init containers that follow would have no network; \
                 remove it, or set sidecar.istio.io/nativeSidecar: \"true\" on Kubernetes 1.29 or later",
            );
        }
        let hold = proxy_config.hold.unwrap_or(config.hold_application_until_proxy_starts);
        let image = reader.text("sidecar.istio.io/proxyImage").unwrap_or(&config.image).to_owned();
        if image.is_empty() {
            reader.error("sidecar.istio.io/proxyImage", "is empty; write the name of an image, or remove it");
        }
        let capture = reader.capture(config);
        Self {
            image,
            workers: proxy_config.workers.or_else(|| quantity::processors(&resources.limits.cpu)),
            resources,
            log_level: reader.log_level().unwrap_or(&config.log_level).to_owned(),
            native,
            hold,
            init_last: !native || init_order == Some("last"),
            drain_min_s: proxy_config.drain_min_s,
            rewrite_probes: reader.flag("sidecar.istio.io/rewriteAppHTTPProbers").unwrap_or(config.rewrite_app_probes),
            merge_prometheus: reader.flag("prometheus.istio.io/merge-metrics").unwrap_or(config.merge_prometheus),
            readiness: reader.readiness(config.readiness),
            captures_inbound: capture
                .as_ref()
                .is_some_and(|options| !options.windows(2).any(|pair| pair == NO_INBOUND)),
            capture,
            volumes: reader.objects_by_name("sidecar.istio.io/userVolume"),
            mounts: reader.objects_by_name("sidecar.istio.io/userVolumeMount"),
        }
    }
}

const EVERY_PORT: &str = "1-65535";
/// Options of `redirect install` that capture nothing inbound.
const NO_INBOUND: [&str; 2] = ["--exclude-inbound-ports", EVERY_PORT];

/// The fields of `proxy.istio.io/config` that are read.
#[derive(Debug, Default)]
struct ProxyConfig {
    hold: Option<bool>,
    workers: Option<u32>,
    drain_min_s: Option<u64>,
}

struct Reader<'a> {
    pod: &'a Value,
    report: &'a mut Report,
}

impl<'a> Reader<'a> {
    fn text(&self, name: &str) -> Option<&'a str> {
        decide::text(self.pod, "annotations", name)
    }

    fn error(&mut self, name: &str, text: &str) {
        let value = self.text(name).unwrap_or_default();
        let short: String = value.chars().take(100).collect();
        self.report.errors.push(format!("annotation {name}: \"{short}\": {text}"));
    }

    fn flag(&mut self, name: &str) -> Option<bool> {
        match self.text(name)? {
            "true" => Some(true),
            "false" => Some(false),
            _ => {
                self.error(name, "must be \"true\" or \"false\"");
                None
            }
        }
    }

    fn one_of(&mut self, name: &str, values: &[&'static str]) -> Option<&'static str> {
        let given = self.text(name)?;
        let known = values.iter().find(|value| **value == given).copied();
        if known.is_none() {
            self.error(name, &format!("must be one of {}", values.join(", ")));
        }
        known
    }

    fn templates(&mut self) {
        let name = "inject.istio.io/templates";
        if self.text(name).is_some_and(|given| given.split(',').any(|one| one.trim() != "sidecar")) {
            self.error(
                name,
                "only the template sidecar exists; a gateway is a Deployment of its own, see docs/install/gateway.md",
            );
        }
    }

    fn log_level(&mut self) -> Option<&'static str> {
        const LEVELS: [&str; 8] = ["trace", "debug", "info", "warning", "warn", "error", "critical", "off"];
        Some(match self.one_of("sidecar.istio.io/logLevel", &LEVELS)? {
            "warning" => "warn",
            "critical" => "error",
            level => level,
        })
    }

    fn readiness(&mut self, default: Readiness) -> Readiness {
        let mut seconds = |name: &str, least: u32, default: u32| {
            let name = format!("readiness.status.sidecar.istio.io/{name}");
            let Some(given) = self.text(&name) else { return default };
            let number = given.parse().ok().filter(|number| (least..=86_400).contains(number));
            if number.is_none() {
                self.error(&name, &format!("must be a number from {least} to 86400"));
            }
            number.unwrap_or(default)
        };
        Readiness {
            initial_delay_seconds: seconds("initialDelaySeconds", 0, default.initial_delay_seconds),
            period_seconds: seconds("periodSeconds", 1, default.period_seconds),
            failure_threshold: seconds("failureThreshold", 1, default.failure_threshold),
        }
    }

    /// One annotation of these replaces all defaults, as in Istio: a default limit may be below a request.
    fn resources(&mut self, default: &Resources) -> Resources {
        let mut given = false;
        let mut amount = |name: &str| {
            let name = format!("sidecar.istio.io/{name}");
            let Some(value) = self.text(&name) else { return String::new() };
            given = true;
            if !quantity::is_valid(value) {
                self.error(&name, "must be a quantity such as 500m or 64Mi");
            }
            value.to_owned()
        };
        let resources = Resources {
            requests: Amounts { cpu: amount("proxyCPU"), memory: amount("proxyMemory") },
            limits: Amounts { cpu: amount("proxyCPULimit"), memory: amount("proxyMemoryLimit") },
        };
        if given { resources } else { default.clone() }
    }

    fn capture(&mut self, config: &Config) -> Option<Vec<String>> {
        let mode = self.one_of("sidecar.istio.io/interceptionMode", &["REDIRECT", "TPROXY", "NONE"]);
        if mode == Some("TPROXY") {
            let text = "annotation sidecar.istio.io/interceptionMode: TPROXY is not built; REDIRECT is used, and the \
                        application sees the proxy's address as its client's";
            self.report.warnings.push(text.to_owned());
        }
        let traffic = "traffic.sidecar.istio.io/";
        let mut list = |name: &str, default: &str, check: fn(&str) -> bool, form: &str| {
            let name = format!("{traffic}{name}");
            let text = self.text(&name).unwrap_or(default).to_owned();
            let items: Vec<String> =
                text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect();
            if let Some(wrong) = items.iter().find(|item| *item != "*" && !check(item)) {
                self.error(&name, &format!("\"{wrong}\" is not {form}"));
            }
            items
        };
        let (ports, ranges) =
            ("a port or a range of ports; write 80,9000-9010", "an IP range; write 10.0.0.0/8,192.168.0.0/16");
        let include_ranges = list("includeOutboundIPRanges", &config.include_ip_ranges, is_range, ranges);
        let exclude_ranges = list("excludeOutboundIPRanges", &config.exclude_ip_ranges, is_range, ranges);
        let include_ports = list("includeInboundPorts", &config.include_inbound_ports, is_ports, ports);
        let exclude_ports = list("excludeInboundPorts", &config.exclude_inbound_ports, is_ports, ports);
        let exclude_outbound = list("excludeOutboundPorts", &config.exclude_outbound_ports, is_ports, ports);
        let all = |items: &[String]| items.iter().any(|item| item == "*");
        let mut options = Vec::new();
        let mut option = |name: &str, items: &[String]| {
            if !items.is_empty() {
                options.extend([name.to_owned(), items.join(",")]);
            }
        };
        let every_port = [EVERY_PORT.to_owned()];
        let every_range = ["0.0.0.0/0".to_owned(), "::/0".to_owned()];
        if include_ports.is_empty() || all(&exclude_ports) {
            option("--exclude-inbound-ports", &every_port);
        } else {
            option("--inbound-ports", if all(&include_ports) { &[] } else { &include_ports });
            option("--exclude-inbound-ports", &exclude_ports);
        }
        option("--exclude-outbound-ports", if all(&exclude_outbound) { &every_port } else { &exclude_outbound });
        if include_ranges.is_empty() || all(&exclude_ranges) {
            option("--exclude-outbound-ranges", &every_range);
        } else {
            option("--include-outbound-ranges", if all(&include_ranges) { &[] } else { &include_ranges });
            option("--exclude-outbound-ranges", &exclude_ranges);
        }
        (mode != Some("NONE")).then_some(options)
    }

    /// A JSON object whose keys are the names of its values.
    fn objects_by_name(&mut self, name: &str) -> Vec<Value> {
        let Some(text) = self.text(name) else { return Vec::new() };
        let items: Option<Map<String, Value>> = serde_json::from_str(text).ok();
        let Some(items) = items.filter(|items| items.values().all(Value::is_object)) else {
            self.error(name, "must be a JSON object of objects, {\"NAME\": {...}}");
            return Vec::new();
        };
        let objects = items.into_iter().map(|(name, mut value)| {
            value["name"] = name.into();
            value
        });
        objects.collect()
    }

    fn proxy_config(&mut self) -> ProxyConfig {
        let name = "proxy.istio.io/config";
        let mut config = ProxyConfig::default();
        let Some(text) = self.text(name) else { return config };
        let (documents, errors) = yaml::parse(text);
        if let Some(error) = errors.first() {
            self.error(name, &format!("line {}: {}", error.place.line, error.text));
            return config;
        }
        let root = documents.first().map(|document| &document.root);
        let fields = match root.map(|root| &root.value) {
            None | Some(yaml::Value::Null) => return config,
            Some(yaml::Value::Map(fields)) => fields,
            Some(_) => {
                self.error(name, "must be a map of ProxyConfig's fields");
                return config;
            }
        };
        for (key, value) in fields {
            let form = match &*key.name {
                "holdApplicationUntilProxyStarts" => {
                    config.hold = value.as_bool();
                    config.hold.is_none().then_some("must be true or false")
                }
                "concurrency" => {
                    let number = value.as_i64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n <= 1024);
                    // 0 is all processors in Istio; a proxy does not take a node for itself.
                    config.workers = number.filter(|n| *n > 0);
                    number.is_none().then_some("must be a number from 0 to 1024")
                }
                "terminationDrainDuration" => {
                    config.drain_min_s =
                        value.as_str().and_then(|text| duration_ms(text).ok()).map(|ms| ms.div_ceil(1000));
                    config.drain_min_s.is_none().then_some("must be a duration such as 5s")
                }
                other => {
                    self.report.warnings.push(format!("annotation {name}: `{other}` has no effect on a pod"));
                    None
                }
            };
            if let Some(form) = form {
                self.error(name, &format!("`{}` {form}", key.name));
            }
        }
        config
    }
}

fn is_ports(text: &str) -> bool {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    match text.split_once('-') {
        None => port(text).is_some(),
        Some((from, to)) => matches!((port(from), port(to)), (Some(from), Some(to)) if from <= to),
    }
}

fn is_range(text: &str) -> bool {
    Subnet::parse(text).is_some()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(annotations: Value) -> (Settings, Report) {
        let mut report = Report::default();
        let settings =
            Settings::of(&Config::default(), &json!({ "metadata": { "annotations": annotations } }), &mut report);
        (settings, report)
    }

    #[test]
    fn malformed_annotations_are_errors_with_a_remedy() {
        for (name, value, expected) in [
            ("traffic.sidecar.istio.io/excludeInboundPorts", "80,x", "\"x\" is not a port or a range of ports; write"),
            ("traffic.sidecar.istio.io/includeInboundPorts", "0", "\"0\" is not a port"),
            ("traffic.sidecar.istio.io/excludeOutboundPorts", "90-80", "\"90-80\" is not a port"),
            ("traffic.sidecar.istio.io/includeOutboundIPRanges", "10.0.0.0/40", "is not an IP range; write"),
            ("sidecar.istio.io/interceptionMode", "redirect", "must be one of REDIRECT, TPROXY, NONE"),
            ("sidecar.istio.io/proxyCPU", "lots", "must be a quantity"),
            ("sidecar.istio.io/proxyMemoryLimit", "1 Gi", "must be a quantity"),
            ("sidecar.istio.io/logLevel", "loud", "must be one of trace"),
            ("sidecar.istio.io/nativeSidecar", "yes", "must be \"true\" or \"false\""),
            ("sidecar.istio.io/userVolume", "[]", "must be a JSON object of objects"),
            ("sidecar.istio.io/userVolumeMount", "{\"a\": 1}", "must be a JSON object of objects"),
            ("readiness.status.sidecar.istio.io/periodSeconds", "0", "must be a number from 1 to 86400"),
            ("proxy.istio.io/config", "concurrency: many", "`concurrency` must be a number from 0 to 1024"),
            ("proxy.istio.io/config", "terminationDrainDuration: 5", "`terminationDrainDuration` must be a duration"),
            ("proxy.istio.io/config", "- a", "must be a map"),
            ("proxy.istio.io/config", "a: [", "line 2"),
            ("prometheus.istio.io/merge-metrics", "1", "must be \"true\" or \"false\""),
            ("inject.istio.io/templates", "gateway", "only the template sidecar exists"),
            ("weft.dev/init-order", "middle", "must be one of first, last"),
            ("sidecar.istio.io/proxyImage", "", "is empty"),
        ] {
            let (_, report) = read(json!({ name: value }));
            assert_eq!(report.errors.len(), 1, "{name}: {:?}", report.errors);
            let prefix = format!("annotation {name}: \"");
            let error = &report.errors[0];
            assert!(error.starts_with(&prefix) && error.contains(value) && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_capture_follows_the_annotations() {
        let traffic = |name: &str, value: &str| (format!("traffic.sidecar.istio.io/{name}"), value.to_owned());
        for (given, expected) in [
            (vec![], ""),
            (vec![traffic("includeInboundPorts", "")], "--exclude-inbound-ports 1-65535"),
            (vec![traffic("includeInboundPorts", "80, 81")], "--inbound-ports 80,81"),
            (vec![traffic("excludeInboundPorts", "9000-9010")], "--exclude-inbound-ports 9000-9010"),
            (vec![traffic("excludeOutboundPorts", "3306")], "--exclude-outbound-ports 3306"),
            (vec![traffic("includeOutboundIPRanges", "")], "--exclude-outbound-ranges 0.0.0.0/0,::/0"),
            (vec![traffic("includeOutboundIPRanges", "10.0.0.0/8")], "--include-outbound-ranges 10.0.0.0/8"),
            (
                vec![
                    traffic("includeOutboundIPRanges", "*"),
                    traffic("excludeOutboundIPRanges", "10.1.0.0/16,fd00::/8"),
                ],
                "--exclude-outbound-ranges 10.1.0.0/16,fd00::/8",
            ),
        ] {
            let (settings, report) =
                read(given.iter().cloned().map(|(k, v)| (k, v.into())).collect::<Map<_, _>>().into());
            assert_eq!(settings.capture.unwrap().join(" "), expected, "{given:?}");
            assert!(report.errors.is_empty() && report.warnings.is_empty(), "{report:?}");
        }
        let (settings, _) = read(json!({ "sidecar.istio.io/interceptionMode": "NONE" }));
        assert_eq!(settings.capture, None);
        let (_, report) = read(json!({ "sidecar.istio.io/interceptionMode": "TPROXY" }));
        assert!(report.warnings[0].contains("REDIRECT is used"), "{report:?}");
    }

    #[test]
    fn a_resource_of_a_pod_replaces_all_defaults() {
        let (settings, _) = read(json!({ "sidecar.istio.io/proxyCPULimit": "2500m" }));
        assert_eq!((&*settings.resources.requests.memory, settings.workers), ("", Some(3)));
        let (settings, report) = read(json!({ "proxy.istio.io/config":
            "concurrency: 4\nterminationDrainDuration: 1500ms\nholdApplicationUntilProxyStarts: false\ntracing: {}\n" }));
        assert_eq!((settings.workers, settings.drain_min_s, settings.hold), (Some(4), Some(2), false));
        assert_eq!(report.warnings, ["annotation proxy.istio.io/config: `tracing` has no effect on a pod"]);
        assert_eq!(settings.resources, Config::default().resources);
    }
}
