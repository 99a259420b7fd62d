//! Decoding of registrations: services and, in `checks`, their checks, with Consul's defaults and errors.

mod checks;

use std::net::IpAddr;

use weft_proto::v1::Instance;
use weft_registry_api::decode::Fields;
use weft_registry_api::service::{tagged_addresses, weights};

use crate::checks::Definition;
use crate::checks::target::Own;

use checks::check_fields;
pub use checks::{check, health_path, maintenance, maintenance_id};

/// Decodes the body of `agent/service/register`: the service in the mesh's form, and its checks.
///
/// # Errors
/// The message for status 400, in Consul's words.
pub fn service(body: &[u8], own: Own) -> Result<(Instance, Vec<Definition>), String> {
    let mut fields = Fields::of_body("the service", body)?;
    let name = fields.text("name")?;
    if name.trim().is_empty() {
        return Err("Missing service name".into());
    }
    let service = instance(&mut fields, name, own)?;
    let (name, id) = (&service.service, &service.service_id);
    let mut checks = Vec::new();
    checks.extend(fields.object("check", "Check")?.filter(|c| !c.is_empty()));
    checks.extend(fields.objects("checks", "Checks")?.into_iter().filter(|c| !c.is_empty()));
    let several = checks.len() > 1;
    let mut definitions = Vec::new();
    for (n, mut check) in checks.into_iter().enumerate() {
        let default = if several { format!("service:{id}:{}", n + 1) } else { format!("service:{id}") };
        let mut definition = check_fields(&mut check, own)?;
        check.finish();
        if definition.id.is_empty() {
            definition.id = default;
        }
        if definition.name.is_empty() {
            definition.name = format!("Service '{name}' check");
        }
        definition.service_id.clone_from(id);
        definitions.push(definition);
    }
    fields.finish();
    Ok((service, definitions))
}

/// Decodes the fields of a service, except its name, which has different keys in the agent's and the catalog's API, and
/// its checks.
///
/// # Errors
/// The message for status 400, in Consul's words.
pub(crate) fn instance(fields: &mut Fields, name: String, own: Own) -> Result<Instance, String> {
    let mut id = fields.text("id")?;
    if id.is_empty() {
        id.clone_from(&name);
    }
    let address = own_address(&fields.text("address")?, own)?;
    let kind = fields.text("kind")?;
    if !kind.is_empty() && kind != "typical" {
        return Err(format!("Invalid service kind: {kind:?} is not supported yet"));
    }
    if fields.flag("enabletagoverride")? {
        let text = "EnableTagOverride is not supported: only this agent changes the tags of its services. Omit it, and register \
                    the service again to change its tags";
        return Err(text.into());
    }
    let (passing, warning) = weights(fields)?;
    Ok(Instance {
        service_id: id,
        service: name,
        address,
        port: fields.number("port")?,
        tags: fields.texts("tags")?,
        meta: fields.text_map("meta")?.into_iter().collect(),
        weight: passing,
        checks: Vec::new(),
        enable_tag_override: false,
        tagged_addresses: tagged_addresses(fields)?.into_iter().collect(),
        warning_weight: Some(warning),
        eureka: String::new(),
        group: String::new(),
    })
}

/// The address to register; empty: the agent's own. A client may know only its loopback address or its host name
/// (Spring Cloud registers the latter by default); remote callers need the corresponding pod address.
pub(crate) fn own_address(address: &str, own: Own) -> Result<String, String> {
    match address.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() => Err("Invalid service address".into()),
        Ok(ip) if ip.to_canonical().is_loopback() => Ok(String::new()),
        Ok(ip) if own.has(ip) => Ok(address.to_owned()),
        Ok(ip) => Err(format!("Invalid service address: {ip} is not an address of {own}; leave it out to use its own")),
        Err(_) if address.is_empty() || own.allowed(address) => Ok(String::new()),
        Err(_) => Err(format!("Invalid service address: {address:?} is not an IP address of {own}")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::checks::{DEFAULT_TIMEOUT, MIN_DEREGISTER};
    use super::*;
    use crate::checks::state::Status;

    #[test]
    fn service_registrations_of_all_clients_are_decoded() {
        let python = br#"{"name":"order-service","id":"order-1","port":8080,"tags":["v1"],
            "check":{"http":"http://localhost:8080/health","interval":"10s","timeout":"5s",
            "DeregisterCriticalServiceAfter":"10s"}}"#;
        let (service, checks) = service(python, Own::Pod).unwrap();
        assert_eq!((service.service_id.as_str(), service.port), ("order-1", 8080));
        assert_eq!(checks[0].id, "service:order-1");
        assert_eq!(checks[0].name, "Service 'order-service' check");
        assert_eq!((checks[0].interval, checks[0].timeout), (Duration::from_secs(10), Duration::from_secs(5)));
        assert_eq!(checks[0].deregister_after, Some(MIN_DEREGISTER), "a minute at least");

        let consulate = br#"{"ID":null,"Name":"a","Script":null,"Check":{"TTL":"10s"},
            "Checks":[{"TCP":"127.0.0.1:1","Interval":1000000000,"CheckID":"mine","Status":"passing","Args":[]}]}"#;
        let (service, checks) = super::service(consulate, Own::Pod).unwrap();
        assert_eq!(service.service_id, "a", "the name");
        let ids: Vec<_> = checks.iter().map(|c| (c.id.as_str(), c.kind.as_str(), c.initial)).collect();
        assert_eq!(ids, [("service:a:1", "ttl", Status::Critical), ("mine", "tcp", Status::Passing)]);
        assert_eq!(checks[0].timeout, DEFAULT_TIMEOUT);
    }

    #[test]
    fn only_the_service_name_is_required() {
        let (minimal, checks) = service(br#"{"Name":"t"}"#, Own::Pod).unwrap();
        assert_eq!((minimal.service_id.as_str(), minimal.port, checks.len()), ("t", 0, 0));
        let null = br#"{"Name":"t","ID":null,"Address":null,"Port":null,"Tags":null,"Meta":null,"TaggedAddresses":null,
            "Weights":null,"Check":null,"Checks":null,"EnableTagOverride":null,"Kind":null}"#;
        assert_eq!(service(null, Own::Pod).unwrap().0, minimal);
        let zero = br#"{"Name":"t","ID":"","Address":"","Port":0,"Tags":[],"Meta":{},"TaggedAddresses":{},"Weights":{},
            "Check":{},"Checks":[],"EnableTagOverride":false,"Kind":""}"#;
        assert_eq!(service(zero, Own::Pod).unwrap().0.port, 0);
        let (nulls, _) = service(br#"{"Name":"t","Tags":["a",null],"Meta":{"k":null}}"#, Own::Pod).unwrap();
        assert_eq!((nulls.tags, nulls.meta["k"].as_str()), (vec!["a".to_owned(), String::new()], ""));
    }

    #[test]
    fn local_service_addresses_become_the_agents_own() {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        for address in ["127.0.0.1", "::1", "localhost", host.as_str()] {
            let body = format!(r#"{{"Name":"t","Address":"{address}"}}"#);
            assert_eq!(service(body.as_bytes(), Own::Pod).unwrap().0.address, "", "{address}");
        }
        let remote = Own::At([10, 0, 0, 7].into());
        for (address, registered) in [("localhost", ""), ("127.0.0.1", ""), ("10.0.0.7", "10.0.0.7")] {
            let body = format!(r#"{{"Name":"t","Address":"{address}"}}"#);
            assert_eq!(service(body.as_bytes(), remote).unwrap().0.address, registered, "{address}");
        }
    }

    #[test]
    fn invalid_registrations_are_refused_with_consuls_message() {
        for (body, words) in [
            (r#"{}"#, "Missing service name"),
            (r#"{"name":"a","address":"0.0.0.0"}"#, "Invalid service address"),
            (r#"{"name":"a","address":"192.0.2.1"}"#, "not an address of this pod"),
            (r#"{"name":"a","address":"web"}"#, "not an IP address"),
            (r#"{"name":"a","taggedaddresses":{"lan":"x"}}"#, "a tagged address is to be an object"),
            (r#"{"name":"a","kind":"connect-proxy"}"#, "not supported yet"),
            (r#"{"name":"a","check":{"interval":"1s"}}"#, "TTL must be > 0"),
            (r#"{"name":"a","check":{"http":"http://localhost/"}}"#, "Interval must be > 0"),
            (r#"{"name":"a","check":{"http":"http://192.0.2.1/","interval":"1s"}}"#, "not an address of this pod"),
            (r#"{"name":"a","check":{"http":"ftp://localhost/","interval":"1s"}}"#, "begins with http://"),
            (r#"{"name":"a","check":{"udp":"192.0.2.1:1","interval":"1s"}}"#, "not an address of this pod"),
            (r#"{"name":"a","check":{"grpc":"localhost","interval":"1s"}}"#, "not host:port"),
            (r#"{"name":"a","check":{"h2ping":"localhost:1"}}"#, "Interval must be > 0"),
            (r#"{"name":"a","check":{"aliasnode":"other"}}"#, "another node is not supported"),
            (r#"{"name":"a","check":{"aliasservice":"b","ttl":"1s"}}"#, "only one of"),
            (r#"{"name":"a","check":{"dockercontainerid":"x","interval":"1s"}}"#, "a docker check is not supported"),
            (r#"{"name":"a","check":{"ttl":"1s","OutputMaxSize":-1}}"#, "outputmaxsize"),
            (r#"{"name":"a","EnableTagOverride":true}"#, "EnableTagOverride is not supported"),
            (r#"{"name":"a","check":{"tcp":"localhost","interval":"1s"}}"#, "not host:port"),
            (r#"{"name":"a","check":{"ttl":"1s","interval":"1s"}}"#, "cannot both"),
            (r#"{"name":"a","check":{"ttl":"1s","http":"http://localhost/","interval":"1s"}}"#, "only one of"),
            (r#"{"name":"a","check":{"ttl":"1s","status":"ok"}}"#, "Status for checks must 'passing'"),
            (r#"{"name":"a","check":{"script":"x","interval":"1s"}}"#, "give the program and its arguments in Args"),
            (r#"{"name":"a","check":{"args":["x"],"ttl":"1s"}}"#, "only one of"),
            (r#"{"name":"a","check":{"args":["x"]}}"#, "Interval must be > 0"),
            (r#"{"name":"a","check":{"grpc":"x:1","interval":"1s"}}"#, "not an address of this pod"),
            (r#"{"name":"a","check":{"ttl":"1s","FailuresBeforeWarning":2}}"#, "can't be higher"),
        ] {
            let error = service(body.as_bytes(), Own::Pod).unwrap_err();
            assert!(error.contains(words), "{body}: {error}");
        }
        assert_eq!(check(br#"{"ttl":"1s"}"#, Own::Pod).unwrap_err(), "Missing check name");
        let pair = check(br#"{"name":"db","ttl":"15s","service_id":"a"}"#, Own::Pod).unwrap();
        assert_eq!((pair.id.as_str(), pair.service_id.as_str()), ("db", "a"));
    }
}
