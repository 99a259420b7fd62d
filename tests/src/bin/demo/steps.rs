//! The steps of the demo.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weft_tests::wait_for;

use crate::client::{self, Answer, Request};
use crate::wire::Capture;
use crate::{Shop, shipped, version};

/// Users of the shop.
pub(crate) const USERS: [&str; 8] = ["alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi"];

const RULE: &str = "destination-rule.yaml";
const ROUTES: &str = "virtual-service.yaml";
const PATIENCE: Duration = Duration::from_secs(10);
const CANARY: Request<'static> = Request { path: "/", user: "alice", canary: true };

/// All of them.
pub(crate) fn all(shop: &mut Shop) -> Result<()> {
    users(shop)?;
    canary(shop)?;
    connections(shop)?;
    limits(shop)?;
    identities(shop)?;
    status(shop);
    edit(shop)?;
    broken_edit(shop)
}

fn ok(answers: &[Answer]) -> bool {
    answers.iter().all(|a| a.status == 200)
}

/// A replacement in a shipped file; the text must occur.
fn edited(file: &str, changes: &[(&str, &str)]) -> Result<String> {
    let mut text = shipped(file)?;
    for (from, to) in changes {
        ensure!(text.contains(from), "{file} has no `{from}`");
        text = text.replace(from, to);
    }
    Ok(text)
}

fn users(shop: &mut Shop) -> Result<()> {
    shop.report.step("consistentHash on user-id, in each subset of a 90/10 split");
    let each = 50;
    let requests: Vec<Request<'_>> =
        (0..each).flat_map(|_| USERS).map(|user| Request { path: "/", user, canary: false }).collect();
    let answers = client::requests(&shop.front, &requests)?;
    let mut counts: BTreeMap<(&str, &str), BTreeMap<&str, usize>> = BTreeMap::new();
    for (request, answer) in requests.iter().zip(&answers) {
        let of = counts.entry((request.user, version(answer.server()))).or_default();
        *of.entry(answer.server()).or_default() += 1;
    }
    let mut rows = vec![["user-id", "subset v1 (90 %)", "subset v2 (10 %)"].map(str::to_owned).to_vec()];
    for user in USERS {
        let cell = |subset| {
            let servers = counts.get(&(user, subset)).into_iter().flatten();
            servers.map(|(server, n)| format!("{server} x{n}")).collect::<Vec<_>>().join(", ")
        };
        rows.push(vec![user.into(), cell("v1"), cell("v2")]);
    }
    shop.report.table(&rows);
    let total = requests.len();
    shop.report.claim(answers.len() == total && ok(&answers), &format!("{total} requests, all answered with 200"));
    let sticky = counts.values().all(|servers| servers.len() == 1);
    shop.report.claim(sticky, "within a subset a user is always served by the same instance");
    let servers: BTreeSet<&str> = answers.iter().map(Answer::server).collect();
    shop.report.claim(servers.len() == 3, "and different users by different ones: all three instances serve");
    let v2 = answers.iter().filter(|a| version(a.server()) == "v2").count();
    // Five standard deviations around 40 of 400.
    let near = (10..=70).contains(&v2);
    shop.report.claim(near, &format!("{v2} of {total} went to v2; 10 % is {}", total / 10));
    Ok(())
}

fn canary(shop: &mut Shop) -> Result<()> {
    shop.report.step("x-canary: true goes to v2");
    let requests: Vec<Request<'_>> = (0..5).flat_map(|_| USERS).map(|user| Request { user, ..CANARY }).collect();
    let answers = client::requests(&shop.front, &requests)?;
    let v2 = answers.iter().filter(|a| version(a.server()) == "v2").count();
    let all = v2 == requests.len() && ok(&answers);
    shop.report.claim(all, &format!("{v2} of {} requests with x-canary: true were served by v2", requests.len()));
    Ok(())
}

fn most(answers: &[Answer]) -> u64 {
    answers.iter().map(|a| a.connection().1).max().unwrap_or(0)
}

fn connections(shop: &mut Shop) -> Result<()> {
    shop.report.step("maxRequestsPerConnection: 2, seen by the application");
    shop.mesh.policy(RULE, &edited(RULE, &[("\n        maxRequestsPerConnection: 2", "")])?)?;
    let without = wait_for("the edit", PATIENCE, || {
        let answers = client::repeat(&shop.front, CANARY, 20)?;
        ensure!(most(&answers) > 2, "{} requests a connection", most(&answers));
        Ok(most(&answers))
    });
    if let Err(e) = &without {
        println!("  {e:#}");
    }
    shop.report.claim(
        without.is_ok(),
        &format!("without the line, connections are reused: {} requests on one", without.unwrap_or(0)),
    );
    shop.mesh.policy(RULE, &shipped(RULE)?)?;
    let answers = wait_for("the rule", PATIENCE, || {
        let answers = client::repeat(&shop.front, CANARY, 10)?;
        ensure!(most(&answers) == 2, "{} requests a connection", most(&answers));
        Ok(answers)
    });
    let seen: Vec<String> =
        answers.iter().flatten().map(|a| format!("{}.{}", a.connection().0, a.connection().1)).collect();
    println!("  with it, connection.request as order-3 counts them: {}", seen.join(" "));
    shop.report.claim(answers.is_ok_and(|a| ok(&a)), "with it, no connection carries more than 2, and nothing fails");
    Ok(())
}

fn limits(shop: &mut Shop) -> Result<()> {
    shop.report.step("Limits: one connection, one waiting request, three clients");
    let narrow =
        [("maxConnections: 100", "maxConnections: 1"), ("http1MaxPendingRequests: 50", "http1MaxPendingRequests: 1")];
    shop.mesh.policy(RULE, &edited(RULE, &narrow)?)?;
    let request = Request { path: "/sleep/20", ..CANARY };
    let answers = wait_for("the limits", PATIENCE, || {
        let running = (0..3).map(|_| client::start(&shop.front, &[request; 30])).collect::<Result<Vec<_>>>()?;
        let mut answers = Vec::new();
        for clients in running {
            answers.extend(clients.answers()?);
        }
        ensure!(answers.iter().any(|a| a.status == 503), "no 503 yet");
        Ok(answers)
    })
    .unwrap_or_default();
    let alone = client::repeat(&shop.front, request, 30)?;
    let count = |answers: &[Answer], status| answers.iter().filter(|a| a.status == status).count().to_string();
    shop.report.table(&[
        ["clients", "requests", "200", "503"].map(str::to_owned).to_vec(),
        vec!["3".into(), answers.len().to_string(), count(&answers, 200), count(&answers, 503)],
        vec!["1".into(), alone.len().to_string(), count(&alone, 200), count(&alone, 503)],
    ]);
    let refused: Vec<&Answer> = answers.iter().filter(|a| a.status == 503).collect();
    let why: BTreeSet<&str> = refused.iter().map(|a| a.header("x-weft-reason")).collect();
    for reason in &why {
        println!("  503 with x-weft-reason: {reason}");
    }
    let only = answers.iter().all(|a| a.status == 200 || a.status == 503);
    shop.report.claim(
        !refused.is_empty() && refused.len() < answers.len() && only,
        "three clients: some requests are refused with 503, the others are served",
    );
    let expected = "overflow; policy=DestinationRule/default/order-service; limit=http1MaxPendingRequests=1";
    shop.report.claim(why == BTreeSet::from([expected]), "each 503 names the limit and its policy");
    shop.report.claim(ok(&alone), "one client sees none");
    shop.mesh.policy(RULE, &shipped(RULE)?)?;
    Ok(())
}

fn identities(shop: &mut Shop) -> Result<()> {
    shop.report.step("Identities, and the bytes on the wire");
    let server = shop.orders.last().context("no instances")?;
    let capture = Capture::start(&shop.mesh, &shop.front, &server.pod)?;
    let secret = "swordfish-in-the-path";
    let path = format!("/{secret}");
    let answers = client::repeat(&shop.front, Request { path: &path, ..CANARY }, 6)?;
    let certificate = answers.first().and_then(|a| a.received("x-forwarded-client-cert")).unwrap_or_default();
    println!("  the application receives x-forwarded-client-cert: {certificate}");
    let caller = "URI=spiffe://cluster.local/ns/default/sa/frontend";
    let own = "By=spiffe://cluster.local/ns/default/sa/order-service";
    shop.report
        .claim(certificate.contains(caller) && certificate.contains(own), "it names the caller's identity and its own");
    let Some(capture) = capture else {
        println!("  (without tcpdump, the bytes on the wire are not looked at)");
        return Ok(());
    };
    let seen = capture.end()?;
    let first: Vec<String> = seen.first.iter().map(|b| format!("{b:02x}")).collect();
    println!(
        "  between the pods: {} segments with data, {} begin as a TLS record; the first: {} ...",
        seen.segments,
        seen.tls,
        first.join(" ")
    );
    let clear = seen.bytes.windows(secret.len()).any(|w| w == secret.as_bytes());
    let handshake = seen.first.starts_with(&[0x16, 3]) || seen.first.starts_with(&[0x17, 3]);
    shop.report.claim(ok(&answers) && handshake && seen.tls > 0, "the traffic between the pods is TLS");
    shop.report.claim(!clear && seen.segments > 0, "the path of the requests is not in it");
    Ok(())
}

fn status(shop: &mut Shop) {
    shop.report.step("weftctl status");
    let status = shop.mesh.weftctl(&["status"]);
    let text = match &status {
        Ok(text) => text.clone(),
        Err(e) => e.to_string(),
    };
    shop.report.quote(&text);
    let instances = shop.orders.iter().all(|o| text.lines().any(|l| l.contains(&o.pod.ip) && l.contains(" healthy ")));
    shop.report.claim(status.is_ok() && instances, "all three instances are registered and healthy");
}

fn edit(shop: &mut Shop) -> Result<()> {
    shop.report.step("A policy edited on disk takes effect");
    let routes = edited(ROUTES, &[("weight: 90", "weight: 0"), ("weight: 10\n", "weight: 100\n")])?;
    println!("  {}: weights 90/10 become 0/100", shop.mesh.policies.join(ROUTES).display());
    let start = Instant::now();
    shop.mesh.policy(ROUTES, &routes)?;
    // By chance alone, ten in a row of 10 % are one in ten billion: the first of ten is the first one.
    let mut streak = 0;
    let mut first = start.elapsed();
    while streak < 10 && start.elapsed() < PATIENCE {
        let at = start.elapsed();
        let answers = client::repeat(&shop.front, Request { canary: false, ..CANARY }, 1)?;
        let v2 = answers.iter().all(|a| version(a.server()) == "v2");
        if v2 && streak == 0 {
            first = at;
        }
        streak = if v2 { streak + 1 } else { 0 };
    }
    let (took, in_effect) = (first.as_millis(), streak == 10);
    shop.report.claim(in_effect, &format!("the first request by the new weights came {took} ms after the edit"));
    all_to_v2(shop, "of 80 requests after it, all go to v2")
}

fn all_to_v2(shop: &mut Shop, claim: &str) -> Result<()> {
    let requests: Vec<Request<'_>> =
        (0..10).flat_map(|_| USERS).map(|user| Request { path: "/", user, canary: false }).collect();
    let answers = client::requests(&shop.front, &requests)?;
    let all = ok(&answers) && answers.len() == requests.len() && answers.iter().all(|a| version(a.server()) == "v2");
    shop.report.claim(all, claim);
    Ok(())
}

fn broken_edit(shop: &mut Shop) -> Result<()> {
    shop.report.step("A broken edit is refused, and the old policy serves");
    let broken = edited(ROUTES, &[("weight: 90", "wieght: 90")])?;
    shop.mesh.policy(ROUTES, &broken)?;
    let line = broken.lines().position(|l| l.contains("wieght")).context("no such line")? + 1;
    let expected = format!("{ROUTES}:{line}:");
    let found = wait_for("the problem", PATIENCE, || {
        let status = shop.mesh.status();
        let found: Vec<&str> = status.lines().filter(|l| l.contains(&expected)).collect();
        ensure!(!found.is_empty(), "{status}");
        Ok(found.join("\n"))
    });
    shop.report.quote(found.as_deref().unwrap_or_default());
    shop.report.claim(found.is_ok(), "weftctl status reports the error with file, line and column");
    all_to_v2(shop, "80 requests go where the last good policy sends them")?;
    shop.mesh.policy(ROUTES, &shipped(ROUTES)?)?;
    let well = wait_for("the correction", PATIENCE, || {
        let status = shop.mesh.status();
        ensure!(!status.contains(&expected), "{status}");
        Ok(())
    });
    shop.report.claim(well.is_ok(), "with the file as it was, the problem is gone");
    Ok(())
}
