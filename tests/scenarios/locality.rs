//! Locality load balancing: near endpoints are preferred, far ones are for failover, and shares are exact.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weft_tests::{Kind, Mesh, Pod, document, served_by, wait_for};

use crate::Scenario;

pub(crate) fn all() -> Vec<Scenario> {
    scenarios![
        near_localities_are_preferred_and_far_ones_fail_over,
        regions_order_endpoints_with_equal_labels,
        a_new_instance_warms_up,
    ]
}

fn rule(balancer: Value) -> String {
    let outliers = json!({
        "consecutive5xxErrors": 2, "interval": "1s", "baseEjectionTime": "60s", "maxEjectionPercent": 100,
    });
    let policy = json!({"outlierDetection": outliers, "loadBalancer": balancer});
    document(Kind::DestinationRule, "order", json!({"host": "order-service", "trafficPolicy": policy}))
}

/// Of 200 requests, how many each instance served.
fn shares(front: &Pod, url: &str) -> Result<BTreeMap<String, usize>> {
    let plan = json!({"url": url, "count": 200, "headers": {"Host": "order-service"}});
    let mut shares = BTreeMap::new();
    for name in served_by(&front.requests(&plan)?) {
        *shares.entry(name).or_default() += 1;
    }
    Ok(shares)
}

fn near_localities_are_preferred_and_far_ones_fail_over() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    mesh.policy("order.yaml", &rule(json!({"simple": "ROUND_ROBIN"})))?;
    let a = mesh.instance("order1", "order-service", 8080, &["--locality", "eu/a"])?;
    let _b = mesh.instance("order2", "order-service", 8080, &["--locality", "eu/b"])?;
    let _us = mesh.instance("order3", "order-service", 8080, &["--locality", "us/a"])?;
    let (front, _sidecar) = mesh.client_with("frontend", &["--locality", "eu/a"])?;
    let url = format!("http://{}/", mesh.vip("order-service")?);
    let expect = |case: &str, expected: &[(&str, usize)], off: usize| {
        wait_for(case, Duration::from_secs(15), || {
            let seen = shares(&front, &url)?;
            let fits = seen.values().sum::<usize>() == 200
                && seen.keys().all(|name| expected.iter().any(|(known, _)| known == name))
                && expected.iter().all(|(name, n)| seen.get(*name).copied().unwrap_or_default().abs_diff(*n) <= off);
            ensure!(fits, "{seen:?}, not {expected:?}");
            Ok(())
        })
    };
    expect("the same zone", &[("order1", 200)], 0)?;
    // It answers 503 and is ejected: the next zone, not the next region.
    a.pod.curl(&["-X", "POST", "http://127.0.0.1:8080/sick"])?;
    front.requests(&json!({"url": format!("{url}health"), "count": 5, "headers": {"Host": "order-service"}}))?;
    expect("the next zone", &[("order2", 200)], 0)?;
    a.pod.curl(&["-X", "POST", "http://127.0.0.1:8080/well"])?;
    let localities = |setting: Value| rule(json!({"simple": "ROUND_ROBIN", "localityLbSetting": setting}));
    let shares = json!({"distribute": [{"from": "eu/*", "to": {"eu/b": 70, "us": 30}}]});
    mesh.policy("order.yaml", &localities(shares))?;
    expect("shares", &[("order2", 140), ("order3", 60)], 2)?;
    mesh.policy("order.yaml", &localities(json!({"failover": [{"from": "us", "to": "eu"}]})))?;
    // The ejection lasts a minute.
    expect("regions", &[("order2", 200)], 0)?;
    mesh.policy("order.yaml", &localities(json!({"enabled": false})))?;
    expect("all alike", &[("order2", 100), ("order3", 100)], 1)
}

/// The same rack in any region first; then the nearest locality, with the failover region before other regions.
fn regions_order_endpoints_with_equal_labels() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    let priority = json!({"failoverPriority": ["rack"], "failover": [{"from": "eu", "to": "us"}]});
    mesh.policy("order.yaml", &rule(json!({"simple": "ROUND_ROBIN", "localityLbSetting": priority})))?;
    let instance = |name: &str, args: &[&str]| mesh.instance(name, "order-service", 8080, args);
    let rack = instance("order1", &["--locality", "asia/a", "--label", "rack=7"])?;
    let near = instance("order2", &["--locality", "eu/b"])?;
    let _us = instance("order3", &["--locality", "us/a"])?;
    let _far = instance("order4", &["--locality", "asia/a"])?;
    let (front, _sidecar) = mesh.client_with("frontend", &["--locality", "eu/a", "--label", "rack=7"])?;
    let url = format!("http://{}/", mesh.vip("order-service")?);
    let expect = |case: &str, expected: &str| {
        wait_for(case, Duration::from_secs(15), || {
            let seen = shares(&front, &url)?;
            ensure!(seen.len() == 1 && seen.contains_key(expected), "{seen:?}, not {expected}");
            Ok(())
        })
    };
    let eject = |pod: &Pod| {
        pod.curl(&["-X", "POST", "http://127.0.0.1:8080/sick"])?;
        front.requests(&json!({"url": format!("{url}health"), "count": 5, "headers": {"Host": "order-service"}}))
    };
    expect("the same rack", "order1")?;
    eject(&rack.pod)?;
    expect("the same region", "order2")?;
    eject(&near.pod)?;
    expect("the failover region", "order3")
}

fn a_new_instance_warms_up() -> Result<()> {
    let mesh = Mesh::start(&[])?;
    mesh.policy(
        "order.yaml",
        &rule(json!({"simple": "ROUND_ROBIN", "warmup": {"duration": "8s", "minimumPercent": 10}})),
    )?;
    let _old = mesh.instance("order1", "order-service", 8080, &[])?;
    let (front, _sidecar) = mesh.client("frontend")?;
    let url = format!("http://{}/", mesh.vip("order-service")?);
    ensure!(shares(&front, &url)?.len() == 1);
    // The first one is warm before the second comes.
    std::thread::sleep(Duration::from_secs(8));
    let _new = mesh.instance("order2", "order-service", 8080, &[])?;
    let first = wait_for("the new one", Duration::from_secs(10), || {
        let share = shares(&front, &url)?.get("order2").copied().unwrap_or_default();
        ensure!(share > 0, "none yet");
        Ok(share)
    })?;
    ensure!((10..=80).contains(&first), "it begins with little: {first} of 200");
    wait_for("its full share", Duration::from_secs(30), || {
        let share = shares(&front, &url)?.get("order2").copied().unwrap_or_default();
        ensure!((99..=101).contains(&share), "{share} of 200");
        Ok(())
    })
}
