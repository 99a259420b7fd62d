//! The mesh's configuration of injection, as YAML or JSON.

pub(crate) mod quantity;
mod selector;

use serde::Deserialize;
use serde_json::Value;
use weft_policy::yaml;

use selector::Selector;

/// The configuration. Annotations of a pod take precedence where there is one for the setting.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// The image with Weft's programs.
    pub image: String,
    /// `imagePullPolicy` of the containers; empty: Kubernetes' default.
    pub image_pull_policy: String,
    /// Names of Secrets that are added to the pod's `imagePullSecrets`.
    pub image_pull_secrets: Vec<String>,
    /// The revision that this configuration is for. `default` serves namespaces that are labelled as enabled.
    pub revision: String,
    /// The namespace of the control plane. Its pods are never injected.
    pub namespace: String,
    /// host:port of the control plane; empty: its Service in `namespace`.
    pub control_plane: String,
    /// Whether Istio's labels for injection are understood beside Weft's.
    pub istio_labels: bool,
    /// Whether a pod that no label decides about is injected.
    pub enabled_by_default: bool,
    /// Pods that are not injected, unless a label of theirs says otherwise.
    pub never_inject_selector: Vec<Selector>,
    /// Pods that are injected, unless a label of theirs or `neverInjectSelector` says otherwise.
    pub always_inject_selector: Vec<Selector>,
    /// Native sidecars (Kubernetes 1.29 or later).
    pub native_sidecar: bool,
    /// Without native sidecars: the application's containers start when the proxy is ready.
    pub hold_application_until_proxy_starts: bool,
    /// Resources of the proxy and of the init container.
    pub resources: Resources,
    /// The proxy's user and group.
    pub proxy_uid: u32,
    /// The proxy's log level.
    pub log_level: String,
    /// Whether the kubelet's probes are sent through the proxy.
    pub rewrite_app_probes: bool,
    /// Whether Prometheus is sent to the proxy, which adds the application's metrics.
    pub merge_prometheus: bool,
    /// The proxy's readiness probe.
    pub readiness: Readiness,
    /// The only destinations that are captured; `*`: all; empty: none.
    #[serde(rename = "includeIPRanges")]
    pub include_ip_ranges: String,
    /// Destinations that are excluded.
    #[serde(rename = "excludeIPRanges")]
    pub exclude_ip_ranges: String,
    /// Inbound ports that are captured; `*`: all; empty: none.
    pub include_inbound_ports: String,
    /// Inbound ports that are excluded.
    pub exclude_inbound_ports: String,
    /// Outbound ports that are excluded.
    pub exclude_outbound_ports: String,
}

/// Requests and limits, in Kubernetes' quantities; an empty one is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Resources {
    /// What the node keeps free.
    pub requests: Amounts,
    /// What the container may use.
    pub limits: Amounts,
}

/// Amounts of the two resources.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Amounts {
    /// `500m`.
    pub cpu: String,
    /// `64Mi`.
    pub memory: String,
}

/// Timing of the readiness probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Readiness {
    /// Before the first probe.
    pub initial_delay_seconds: u32,
    /// Between probes.
    pub period_seconds: u32,
    /// Failures after which the pod is not ready.
    pub failure_threshold: u32,
}

impl Default for Readiness {
    fn default() -> Self {
        Self { initial_delay_seconds: 0, period_seconds: 15, failure_threshold: 4 }
    }
}

impl Default for Config {
    fn default() -> Self {
        let amounts = |cpu: &str, memory: &str| Amounts { cpu: cpu.to_owned(), memory: memory.to_owned() };
        Self {
            image: "weft".to_owned(),
            image_pull_policy: String::new(),
            image_pull_secrets: Vec::new(),
            revision: DEFAULT_REVISION.to_owned(),
            namespace: weft_policy::ROOT_NAMESPACE.to_owned(),
            control_plane: String::new(),
            istio_labels: true,
            enabled_by_default: true,
            never_inject_selector: Vec::new(),
            always_inject_selector: Vec::new(),
            native_sidecar: true,
            hold_application_until_proxy_starts: true,
            resources: Resources { requests: amounts("50m", "64Mi"), limits: amounts("2", "512Mi") },
            proxy_uid: 1337,
            log_level: "info".to_owned(),
            rewrite_app_probes: true,
            merge_prometheus: true,
            readiness: Readiness::default(),
            include_ip_ranges: "*".to_owned(),
            exclude_ip_ranges: String::new(),
            include_inbound_ports: "*".to_owned(),
            exclude_inbound_ports: String::new(),
            exclude_outbound_ports: String::new(),
        }
    }
}

/// The revision that serves namespaces without one.
pub const DEFAULT_REVISION: &str = "default";

impl Config {
    /// Reads a configuration from YAML or JSON; an empty text is the default.
    ///
    /// # Errors
    /// If the text is not YAML, or a field is unknown or has an invalid value.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (documents, errors) = yaml::parse(text);
        if let Some(error) = errors.first() {
            return Err(format!("line {}: {}", error.place.line, error.text));
        }
        let root = documents.first().map_or(Value::Null, |document| document.root.to_json());
        let root = if root.is_null() { Value::Object(serde_json::Map::new()) } else { root };
        let config: Self = serde_json::from_value(root).map_err(|error| error.to_string())?;
        config.check()?;
        Ok(config)
    }

    /// Checks the values.
    ///
    /// # Errors
    /// If one is invalid.
    pub fn check(&self) -> Result<(), String> {
        for (field, value) in [("image", &self.image), ("revision", &self.revision), ("namespace", &self.namespace)] {
            if value.is_empty() {
                return Err(format!("`{field}` must not be empty"));
            }
        }
        if self.proxy_uid == 0 {
            return Err("`proxyUid` must not be 0: the proxy runs without root's rights".to_owned());
        }
        for (group, amounts) in [("requests", &self.resources.requests), ("limits", &self.resources.limits)] {
            for (name, value) in [("cpu", &amounts.cpu), ("memory", &amounts.memory)] {
                if !value.is_empty() && !quantity::is_valid(value) {
                    return Err(format!(
                        "`resources.{group}.{name}`: \"{value}\" is not a quantity such as 500m or 64Mi"
                    ));
                }
            }
        }
        Ok(())
    }

    /// host:port of the control plane.
    pub fn control_plane(&self) -> String {
        match &*self.control_plane {
            "" => format!("weft-control-plane.{}.svc:15012", self.namespace),
            given => given.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_yaml_with_known_fields() {
        assert_eq!(Config::parse(""), Ok(Config::default()));
        let config = Config::parse(
            "image: registry/weft:1\nexcludeIPRanges: 10.0.0.0/8\nresources: {limits: {memory: 1Gi}}\n\
             neverInjectSelector: [{matchLabels: {app: batch}}]\nreadiness: {periodSeconds: 2}\n",
        )
        .unwrap();
        assert_eq!((&*config.image, &*config.exclude_ip_ranges), ("registry/weft:1", "10.0.0.0/8"));
        assert_eq!((&*config.resources.limits.memory, config.resources.requests.cpu.is_empty()), ("1Gi", true));
        assert_eq!((config.readiness.period_seconds, config.readiness.failure_threshold), (2, 4));
        assert_eq!(config.control_plane(), "weft-control-plane.weft-system.svc:15012");
        for (text, expected) in [
            ("imgae: a", "unknown field `imgae`"),
            ("image: ''", "`image` must not be empty"),
            ("proxyUid: 0", "`proxyUid` must not be 0"),
            ("resources: {limits: {cpu: lots}}", "`resources.limits.cpu`: \"lots\" is not a quantity"),
            ("a: [", "line"),
        ] {
            let error = Config::parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
