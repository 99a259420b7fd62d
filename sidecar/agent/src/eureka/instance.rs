//! An instance as Eureka's clients write and read it: every field that one of them sends or looks at.
//!
//! Numbers come as numbers or as texts, and ports as objects or bare; an answer has the one form that all of them take.
//! The rules are those of Netflix's `InstanceInfo`, `LeaseInfo` and `ApplicationResource`.

mod fields;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::xml;
use fields::Fields;

/// Renewals as Eureka's clients have them by default, and how long a lease lasts after one, seconds.
const RENEWAL_S: u32 = 30;
const DURATION_S: u32 = 90;
/// Of those who name no class.
const DATA_CENTER_CLASS: &str = "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo";

/// Eureka's statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Status {
    /// Serves.
    #[default]
    Up,
    /// Does not.
    Down,
    /// Does not yet.
    Starting,
    /// Has been taken out of use.
    OutOfService,
    /// Has not said.
    Unknown,
}

/// All of them.
pub const STATUSES: [Status; 5] = [Status::Up, Status::Down, Status::Starting, Status::OutOfService, Status::Unknown];

impl Status {
    /// Eureka's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Up => "UP",
            Status::Down => "DOWN",
            Status::Starting => "STARTING",
            Status::OutOfService => "OUT_OF_SERVICE",
            Status::Unknown => "UNKNOWN",
        }
    }

    /// The status of that word, whatever its case.
    ///
    /// # Errors
    /// When there is none.
    pub fn parse(word: &str) -> Result<Status, String> {
        let found = STATUSES.into_iter().find(|status| status.as_str().eq_ignore_ascii_case(word));
        found.ok_or_else(|| format!("{word:?} is not a status: UP, DOWN, STARTING, OUT_OF_SERVICE or UNKNOWN"))
    }
}

/// What became of an instance, to those who ask for what changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Action {
    /// It came.
    #[default]
    Added,
    /// It is another.
    Modified,
    /// It is gone.
    Deleted,
}

impl Action {
    /// Eureka's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Added => "ADDED",
            Action::Modified => "MODIFIED",
            Action::Deleted => "DELETED",
        }
    }
}

/// A port, and whether it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// Its number.
    pub number: u16,
    /// Whether it is used.
    pub enabled: bool,
}

/// `dataCenterInfo`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataCenter {
    /// Java's class, which Java's clients need.
    pub class: String,
    /// `MyOwn`, `Amazon`, `Netflix`.
    pub name: String,
    /// What Amazon says of the machine.
    pub metadata: BTreeMap<String, String>,
}

/// `leaseInfo`; times in milliseconds since 1970, 0 is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Seconds between renewals.
    pub renewal_s: u32,
    /// Seconds that it lasts after one.
    pub duration_s: u32,
    /// When it began.
    pub registered: u64,
    /// When it was renewed last, as far as the registry is told of that.
    pub renewed: u64,
    /// When it ended.
    pub evicted: u64,
    /// When the instance was first up.
    pub up: u64,
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Empty where the client leaves it out: [`Instance::id`] has the rule.
    pub instance_id: String,
    /// Where callers are sent by name.
    pub host_name: String,
    /// Its application, in upper case.
    pub app: String,
    /// `appGroupName`
    pub app_group: String,
    /// Where it listens.
    pub ip_addr: String,
    /// What it says of itself.
    pub status: Status,
    /// What others have said instead; `Unknown`: nothing.
    pub overridden: Status,
    /// Plaintext.
    pub port: Port,
    /// TLS.
    pub secure_port: Port,
    /// Always 1.
    pub country_id: u32,
    /// Where it runs.
    pub data_center: Option<DataCenter>,
    /// How long it is believed to live.
    pub lease: Lease,
    /// Anything.
    pub metadata: BTreeMap<String, String>,
    /// Page of its own.
    pub home_page_url: String,
    /// Page of its own.
    pub status_page_url: String,
    /// Page of its own.
    pub health_check_url: String,
    /// Page of its own.
    pub secure_health_check_url: String,
    /// Names that clients look it up by, with commas.
    pub vip_address: String,
    /// The same, of its TLS port.
    pub secure_vip_address: String,
    /// Amazon's scaling group.
    pub asg_name: String,
    /// Whether it is a Eureka server.
    pub is_server: bool,
    /// Milliseconds since 1970.
    pub last_updated: u64,
    /// When the client changed it last by its own clock, milliseconds since 1970.
    pub last_dirty: u64,
    /// What became of it.
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
    /// Reads the body of a registration, JSON or XML as its first character says: clients name the wrong type, or none.
    ///
    /// # Errors
    /// What is wrong with it, for a 400.
    pub fn of_body(body: &[u8]) -> Result<Instance, String> {
        let text = std::str::from_utf8(body).map_err(|e| format!("the body is not UTF-8: {e}"))?;
        let document = if text.trim_start().starts_with('<') {
            xml::read(text)?
        } else {
            serde_json::from_str(text).map_err(|e| format!("the body is not JSON: {e}"))?
        };
        let Some(Value::Object(map)) = document.get("instance") else {
            return Err(r#"the body is to be {"instance": {...}} or <instance>...</instance>"#.into());
        };
        Instance::of(map)
    }

    /// Reads an instance.
    ///
    /// # Errors
    /// What is wrong with it, by the field's name.
    pub fn of(map: &Map<String, Value>) -> Result<Instance, String> {
        let fields = Fields(map);
        let default = Instance::default();
        let status = |key: &str, default| match fields.text(key)?.as_str() {
            "" => Ok(default),
            word => Status::parse(word).map_err(|e| format!("{key}: {e}")),
        };
        // Netflix's own servers write the one, the newer of its clients the other.
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
        // Texts in Eureka's JSON, unlike those of the lease.
        set("lastUpdatedTimestamp", self.last_updated.to_string().into());
        set("lastDirtyTimestamp", self.last_dirty.to_string().into());
        set("actionType", self.action.as_str().into());
        all
    }

    /// What names it among those of its application: `InstanceInfo.getId` has the order.
    pub fn id(&self) -> &str {
        let machine = self.data_center.as_ref().and_then(|center| center.metadata.get("instance-id"));
        let ids = [Some(&self.instance_id), machine, Some(&self.host_name)];
        ids.into_iter().flatten().find(|id| !id.is_empty()).map_or("", String::as_str)
    }

    /// What counts: what others have said, else what it says of itself.
    pub fn effective(&self) -> Status {
        if self.overridden == Status::Unknown { self.status } else { self.overridden }
    }

    /// The port that it is called at: the plaintext one, unless only the other is used.
    pub fn used_port(&self) -> u16 {
        let secure_alone = self.secure_port.enabled && !self.port.enabled;
        if secure_alone { self.secure_port.number } else { self.port.number }
    }

    /// Whether it may be registered as one of `app`.
    ///
    /// # Errors
    /// What is missing, in the words of Netflix's server.
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
