//! Documents in the forms of all clients, in both formats.

use proptest::prelude::*;

use super::*;

/// The form of py_eureka_client.
const PYTHON: &str = include_str!("python.json");
/// The form of eureka-js-client: its configuration.
const JS: &str = r#"{"instance":{"app":"jqservice","hostName":"localhost","ipAddr":"127.0.0.1","port":8080,
    "vipAddress":"jq.test.something.com","dataCenterInfo":{"name":"MyOwn"},"status":"UP"}}"#;
/// The form of Java's older clients.
const JAVA: &str = r#"<?xml version="1.0"?><instance><hostName>pod-1</hostName><app>ORDER</app>
    <ipAddr>10.0.0.1</ipAddr><status>STARTING</status><overriddenstatus>OUT_OF_SERVICE</overriddenstatus>
    <port enabled="false">80</port><securePort enabled="true">8443</securePort>
    <dataCenterInfo class="com.netflix.appinfo.AmazonInfo"><name>Amazon</name><metadata>
    <instance-id>i-1</instance-id><availability-zone>eu-1a</availability-zone></metadata></dataCenterInfo>
    <leaseInfo><durationInSecs>60</durationInSecs></leaseInfo><metadata class="java.util.Collections$EmptyMap"/>
    <lastDirtyTimestamp>1700000000001</lastDirtyTimestamp></instance>"#;

fn read(text: &str) -> Instance {
    Instance::of_body(text.as_bytes()).unwrap()
}

#[test]
fn registrations_of_all_clients_are_decoded() {
    let python = read(PYTHON);
    assert_eq!((python.id(), python.app.as_str(), python.used_port()), ("10.0.0.1:order:8080", "ORDER", 8080));
    assert_eq!((python.lease.renewal_s, python.lease.duration_s), (10, 30));
    assert_eq!((python.metadata["management.port"].as_str(), python.last_dirty), ("8080", 1_700_000_000_001));
    assert_eq!((python.effective(), python.secure_port), (Status::Up, Port { number: 9443, enabled: false }));

    let js = read(JS);
    assert_eq!((js.id(), js.app.as_str(), js.used_port()), ("localhost", "JQSERVICE", 8080));
    assert_eq!(js.data_center, Some(DataCenter::default()));
    assert_eq!(js.lease, Lease::default());
    js.check("jqservice").unwrap();

    let java = read(JAVA);
    assert_eq!((java.id(), java.used_port(), java.lease.duration_s), ("i-1", 8443, 60));
    assert_eq!((java.status, java.effective()), (Status::Starting, Status::OutOfService));
    assert_eq!((java.metadata.len(), java.data_center.unwrap().metadata.len()), (0, 2));
}

#[test]
fn missing_fields_have_eurekas_error_text() {
    let whole = read(PYTHON);
    type Change = fn(&mut Instance);
    let cases: [(Change, &str); 7] = [
        (|i| (i.instance_id, i.host_name) = (String::new(), String::new()), "Missing instanceId"),
        (|i| i.host_name = String::new(), "Missing hostname"),
        (|i| i.ip_addr = " ".into(), "Missing ip address"),
        (|i| i.app = String::new(), "Missing appName"),
        (|i| i.app = "CART".into(), "Mismatched appName, expecting order but was CART"),
        (|i| i.data_center = None, "Missing dataCenterInfo"),
        (|i| i.data_center.as_mut().unwrap().name.clear(), "Missing dataCenterInfo Name"),
    ];
    for (change, words) in cases {
        let mut instance = whole.clone();
        change(&mut instance);
        assert_eq!(instance.check("order").unwrap_err(), words);
    }
    whole.check("order").unwrap();
    for (body, words) in [
        ("", "not JSON"),
        ("[]", "{\"instance\": {...}}"),
        ("<application/>", "<instance>"),
        ("<instance>", "ends before"),
        (r#"{"instance":{"status":"BORED"}}"#, "status: \"BORED\" is not a status"),
        (r#"{"instance":{"port":{"$":65536}}}"#, "port must be an integer"),
        (r#"{"instance":{"metadata":[]}}"#, "metadata must be an object"),
        (r#"{"instance":{"metadata":{"a":{}}}}"#, "metadata: a must be a string"),
        (r#"{"instance":{"lastDirtyTimestamp":"now"}}"#, "lastDirtyTimestamp must be"),
    ] {
        let error = Instance::of_body(body.as_bytes()).unwrap_err();
        assert!(error.contains(words), "{body}: {error}");
    }
}

#[test]
fn responses_have_every_field_in_the_expected_form() {
    let shown = Value::Object(read(PYTHON).json());
    for (pointer, expected) in [
        ("/instanceId", json!("10.0.0.1:order:8080")),
        ("/app", json!("ORDER")),
        ("/overriddenstatus", json!("UNKNOWN")),
        ("/overriddenStatus", json!("UNKNOWN")),
        ("/port", json!({ "$": 8080, "@enabled": "true" })),
        ("/securePort", json!({ "$": 9443, "@enabled": "false" })),
        ("/dataCenterInfo", json!({ "@class": DATA_CENTER_CLASS, "name": "MyOwn" })),
        ("/leaseInfo/durationInSecs", json!(30)),
        ("/lastDirtyTimestamp", json!("1700000000001")),
        ("/lastUpdatedTimestamp", json!("1700000000000")),
        ("/isCoordinatingDiscoveryServer", json!("false")),
        ("/actionType", json!("ADDED")),
    ] {
        assert_eq!(shown.pointer(pointer), Some(&expected), "{pointer}");
    }
    let xml = xml::write(json!({ "instance": shown }).as_object().unwrap());
    for part in [
        "<port enabled=\"true\">8080</port>",
        "<overriddenstatus>UNKNOWN</overriddenstatus>",
        "<dataCenterInfo class=\"com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo\"><name>MyOwn</name>",
        "<management.port>8080</management.port>",
    ] {
        assert!(xml.contains(part), "{part}: {xml}");
    }
}

fn any_instance() -> impl Strategy<Value = Instance> {
    // The characters that XML can represent.
    let text = || "[ -~\u{a0}-\u{2ff}\t\n\r]{0,12}";
    let map = || proptest::collection::btree_map(".{0,8}", text(), 0..4);
    let port = || (any::<u16>(), any::<bool>()).prop_map(|(number, enabled)| Port { number, enabled });
    let status = || proptest::sample::select(&STATUSES[..]);
    let lease = (1u32.., 1u32.., any::<[u64; 4]>()).prop_map(|(renewal_s, duration_s, at)| {
        let [registered, renewed, evicted, up] = at;
        Lease { renewal_s, duration_s, registered, renewed, evicted, up }
    });
    let center = proptest::option::of((text(), map()).prop_map(|(name, mut metadata)| {
        metadata.remove("@class");
        DataCenter { name, metadata, ..DataCenter::default() }
    }));
    let texts = proptest::collection::vec(text(), 12);
    let numbers = any::<(u32, u64, u64, bool)>();
    (texts, port(), port(), status(), status(), lease, center, map(), numbers).prop_map(
        |(texts, port, secure_port, status, overridden, lease, data_center, mut metadata, numbers)| {
            metadata.remove("@class");
            let text = |n: usize| texts[n].clone();
            Instance {
                instance_id: format!("i{}", text(0)),
                host_name: text(1),
                app: text(2).to_uppercase(),
                app_group: text(3),
                ip_addr: text(4),
                home_page_url: text(5),
                status_page_url: text(6),
                health_check_url: text(7),
                secure_health_check_url: text(8),
                vip_address: text(9),
                secure_vip_address: text(10),
                asg_name: text(11),
                port,
                secure_port,
                status,
                overridden,
                lease,
                data_center,
                metadata,
                country_id: numbers.0,
                last_updated: numbers.1,
                last_dirty: numbers.2,
                is_server: numbers.3,
                action: Action::Modified,
            }
        },
    )
}

proptest! {
    #[test]
    fn json_and_xml_are_equivalent(instance in any_instance()) {
        let json = json!({ "instance": instance.json() });
        let xml = xml::write(json.as_object().unwrap());
        prop_assert_eq!(&Instance::of_body(json.to_string().as_bytes()).unwrap(), &instance);
        prop_assert_eq!(&Instance::of_body(xml.as_bytes()).unwrap(), &instance, "{}", xml);
    }
}
