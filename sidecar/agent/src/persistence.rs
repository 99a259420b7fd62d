//! Registrations saved in a file across restarts of the sidecar.
//!
//! Consul's agent does the same with a folder of services and one of checks (`persistService`, `persistCheck` and
//! `persistCheckState` in its agent/agent.go): an application that registers once, when it is installed, never
//! registers again. A single file is sufficient here, and is replaced atomically. Registrations are saved in the form
//! of the API, so that the decoder of requests reads them too, and refuses those that have become invalid, such as an
//! address that this pod no longer has.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use weft_proto::v1::Instance;
use weft_registry_api::shapes;

use super::definitions;
use super::entry::{Entry, RegisteredService};
use crate::checks::state::{State, Status};
use crate::checks::target::Own;
use crate::checks::{Definition, Kind, Place};

/// The file's content.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct SavedState {
    services: Vec<SavedService>,
    checks: Vec<SavedCheck>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedService {
    registration: Value,
    /// Whether it was registered by `--service`.
    #[serde(default)]
    command_line: bool,
    /// Eureka's document, which has no equivalent in Consul's form.
    #[serde(default)]
    eureka: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedCheck {
    registration: Value,
    /// Whether it is a maintenance check, which no request can register.
    #[serde(default)]
    maintenance: bool,
    status: String,
    output: String,
    /// Expiry of the application's last report, seconds since 1970; `None`: expired.
    #[serde(default)]
    expires: Option<f64>,
    /// Start of the critical state, seconds since 1970; `None`: not critical.
    #[serde(default)]
    critical_since: Option<f64>,
}

/// State of a check at the time of saving.
#[derive(Debug, Clone)]
pub struct SavedCheckState {
    status: Status,
    output: String,
    reports: Reports,
    critical_since: Option<Instant>,
}

/// Validity of an application's last report.
#[derive(Debug, Clone, Copy)]
enum Reports {
    /// Starts again with the restart.
    Anew,
    /// Until this time; `None`: expired.
    Until(Option<Instant>),
}

impl SavedCheckState {
    /// Restores the saved state in a new one.
    pub fn restore_into(self, state: &mut State, now: Instant) {
        let anew = state.due();
        state.restore(self.status, self.output, self.critical_since, now);
        if let Reports::Until(due) = self.reports {
            // A clock that was set back must not extend the validity.
            state.set_due(due.map(|due| anew.map_or(due, |anew| anew.min(due))));
            state.expire(now);
        }
    }
}

/// One moment by both clocks: saved wall-clock times are converted to the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Monotonic time.
    pub now: Instant,
    /// Wall-clock time.
    pub wall: SystemTime,
}

impl Moment {
    /// The current moment.
    pub fn now() -> Moment {
        Moment { now: Instant::now(), wall: SystemTime::now() }
    }

    /// Seconds since 1970 of an instant.
    fn seconds(self, at: Instant) -> f64 {
        let wall = self.wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        wall + at.saturating_duration_since(self.now).as_secs_f64()
            - self.now.saturating_duration_since(at).as_secs_f64()
    }

    /// The instant of this number of seconds since 1970, limited to the oldest instant that can be represented.
    fn instant(self, seconds: f64) -> Instant {
        let wall = self.wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let apart = Duration::try_from_secs_f64((seconds - wall).abs()).unwrap_or_default();
        let there = if seconds > wall { self.now.checked_add(apart) } else { self.now.checked_sub(apart) };
        there.unwrap_or(self.now)
    }
}

/// A saved check with its state.
pub type Check = (Definition, SavedCheckState);

impl SavedState {
    /// Collects the registrations at this moment.
    pub fn of<'a>(
        services: impl Iterator<Item = &'a RegisteredService>,
        checks: impl Iterator<Item = &'a Entry>,
        moment: Moment,
    ) -> SavedState {
        SavedState {
            services: services
                .map(|service| SavedService {
                    registration: of_service(&service.service),
                    command_line: service.command_line,
                    eureka: service.service.eureka.clone(),
                })
                .collect(),
            checks: checks
                .map(|entry| SavedCheck {
                    registration: of_check(&entry.definition),
                    maintenance: entry.is_maintenance(),
                    status: entry.state.status().as_str().into(),
                    output: entry.state.output().into(),
                    expires: entry.state.due().map(|due| moment.seconds(due)),
                    critical_since: entry.state.critical_since().map(|since| moment.seconds(since)),
                })
                .collect(),
        }
    }

    /// Writes the file, readable by the owner only, because headers of checks may contain passwords.
    ///
    /// # Errors
    /// If the folder is not writable.
    pub fn write(&self, path: &Path) -> Result<()> {
        crate::files::write_private(path, &serde_json::to_vec_pretty(self)?)
    }

    /// Reads the file of an earlier run. An invalid file is renamed, not overwritten, because it may be the only copy
    /// of the registrations.
    pub fn read(path: &Path) -> SavedState {
        let read = || -> Result<SavedState> {
            match std::fs::read(path) {
                Ok(json) => serde_json::from_slice(&json).context("it is damaged"),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(SavedState::default()),
                Err(e) => Err(e.into()),
            }
        };
        read().unwrap_or_else(|e| {
            let aside = aside(path);
            let outcome = match std::fs::rename(path, &aside) {
                Ok(()) => format!("it is kept as {}", aside.display()),
                Err(e) => format!("it cannot be renamed either: {e}"),
            };
            tracing::warn!(
                "registrations from before the restart are lost, applications must register again: cannot read {}: {e:#}; \
                 {outcome}",
                path.display()
            );
            SavedState::default()
        })
    }

    /// The services and checks that are still valid; the others are logged.
    pub fn take(self, moment: Moment, own: Own) -> (Vec<RegisteredService>, Vec<Check>) {
        let services = self.services.into_iter().filter_map(|saved| {
            let service = definitions::service(saved.registration.to_string().as_bytes(), own);
            match service {
                Ok((service, _)) => {
                    let service = Instance { eureka: saved.eureka, ..service };
                    Some(RegisteredService { service, command_line: saved.command_line })
                }
                Err(e) => {
                    tracing::warn!("not registered again after the restart: {e}: {}", saved.registration);
                    None
                }
            }
        });
        let services = services.collect();
        let checks = self.checks.into_iter().filter_map(|saved| {
            let id = saved.registration["checkid"].as_str().unwrap_or_default().to_owned();
            saved.take(moment, own).map_err(|e| tracing::warn!("the check {id:?} is not restored: {e}")).ok()
        });
        (services, checks.collect())
    }
}

impl SavedCheck {
    fn take(self, moment: Moment, own: Own) -> Result<Check, String> {
        let definition = if self.maintenance {
            let text = |key: &str| self.registration[key].as_str().unwrap_or_default();
            definitions::maintenance(text("serviceid"), text("notes"))
        } else {
            definitions::check(self.registration.to_string().as_bytes(), own)?
        };
        let status = Status::parse(&self.status).ok_or_else(|| format!("{:?} is not a status", self.status))?;
        // As in Consul (`loadCheckState`), a report stays valid as long as without a restart. Programs beside their
        // agent could not report while it was down, and mostly restarted with it, so their reports start again; the
        // downtime of remote programs' agent does not affect them.
        let reports = match own {
            Own::Pod => Reports::Until(self.expires.map(|end| moment.instant(end))),
            _ => Reports::Anew,
        };
        let critical_since = self.critical_since.map(|since| moment.instant(since));
        Ok((definition, SavedCheckState { status, output: self.output, reports, critical_since }))
    }
}

fn aside(path: &Path) -> PathBuf {
    path.with_extension("damaged")
}

fn of_service(instance: &Instance) -> Value {
    let meta: Map<String, Value> = instance.meta.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    json!({
        "name": instance.service,
        "id": instance.service_id,
        "address": instance.address,
        "port": instance.port,
        "tags": instance.tags,
        "meta": meta,
        "weights": { "passing": instance.weight, "warning": instance.warning_weight.unwrap_or(1) },
        "enabletagoverride": instance.enable_tag_override,
        "taggedaddresses": shapes::tagged_addresses(&instance.tagged_addresses),
    })
}

fn of_check(check: &Definition) -> Value {
    let nanoseconds = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
    let mut all = json!({
        "checkid": check.id,
        "name": check.name,
        "notes": check.notes,
        "serviceid": check.service_id,
        "status": check.initial.as_str(),
        "interval": nanoseconds(check.interval),
        "timeout": nanoseconds(check.timeout),
        "successbeforepassing": check.thresholds.passing,
        "failuresbeforewarning": check.thresholds.warning,
        "failuresbeforecritical": check.thresholds.critical,
        "deregistercriticalserviceafter": nanoseconds(check.deregister_after.unwrap_or_default()),
        "outputmaxsize": check.max_output,
    });
    let at = |key: &str, to: String, use_tls: &str, place: &Place| {
        let tls = place.tls.clone().unwrap_or_default();
        json!({
            key: to,
            use_tls: place.tls.is_some(),
            "tlsservername": tls.server_name,
            "tlsskipverify": tls.skip_verify,
        })
    };
    let kind = match &check.kind {
        Kind::Http(http) => {
            let mut headers: Map<String, Value> = Map::new();
            for (name, value) in &http.headers {
                let values = headers.entry(name.as_str()).or_insert_with(|| json!([]));
                if let Value::Array(values) = values {
                    values.push(json!(String::from_utf8_lossy(value.as_bytes())));
                }
            }
            json!({
                "http": http.url.to_string(),
                "method": http.method.as_str(),
                "header": headers,
                "body": String::from_utf8_lossy(&http.body),
                "disableredirects": http.disable_redirects,
                "tlsservername": http.tls.server_name,
                "tlsskipverify": http.tls.skip_verify,
            })
        }
        Kind::Tcp(place) => at("tcp", place.to_string(), "tcpusetls", place),
        Kind::Udp(place) => json!({ "udp": place.to_string() }),
        Kind::Grpc(place, service) => at("grpc", format!("{place}/{service}"), "grpcusetls", place),
        Kind::Http2Ping(place) => at("h2ping", place.to_string(), "h2pingusetls", place),
        Kind::Script(args) => json!({ "args": args }),
        Kind::Alias(service_id) => json!({ "aliasservice": service_id }),
        Kind::Ttl(ttl) => json!({ "ttl": nanoseconds(*ttl) }),
        Kind::Maintenance => json!({}),
    };
    if let (Value::Object(all), Value::Object(kind)) = (&mut all, kind) {
        all.extend(kind);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::new_state;

    #[test]
    fn registrations_round_trip() {
        let body = br#"{"name":"order-service","id":"order-1","port":8080,"tags":["v1"],"meta":{"a":"B"},
            "Weights":{"Passing":3,"Warning":2},"TaggedAddresses":{"lan":{"Address":"127.0.0.1"}},"checks":[
            {"http":"http://localhost:8080/health?x=1","method":"POST","header":{"Authorization":["Basic x"]},"body":"b",
             "interval":"10s","timeout":"1500ms","FailuresBeforeCritical":3,"deregister_critical_service_after":"90s"},
            {"tcp":"[::1]:8080","interval":"1s","status":"passing","TCPUseTLS":true,"TLSServerName":"a"},
            {"udp":"localhost:1","interval":"1s","OutputMaxSize":9},{"h2ping":"localhost:1","interval":"1s"},
            {"h2ping":"localhost:2","interval":"1s","h2pingusetls":false},{"aliasservice":"b"},{"args":["a","b c"],"interval":"1s"},
            {"grpc":"localhost:1/a.B","interval":"1s"},{"grpc":"localhost:1","interval":"1s","grpcusetls":true},
            {"http":"https://localhost:8443/","interval":"1s","tlsskipverify":true},
            {"ttl":"15s","notes":"by cron","CheckID":"mine"}]}"#;
        let (service, checks) = definitions::service(body, Own::Pod).unwrap();
        let (again, none) = definitions::service(of_service(&service).to_string().as_bytes(), Own::Pod).unwrap();
        assert_eq!(service.warning_weight, Some(2));
        assert_eq!(service.tagged_addresses["lan"].address, "127.0.0.1");
        assert_eq!((again, none), (service, Vec::new()));
        for check in checks {
            assert_eq!(definitions::check(of_check(&check).to_string().as_bytes(), Own::Pod).unwrap(), check);
        }
    }

    #[test]
    fn a_restart_does_not_extend_the_validity_of_reports() {
        let check = |expires: Option<f64>| SavedCheck {
            registration: json!({ "checkid": "c", "name": "c", "ttl": "10s" }),
            maintenance: false,
            status: "passing".into(),
            output: "all well".into(),
            expires,
            critical_since: None,
        };
        let moment = Moment { now: Instant::now(), wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1000) };
        let restored = |saved: SavedCheck, own: Own| {
            let (definition, left) = saved.take(moment, own).unwrap();
            let mut state = new_state(&definition, moment.now);
            left.restore_into(&mut state, moment.now);
            (state.status(), state.due().map(|due| due - moment.now), state.output().to_owned())
        };
        let (seconds, well) = (Duration::from_secs, "all well".to_owned());
        let passing = |due| (Status::Passing, Some(due), well.clone());
        assert_eq!(
            restored(check(Some(1003.0)), Own::Pod),
            passing(seconds(3)),
            "the remaining validity, not all of it"
        );
        assert_eq!(restored(check(Some(2000.0)), Own::Pod), passing(seconds(10)), "the clock was set back");
        let lapsed = "TTL expired (last output before timeout follows): all well".to_owned();
        assert_eq!(restored(check(Some(999.0)), Own::Pod), (Status::Critical, None, lapsed));
        assert_eq!(restored(check(None), Own::Pod), (Status::Passing, None, well.clone()));
        let remote = Own::At([10, 0, 0, 7].into());
        assert_eq!(
            restored(check(Some(999.0)), remote),
            passing(seconds(10)),
            "the program is independent of the restart"
        );
    }

    #[test]
    fn a_restart_does_not_delay_the_deregistration_of_critical_services() {
        let saved = |critical_since| SavedCheck {
            registration: json!({ "checkid": "c", "name": "c", "ttl": "10s", "deregister_critical_service_after": "60s" }),
            maintenance: false,
            status: "critical".into(),
            output: String::new(),
            expires: None,
            critical_since,
        };
        let moment = Moment { now: Instant::now(), wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1000) };
        for (since, at, late) in
            [(Some(950.0), 9, false), (Some(950.0), 10, true), (None, 59, false), (Some(1005.0), 64, false)]
        {
            let (definition, left) = saved(since).take(moment, Own::Pod).unwrap();
            let mut state = new_state(&definition, moment.now);
            left.restore_into(&mut state, moment.now);
            let at = moment.now + Duration::from_secs(at);
            assert_eq!(state.critical_for(Duration::from_secs(60), at), late, "critical since {since:?}");
        }
        // Shortly after boot, no instant represents a time before the boot.
        assert!(moment.instant(0.0) <= moment.now);
        let since = moment.now + Duration::from_millis(2500);
        assert_eq!(moment.instant(moment.seconds(since)), since);
    }

    #[test]
    fn invalid_registrations_do_not_affect_the_others() {
        let text = r#"{"services":[{"registration":{"name":"a","address":"192.0.2.1"}},{"registration":{"name":"b"}}],
            "checks":[{"registration":{"checkid":"c"},"status":"passing","output":""}]}"#;
        let saved: SavedState = serde_json::from_str(text).unwrap();
        let (services, checks) = saved.take(Moment::now(), Own::Pod);
        let names: Vec<_> = services.iter().map(|s| s.service.service.as_str()).collect();
        assert_eq!((names, checks.len()), (vec!["b"], 0));
    }
}
