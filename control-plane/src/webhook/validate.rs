//! `/validate`: a policy, before the API server stores it.
//!
//! Errors of the object itself refuse it, as in `weftctl validate`. What it has in common with other objects is a
//! warning: tools apply a set of objects in any order. An update that changes nothing of the policy passes, so that an
//! object that was stored before can still lose a finalizer.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use serde_json::Value;
use weft_kubernetes::policies::{self, LAST_APPLIED, Metadata};
use weft_policy::{Document, Kind, Problem, Severity};

use super::review::{Request, Verdict};
use crate::clock::unix_now;
use crate::state::Mesh;
use crate::telemetry::Admissions;

/// Accepts or refuses an object.
pub(super) fn judge(mesh: &Mesh, counts: &Admissions, request: &Request<'_>) -> Verdict {
    let (object, old) = (request.object(), request.old_object());
    let Some(kind) = Kind::ALL.iter().copied().find(|kind| is_of(*kind, request)) else { return Verdict::default() };
    let is_ending = object.pointer("/metadata/deletionTimestamp").is_some_and(|time| !time.is_null());
    if !["CREATE", "UPDATE"].contains(&request.text("/operation")) || is_ending {
        return Verdict::default();
    }
    if request.text("/operation") == "UPDATE"
        && object["spec"] == old["spec"]
        && annotations(object) == annotations(old)
    {
        return Verdict::default();
    }
    let key = (kind, request.text("/namespace"), request.name());
    let (document, problems) = read(key, object);
    let of = |severity| problems.iter().filter(move |problem| problem.severity == severity);
    let mut warnings: Vec<String> = of(Severity::Warning).map(line).collect();
    let errors: Vec<String> = of(Severity::Error).map(line).collect();
    let Some(document) = document.filter(|_| errors.is_empty()) else {
        counts.rejected.fetch_add(1, Ordering::Relaxed);
        tracing::info!("{kind}/{}/{} is refused: {}", key.1, key.2, errors.join("; "));
        return Verdict { refusal: Some(errors.join("\n")), warnings, ..Verdict::default() };
    };
    counts.accepted.fetch_add(1, Ordering::Relaxed);
    let before = read(key, old).0.filter(|_| !old.is_null());
    warnings.extend(beside(mesh, &document, before.as_ref()));
    Verdict { warnings, ..Verdict::default() }
}

fn is_of(kind: Kind, request: &Request<'_>) -> bool {
    kind.written() == request.text("/kind/kind") && kind.descriptor().group == request.text("/kind/group")
}

fn annotations(object: &Value) -> BTreeMap<&str, &Value> {
    let all = object.pointer("/metadata/annotations").and_then(Value::as_object).into_iter().flatten();
    all.map(|(name, value)| (&**name, value)).filter(|(name, _)| *name != LAST_APPLIED).collect()
}

/// Reads an object as the source does.
fn read((kind, namespace, name): (Kind, &str, &str), object: &Value) -> (Option<Document>, Vec<Problem>) {
    let texts = |map: &str| {
        let all = object.pointer(&format!("/metadata/{map}")).and_then(Value::as_object).into_iter().flatten();
        all.filter_map(|(name, value)| Some((&**name, value.as_str()?))).collect()
    };
    let metadata = Metadata { namespace, name, annotations: texts("annotations"), labels: texts("labels") };
    let (document, problems) = policies::read(kind, &metadata, object.get("spec").filter(|spec| !spec.is_null()));
    (document.map(|document| Document { created: unix_now(), ..document }), problems)
}

/// What an object has to do with the others of the mesh, and what these need of its version before.
fn beside(mesh: &Mesh, document: &Document, before: Option<&Document>) -> Vec<String> {
    let policies = mesh.policies();
    let known = policies.all().find(|other| other.is_same_object(document));
    // An update keeps its age.
    let created = known.map_or(document.created, |known| known.created);
    let document = Document { created, ..document.clone() };
    let others = policies.all().filter(|other| !other.is_same_object(&document)).map(|other| &**other);
    let all: Vec<&Document> = others.chain([&document]).collect();
    let changed: Vec<&Document> = before.into_iter().chain([&document]).collect();
    let problems = weft_policy::check_change(&changed, &all);
    let own = problems.iter().filter(|one| one.file == document.file && one.severity != Severity::Info).map(line);
    let replaced: Vec<&Document> = before.into_iter().collect();
    let needs = weft_policy::needs(&replaced, &all, &|host| mesh.read(|world| world.offers(host)));
    own.chain(needs.into_values().map(|need| format!("{need}: requests fail without it"))).collect()
}

fn line(problem: &Problem) -> String {
    let path = if problem.path.is_empty() { String::new() } else { format!("{}: ", problem.path) };
    format!("{path}{}", problem.text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use std::sync::Arc;

    use serde_json::json;
    use weft_kubernetes::{AllPolicies, Delta};

    use super::*;
    use crate::store::embedded::Embedded;
    use crate::testing::documents;

    fn request(operation: &str, kind: &str, name: &str, spec: &Value, old: Option<&Value>) -> Value {
        let object = |spec: &Value, label: &str| {
            json!({
                "apiVersion": "networking.istio.io/v1",
                "kind": kind,
                "metadata": { "name": name, "labels": { "version": label }, "annotations": { LAST_APPLIED: label } },
                "spec": spec,
            })
        };
        json!({
            "kind": { "group": "networking.istio.io", "version": "v1", "kind": kind },
            "operation": operation,
            "namespace": "shop",
            "object": object(spec, "new"),
            "oldObject": old.map(|spec| object(spec, "old")),
        })
    }

    #[tokio::test]
    async fn errors_of_an_object_refuse_it_and_missing_objects_are_warnings() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(folder.path()).unwrap());
        let mesh = Mesh::open(store, "cluster.local", Duration::from_secs(15)).await.unwrap();
        let route = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: order, namespace: shop}\n\
                     spec: {hosts: [order], http: [{route: [{destination: {host: order, subset: v1}}]}]}\n";
        let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: order, namespace: shop}\n\
                    spec: {host: order, subsets: [{name: v1, labels: {version: v1}}]}\n";
        let documents = [documents(route), documents(rule)].concat();
        let policies = Some(AllPolicies { documents, ..AllPolicies::default() });
        mesh.set_kubernetes(Delta { policies, ..Delta::default() });
        let subset = json!({ "host": "order", "subsets": [{ "name": "v1", "labels": { "version": "v1" } }] });
        let without = json!({ "host": "order" });
        let wrong =
            json!({ "host": "order", "trafficPolicy": { "connectionPool": { "tcp": { "maxConections": 1 } } } });
        let to = json!({ "hosts": ["cart"], "http": [{ "route": [{ "destination": { "host": "cart", "subset": "v9" } }] }] });
        let counts = Admissions::default();
        // Refusal and warnings; empty: none.
        for (request, refused, warned) in [
            (request("CREATE", "DestinationRule", "cart", &json!({ "host": "cart" }), None), "", ""),
            (request("CREATE", "DestinationRule", "cart", &wrong, None), "did you mean `maxConnections`", ""),
            (request("UPDATE", "DestinationRule", "order", &wrong, Some(&wrong)), "", ""),
            (request("UPDATE", "DestinationRule", "order", &wrong, Some(&subset)), "did you mean `maxConnections`", ""),
            (request("UPDATE", "DestinationRule", "order", &without, Some(&subset)), "", "VirtualService/shop/order"),
            (request("CREATE", "VirtualService", "cart", &to, None), "", "v9"),
            (request("DELETE", "DestinationRule", "cart", &wrong, None), "", ""),
            (request("CREATE", "EnvoyFilter", "cart", &wrong, None), "", ""),
        ] {
            let verdict = judge(&mesh, &counts, &Request(&request));
            let (error, warnings) = (verdict.refusal.clone().unwrap_or_default(), verdict.warnings.join("\n"));
            assert_eq!(
                (error.is_empty(), warnings.is_empty()),
                (refused.is_empty(), warned.is_empty()),
                "{request}: {verdict:?}"
            );
            assert!(error.contains(refused) && warnings.contains(warned), "{request}: {verdict:?}");
        }
        let mut ending = request("UPDATE", "DestinationRule", "order", &wrong, Some(&subset));
        ending["object"]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert_eq!(judge(&mesh, &counts, &Request(&ending)), Verdict::default());
        let numbers = [&counts.accepted, &counts.rejected].map(|count| count.load(Ordering::Relaxed));
        assert_eq!(numbers, [3, 2]);
    }
}
