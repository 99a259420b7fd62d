//! Tests of the Gateway API's conformance suite, replayed without a cluster: documents, requests and the expected answers
//! of each test, in tables that `run` reads.
//!
//! A test begins with `# Name`. A line `Kind name namespace {spec}` is a document, and indented lines continue it; the namespace `-` is none. A line
//! `? Kind namespace/name [parent] conditions` lists conditions of a status, `Type` or `Type=Reason` if it reports a mistake. A
//! line `GET URL name=value => result` is a request with headers, where `from=` is the namespace of a client with a sidecar
//! and `via=` a Gateway. The result is the backend, or several with their shares, or a status, and then properties that
//! the explanation must have, or with a `!` must not have.

use std::sync::Arc;

use super::*;
use crate::conditions::{self, Condition};
use weft_policy::{Document, GATEWAY_API, Kind, Object};

/// The tests of a table. `base` are the documents that all of them have; `via` is the Gateway of requests that name none.
fn run(base: &str, via: Option<&str>, table: &str) {
    let mut failures = Vec::new();
    for test in table.split("\n# ").skip(1) {
        let (name, lines) = test.split_once('\n').unwrap();
        let mesh = Mesh::of(&[base, lines].concat(), via);
        let checks: Vec<&str> = lines.lines().filter(|line| is_check(line)).collect();
        assert!(!checks.is_empty(), "{name} checks nothing");
        for check in checks {
            if let Err(failure) = mesh.check(check) {
                failures.push(format!("{name}: {check}\n    {failure}"));
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// The number of tests in a table.
fn count(table: &str) -> usize {
    table.split("\n# ").skip(1).count()
}

fn is_check(line: &str) -> bool {
    line.starts_with('?') || line.contains(" => ")
}

struct Mesh<'a>(World, Option<&'a str>);

impl<'a> Mesh<'a> {
    /// Of documents; each Service has one instance.
    fn of(text: &str, via: Option<&'a str>) -> Mesh<'a> {
        let mut documents: Vec<String> = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with("# ") && !is_check(line)) {
            match documents.last_mut().filter(|_| line.starts_with(' ')) {
                Some(document) => *document += line,
                None => documents.push(line.to_owned()),
            }
        }
        let documents: Vec<String> = documents.iter().map(|line| document(line)).collect();
        let documents = super::documents(&documents.join("---\n"));
        let mut world = World::new("cluster.local", 1);
        let services = documents.iter().filter(|document| document.kind() == Kind::Service);
        let services: Vec<Arc<Document>> = services.cloned().collect();
        world.set_policies(documents, 0);
        for (n, service) in services.iter().enumerate() {
            let mut instance = instance(&service.name, &format!("{}-1", service.name), &format!("10.0.0.{n}"), 8080);
            instance.namespace.clone_from(&service.namespace);
            world.upsert(instance, 0);
        }
        Mesh(world, via)
    }

    fn check(&self, line: &str) -> Result<(), String> {
        match line.strip_prefix("? ") {
            Some(line) => self.check_conditions(line),
            None => self.check_request(line),
        }
    }

    fn check_conditions(&self, line: &str) -> Result<(), String> {
        let mut words = line.split_whitespace();
        let kind = Kind::ALL.iter().rev().find(|kind| Some(kind.written()) == line.split_whitespace().next()).unwrap();
        let (namespace, name) = words.nth(1).and_then(|word| word.split_once('/')).unwrap();
        let document = self.0.document(*kind, namespace, name).ok_or("no such document")?;
        let (part, wanted): (Vec<&str>, Vec<&str>) = words.partition(|word| word.starts_with('['));
        let part = part.first().map(|word| word.trim_matches(['[', ']']));
        let found = self.conditions(document, part)?;
        let missing: Vec<&&str> = wanted.iter().filter(|word| !found.iter().any(|has| has == **word)).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?} not in {found:?}")) }
    }

    fn conditions(&self, document: &Document, part: Option<&str>) -> Result<Vec<String>, String> {
        let text = |one: &Condition| match one.is_bad() {
            false => one.kind.to_owned(),
            true => format!("{}={}", one.kind, one.reason),
        };
        match &document.object {
            Object::HTTPRoute(_) | Object::GRPCRoute(_) | Object::TLSRoute(_) | Object::TCPRoute(_) => {
                let all = conditions::of_route(&self.0, document);
                let is_meant = |status: &&conditions::ParentStatus<'_>| {
                    part.is_none_or(|part| part == status.parent.object.name || part == status.parent.section)
                };
                let status = all.iter().find(is_meant).ok_or("no such parent")?;
                Ok(status.conditions.iter().map(text).collect())
            }
            Object::KubernetesGateway(_) => {
                let status = conditions::of_gateway(&self.0, document).ok_or("it is not served")?;
                let Some(part) = part else { return Ok(status.conditions.iter().map(text).collect()) };
                let listener = status.listeners.iter().find(|one| one.name == part).ok_or("no such listener")?;
                let count = format!("attached={}", listener.attached_routes);
                let kinds = format!("kinds={}", listener.supported_kinds.join(","));
                Ok(listener.conditions.iter().map(text).chain([count, kinds]).collect())
            }
            Object::BackendTLSPolicy(_) => Ok(conditions::of_backend_tls(&self.0, document).iter().map(text).collect()),
            _ => Ok(conditions::of_class(document).iter().map(text).collect()),
        }
    }

    fn check_request(&self, line: &str) -> Result<(), String> {
        let (request, wanted) = line.split_once(" => ").unwrap();
        let mut words = request.split_whitespace();
        let (method, url) = (words.next().unwrap(), words.next().unwrap());
        let mut client = Client::of("mesh");
        let gateway = |text: &str| text.split_once('/').map(|(ns, name)| (ns.to_owned(), name.to_owned()));
        client.gateway = self.1.and_then(gateway);
        let mut headers = Vec::new();
        for (name, value) in words.map(|word| word.split_once('=').unwrap()) {
            match name {
                "from" => (client.namespace, client.gateway) = (value.to_owned(), None),
                "via" => client.gateway = gateway(value),
                _ => headers.push((name.to_owned(), value.to_owned())),
            }
        }
        if let Some((namespace, _)) = &client.gateway {
            client.namespace.clone_from(namespace);
        }
        let query = Query::new(url, method, &headers, None).unwrap();
        let explanation = of(&self.0, &client, &query);
        let (result, has) = (result(&explanation), properties(&explanation));
        let mut wanted = wanted.split_whitespace();
        let main = wanted.next().unwrap();
        let met = |word: &&str| match word.strip_prefix('!') {
            Some(word) => !has.iter().any(|has| has.starts_with(word)),
            None => has.iter().any(|has| has == *word),
        };
        let unmet: Vec<&str> = wanted.filter(|word| !met(word)).collect();
        let same = result == main || result.replace(&format!(".{}", client.namespace), "") == main;
        if same && unmet.is_empty() { Ok(()) } else { Err(format!("{result} with {has:?}; unmet: {unmet:?}")) }
    }
}

/// "infra-backend-v1", "echo-v1.mesh:50,500:50" or "404".
fn result(explanation: &Explanation) -> String {
    let short = |host: &str| host.trim_end_matches(".svc.cluster.local").to_owned();
    let name = |one: &Destination| match &one.verdict {
        Verdict::Refused { status, .. } => status.to_string(),
        _ => short(&one.host),
    };
    let used: Vec<&Destination> = explanation.destinations.iter().filter(|one| one.percent > 0.0).collect();
    match (&explanation.verdict, &used[..]) {
        (Verdict::Answered { status, .. }, _) => status.to_string(),
        (Verdict::Refused { status: 0, .. }, []) => "closed".to_owned(),
        (Verdict::Refused { status, .. }, []) => status.to_string(),
        (_, [only]) => name(only),
        (_, all) => all.iter().map(|one| format!("{}:{}", name(one), one.percent)).collect::<Vec<_>>().join(","),
    }
}

/// The settings of the request's route and its destination, without spaces: `set:x-a=b` for a header of the request,
/// `rset:` for one of the response.
fn properties(explanation: &Explanation) -> Vec<String> {
    let destinations = explanation.destinations.iter().filter(|one| one.percent > 0.0);
    let settings = explanation.effects.iter().chain(destinations.flat_map(|one| &one.effects));
    let one = |setting: &Setting| {
        let value = setting.value.replace(": ", "=").replace(' ', "");
        match setting.field.as_str() {
            "redirect" => format!("location={}", value.split_once("to").map_or("", |(_, to)| to)),
            "rewrite.uri" => format!("path={value}"),
            "rewrite.authority" => format!("host={value}"),
            "mirror" => format!("mirror={}", value.split('.').next().unwrap_or_default().replace("%to", "%")),
            field => match field.split('.').collect::<Vec<_>>()[..] {
                ["headers", "request", how] => format!("{how}:{value}"),
                ["headers", "response", how] => format!("r{how}:{value}"),
                ["corsPolicy", name] => format!("{name}={value}"),
                _ => format!("{field}={value}"),
            },
        }
    };
    let cors = explanation.notes.iter().filter(|note| note.starts_with("corsPolicy"));
    let cors = cors.map(|note| if note.contains("not allowed") { "note=refused" } else { "note=allowed" }.to_owned());
    let tls = explanation.destinations.iter().map(|one| format!("tls={}", one.tls.replace(' ', "")));
    settings.map(one).chain(cors).chain(tls).collect()
}

/// `Kind name namespace {spec}` as YAML.
fn document(line: &str) -> String {
    let words: Vec<&str> = line.splitn(4, ' ').collect();
    let [kind, name, namespace, spec] = words[..] else { panic!("not a document: {line}") };
    let (group, version) = match kind {
        "Service" | "Namespace" => ("", "v1"),
        "VirtualService" | "DestinationRule" => ("networking.istio.io/", "v1"),
        _ => (GATEWAY_API, "/v1"),
    };
    let namespace = if let Some(labels) = namespace.strip_prefix("labels=") {
        format!(", labels: {}", labels.replace(':', ": "))
    } else if namespace == "-" {
        String::new()
    } else {
        format!(", namespace: {namespace}")
    };
    format!("apiVersion: {group}{version}\nkind: {kind}\nmetadata: {{name: {name}{namespace}}}\nspec: {spec}\n")
}

/// Services of the suite's namespace for meshes.
const MESH: &str = "
Service echo mesh {selector: {app: echo}, clusterIP: 10.96.0.1, ports: [{name: http, port: 80, targetPort: 8080},
  {name: http-alt, port: 8080}, {name: grpc, port: 7070}]}
Service echo-v1 mesh {clusterIP: 10.96.0.2, ports: [{name: http, port: 80, targetPort: 8080},
  {name: http-alt, port: 8080}, {name: grpc, port: 7070}]}
Service echo-v2 mesh {clusterIP: 10.96.0.3, ports: [{name: http, port: 80, targetPort: 8080},
  {name: http-alt, port: 8080}, {name: grpc, port: 7070}]}
";

/// The suite's Services and Gateways in its namespaces for gateways.
const INFRA: &str = "
GatewayClass weft - {controllerName: weft.dev/gateway-controller}
Namespace infra labels={gateway-conformance:infra} {}
Namespace app labels={gateway-conformance:backend} {}
Namespace web labels={gateway-conformance:backend} {}
Service infra-backend-v1 infra {ports: [{name: http, port: 8080, targetPort: 3000}, {name: second, port: 8081}]}
Service infra-backend-v2 infra {ports: [{name: http, port: 8080, targetPort: 3000}]}
Service infra-backend-v3 infra {ports: [{name: http, port: 8080, targetPort: 3000}]}
Service app-backend-v1 app {ports: [{name: http, port: 8080, targetPort: 3000}]}
Service app-backend-v2 app {ports: [{name: http, port: 8080, targetPort: 3000}]}
Service web-backend web {ports: [{name: http, port: 8080, targetPort: 3000}]}
Gateway same-namespace infra {gatewayClassName: weft, listeners: [{name: http, port: 80, protocol: HTTP,
  allowedRoutes: {namespaces: {from: Same}}}]}
Service tls-backend infra {ports: [{name: tls, port: 443, targetPort: 8443}]}
Service tls-backend-2 infra {ports: [{name: tls, port: 443, targetPort: 8443}]}
Service tcp-backend infra {ports: [{name: tcp, port: 3000}]}
Service tcp-backend-2 infra {ports: [{name: tcp, port: 3000}]}
Service tls-backend app {ports: [{name: tls, port: 443, targetPort: 8443}]}
Service tcp-backend app {ports: [{name: tcp, port: 3000}]}
Gateway tls infra {gatewayClassName: weft, listeners: [{name: tls, port: 443, protocol: TLS, tls: {mode: Passthrough}}]}
Gateway all-namespaces infra {gatewayClassName: weft, listeners: [{name: http, port: 80, protocol: HTTP,
  allowedRoutes: {namespaces: {from: All}}}]}
Gateway backend-namespaces infra {gatewayClassName: weft, listeners: [{name: http, port: 80, protocol: HTTP,
  allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {gateway-conformance: backend}}}}}]}
Gateway https infra {gatewayClassName: weft, listeners: [{name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [
  {group: '', kind: Secret, name: tls-validity-checks-certificate}]}, allowedRoutes: {namespaces: {from: Same}}}]}
";

#[test]
fn gateway_routes() {
    run(INFRA, Some("infra/same-namespace"), include_str!("http.txt"));
    run(INFRA, Some("infra/same-namespace"), include_str!("gateway.txt"));
    run(INFRA, Some("infra/same-namespace"), include_str!("grpc.txt"));
    run(INFRA, Some("infra/tls"), include_str!("streams.txt"));
}

#[test]
fn mesh_routes() {
    run(MESH, None, include_str!("mesh.txt"));
}

#[test]
fn own_rules() {
    run(MESH, None, include_str!("own.txt"));
}

/// The documentation names the number of replayed tests.
#[test]
fn the_number_of_tests() {
    let tables = [
        include_str!("mesh.txt"),
        include_str!("http.txt"),
        include_str!("gateway.txt"),
        include_str!("grpc.txt"),
        include_str!("streams.txt"),
    ];
    assert_eq!(tables.map(count).iter().sum::<usize>(), 119);
}
