//! An instance in Eureka's format: every field that some client sends or reads.
//!
//! Numbers may arrive as numbers or strings, and ports as objects or bare; responses use the form that all clients
//! accept. The rules are those of Netflix's `InstanceInfo`, `LeaseInfo` and `ApplicationResource`.

mod fields;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::xml;
use fields::Fields;

/// Default renewal interval and lease duration of Eureka's clients, in seconds.
const RENEWAL_S: u32 = 30;
const DURATION_S: u32 = 90;
/// The default class.
const DATA_CENTER_CLASS: &str = "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo";

/// Eureka's statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Status {
    /// Serves.
    #[default]
    Up,
    /// Does not serve.
    Down,
    /// Does not serve yet.
    Starting,
    /// Was taken out of use.
    OutOfService,
    /// Not reported.
    Unknown,
}

/// All statuses.
pub const STATUSES: [Status; 5] = [Status::Up, Status::Down, Status::Starting, Status::OutOfService, Status::Unknown];

impl Status {
    /// Eureka's name of the status.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Up => "UP",
            Status::Down => "DOWN",
            Status::Starting => "STARTING",
            Status::OutOfService => "OUT_OF_SERVICE",
            Status::Unknown => "UNKNOWN",
        }
    }

    /// The status with this name, in any case.
    ///
    /// # Errors
    /// If there is none.
    pub fn parse(word: &str) -> Result<Status, String> {
        let status = STATUSES.into_iter().find(|status| status.as_str().eq_ignore_ascii_case(word));
        status.ok_or_else(|| format!("{word:?} is not a status: UP, DOWN, STARTING, OUT_OF_SERVICE or UNKNOWN"))
    }
}

/// Kind of a change, for clients that read deltas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Action {
    /// The instance was registered.
    #[default]
    Added,
    /// The instance was changed.
    Modified,
    /// The instance was removed.
    Deleted,
}

impl Action {
    /// Eureka's name of the action.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Added => "ADDED",
            Action::Modified => "MODIFIED",
            Action::Deleted => "DELETED",
        }
    }
}

/// A port, and whether it is enabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// Its number.
    pub number: u16,
    /// Whether it is enabled.
    pub enabled: bool,
}

/// `dataCenterInfo`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataCenter {
    /// Java class name, required by Java clients.
    pub class: String,
    /// `MyOwn`, `Amazon`, `Netflix`.
    pub name: String,
    /// Amazon's metadata of the machine.
    pub metadata: BTreeMap<String, String>,
}

/// `leaseInfo`; times in milliseconds since 1970, 0: unset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Renewal interval in seconds.
    pub renewal_s: u32,
    /// Duration in seconds after a renewal.
    pub duration_s: u32,
    /// Start of the lease.
    pub registered: u64,
    /// Last renewal reported to the registry.
    pub renewed: u64,
    /// End of the lease.
    pub evicted: u64,
    /// Time when the instance was first UP.
    pub up: u64,
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Empty if the client omits it: [`Instance::id`] has the default.
    pub instance_id: String,
    /// Host name for clients.
    pub host_name: String,
    /// Name of the application, in upper case.
    pub app: String,
    /// `appGroupName`
    pub app_group: String,
    /// Its IP address.
    pub ip_addr: String,
    /// Its own status.
    pub status: Status,
    /// Status set by another client; `Unknown`: none.
    pub overridden: Status,
    /// Plaintext port.
    pub port: Port,
    /// TLS port.
    pub secure_port: Port,
    /// Always 1.
    pub country_id: u32,
    /// Where it runs.
    pub data_center: Option<DataCenter>,
    /// Its lease.
    pub lease: Lease,
    /// Arbitrary metadata.
    pub metadata: BTreeMap<String, String>,
    /// Home page.
    pub home_page_url: String,
    /// Status page.
    pub status_page_url: String,
    /// Health check URL.
    pub health_check_url: String,
    /// Health check URL with TLS.
    pub secure_health_check_url: String,
    /// Virtual addresses for look-ups, comma-separated.
    pub vip_address: String,
    /// Virtual addresses of its TLS port.
    pub secure_vip_address: String,
    /// Amazon's auto scaling group.
    pub asg_name: String,
    /// Whether it is a Eureka server.
    pub is_server: bool,
    /// Milliseconds since 1970.
    pub last_updated: u64,
    /// Time of the client's last change by its own clock, milliseconds since 1970.
    pub last_dirty: u64,
    /// Kind of the last change.
    pub action: Action,
}

impl Default for Instance {
    fn default() -> Instance {
        Instance {
            instance_id: String::new(),
            host_name: String::new(),
            app: String::new(),
            app_group: String::new(),
            ip_addr: String::new(),
            status: Status::Up,
            overridden: Status::Unknown,
            port: Port { number: 7001, enabled: true },
            secure_port: Port { number: 7002, enabled: false },
            country_id: 1,
            data_center: Some(DataCenter::default()),
            lease: Lease::default(),
            metadata: BTreeMap::new(),
            home_page_url: String::new(),
            status_page_url: String::new(),
            health_check_url: String::new(),
            secure_health_check_url: String::new(),
            vip_address: String::new(),
            secure_vip_address: String::new(),
            asg_name: String::new(),
            is_server: false,
            last_updated: 0,
            last_dirty: 0,
            action: Action::Added,
        }
    }
}

impl Default for DataCenter {
    fn default() -> DataCenter {
        DataCenter { class: DATA_CENTER_CLASS.into(), name: "MyOwn".into(), metadata: BTreeMap::new() }
    }
}

impl Default for Lease {
    fn default() -> Lease {
        Lease { renewal_s: RENEWAL_S, duration_s: DURATION_S, registered: 0, renewed: 0, evicted: 0, up: 0 }
    }
}

impl Instance {
    /// Decodes the body of a registration, JSON or XML according to its first character: clients send the wrong content
    /// type, or none.
    ///
    /// # Errors
    /// The mistake, for status 400.
    pub fn of_body(body: &[u8]) -> Result<Instance, String> {
        let text = std::str::from_utf8(body).map_err(|e| format!("the body is not UTF-8: {e}"))?;
        let document = if text.trim_start().starts_with('<') {
            xml::read(text)?
        } else {
            serde_json::from_str(text).map_err(|e| format!("the body is not JSON: {e}"))?
        };
        let Some(Value::Object(map)) = document.get("instance") else {
            return Err(r#"the body must be {"instance": {...}} or <instance>...</instance>"#.into());
        };
        Instance::of(map)
    }

    /// Decodes an instance.
    ///
    /// # Errors
    /// The mistake, with the field's name.
    pub fn of(map: &Map<String, Value>) -> Result<Instance, String> {
        let fields = Fields(map);
        let default = Instance::default();
        let status = |key: &str, default| match fields.text(key)?.as_str() {
            "" => Ok(default),
            word => Status::parse(word).map_err(|e| format!("{key}: {e}")),
        };
        // Netflix's servers write the former, its newer clients the latter.
        let overridden = match status("overriddenStatus", Status::Unknown)? {
            Status::Unknown => status("overriddenstatus", Status::Unknown)?,
            other => other,
        };
        let action = fields.text("actionType")?;
        let action = [Action::Added, Action::Modified, Action::Deleted].into_iter().find(|a| a.as_str() == action);
        Ok(Instance {
            instance_id: fields.text("instanceId")?,
            host_name: fields.text("hostName")?,
            app: fields.text("app")?.to_uppercase(),
            app_group: fields.text("appGroupName")?,
            ip_addr: fields.text("ipAddr")?,
            status: status("status", Status::Up)?,
            overridden,
            port: fields.port("port", default.port)?,
            secure_port: fields.port("securePort", default.secure_port)?,
            country_id: fields.number("countryId", default.country_id)?,
            data_center: fields.data_center()?,
            lease: fields.lease()?,
            metadata: fields.texts("metadata")?,
            home_page_url: fields.text("homePageUrl")?,
            status_page_url: fields.text("statusPageUrl")?,
            health_check_url: fields.text("healthCheckUrl")?,
            secure_health_check_url: fields.text("secureHealthCheckUrl")?,
            vip_address: fields.text("vipAddress")?,
            secure_vip_address: fields.text("secureVipAddress")?,
            asg_name: fields.text("asgName")?,
            is_server: fields.text("isCoordinatingDiscoveryServer")?.eq_ignore_ascii_case("true"),
            last_updated: fields.number("lastUpdatedTimestamp", 0)?,
            last_dirty: fields.number("lastDirtyTimestamp", 0)?,
            action: action.unwrap_or_default(),
        })
    }

    /// The instance as JSON.
    pub fn json(&self) -> Map<String, Value> {
        let port = |port: Port| json!({ "$": port.number, "@enabled": port.enabled.to_string() });
        let mut all = Map::new();
        let mut set = |key: &str, value: Value| all.insert(key.into(), value);
        set("instanceId", self.id().into());
        for (key, text) in [
            ("hostName", &self.host_name),
            ("app", &self.app),
            ("appGroupName", &self.app_group),
            ("ipAddr", &self.ip_addr),
            ("homePageUrl", &self.home_page_url),
            ("statusPageUrl", &self.status_page_url),
            ("healthCheckUrl", &self.health_check_url),
            ("secureHealthCheckUrl", &self.secure_health_check_url),
            ("vipAddress", &self.vip_address),
            ("secureVipAddress", &self.secure_vip_address),
            ("asgName", &self.asg_name),
        ] {
            if !text.is_empty() {
                set(key, text.as_str().into());
            }
        }
        set("status", self.status.as_str().into());
        set("overriddenstatus", self.overridden.as_str().into());
        set("overriddenStatus", self.overridden.as_str().into());
        set("port", port(self.port));
        set("securePort", port(self.secure_port));
        set("countryId", self.country_id.into());
        if let Some(center) = &self.data_center {
            let mut shown = json!({ "@class": center.class, "name": center.name });
            if let Some(map) = shown.as_object_mut().filter(|_| !center.metadata.is_empty()) {
                map.insert("metadata".into(), json!(center.metadata));
            }
            set("dataCenterInfo", shown);
        }
        let lease = &self.lease;
        set(
            "leaseInfo",
            json!({
                "renewalIntervalInSecs": lease.renewal_s,
                "durationInSecs": lease.duration_s,
                "registrationTimestamp": lease.registered,
                "lastRenewalTimestamp": lease.renewed,
                "evictionTimestamp": lease.evicted,
                "serviceUpTimestamp": lease.up,
            }),
        );
        set("metadata", json!(self.metadata));
        set("isCoordinatingDiscoveryServer", self.is_server.to_string().into());
        // Strings in Eureka's JSON, unlike the timestamps of the lease.
        set("lastUpdatedTimestamp", self.last_updated.to_string().into());
        set("lastDirtyTimestamp", self.last_dirty.to_string().into());
        set("actionType", self.action.as_str().into());
        all
    }

    /// Identifier within its application, in the order of `InstanceInfo.getId`.
    pub fn id(&self) -> &str {
        let machine = self.data_center.as_ref().and_then(|center| center.metadata.get("instance-id"));
        let ids = [Some(&self.instance_id), machine, Some(&self.host_name)];
        ids.into_iter().flatten().find(|id| !id.is_empty()).map_or("", String::as_str)
    }

    /// Effective status: the override, otherwise its own.
    pub fn effective(&self) -> Status {
        if self.overridden == Status::Unknown { self.status } else { self.overridden }
    }

    /// The port for clients: the plaintext one, unless only the TLS port is enabled.
    pub fn used_port(&self) -> u16 {
        let secure_alone = self.secure_port.enabled && !self.port.enabled;
        if secure_alone { self.secure_port.number } else { self.port.number }
    }

    /// Checks whether it may be registered as an instance of `app`.
    ///
    /// # Errors
    /// The missing field, in the words of Netflix's server.
    pub fn check(&self, app: &str) -> Result<(), String> {
        let missing = [
            (self.id(), "Missing instanceId"),
            (&self.host_name, "Missing hostname"),
            (&self.ip_addr, "Missing ip address"),
            (&self.app, "Missing appName"),
        ];
        if let Some((_, words)) = missing.into_iter().find(|(text, _)| text.trim().is_empty()) {
            return Err(words.into());
        }
        if !self.app.eq_ignore_ascii_case(app) {
            return Err(format!("Mismatched appName, expecting {app} but was {}", self.app));
        }
        match &self.data_center {
            None => Err("Missing dataCenterInfo".into()),
            Some(center) if center.name.is_empty() => Err("Missing dataCenterInfo Name".into()),
            Some(_) => Ok(()),
        }
    }
}
