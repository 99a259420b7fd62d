use std::time::Duration;

use serde_json::json;

use super::*;

fn of(paths: Vec<PathBuf>, output: &str) -> (String, ExitCode) {
    let mut out = Vec::new();
    let code = Validate { paths, output: output.to_owned(), verbose: false }.run(&mut out).unwrap();
    (anstream::adapter::strip_str(std::str::from_utf8(&out).unwrap()).to_string(), code)
}

fn run(text: &str) -> (String, ExitCode) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("p.yaml");
    std::fs::write(&file, text).unwrap();
    let (out, code) = of(vec![file], "text");
    (out.replace(&format!("{}/", directory.path().display()), ""), code)
}

#[test]
fn problems_are_single_lines_with_a_summary() {
    let good = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: {mtls: {mode: STRICT}}\n";
    assert_eq!(run(good), ("1 file: 1 document valid, 0 warnings\n".to_owned(), ExitCode::SUCCESS));
    let bad = good.replace("STRICT", "STRIKT");
    let want = "p.yaml:4:21: error: `mtls.mode`: unknown value `STRIKT`, did you mean `STRICT`?\n\
                1 file: 1 error, 0 warnings\n";
    assert_eq!(run(&bad), (want.to_owned(), ExitCode::FAILURE));
    let foreign = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n";
    let want = "p.yaml:2:7: warning: kind Deployment of apps/v1 does not concern the mesh: skipped\n\
                1 file: 0 documents valid, 1 warning\n";
    assert_eq!(run(foreign), (want.to_owned(), ExitCode::SUCCESS));
}

#[test]
fn folders_and_files_together_for_programs() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::create_dir(at("deep")).unwrap();
    let head = |kind: &str| format!("apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: a}}\nspec:\n");
    let rule = head("DestinationRule") + "  host: e.x\n  subsets: [{name: canary, labels: {version: v2}}]\n";
    std::fs::write(at("deep/rule.yaml"), rule).unwrap();
    let route =
        head("VirtualService") + "  hosts: [e.x]\n  http:\n  - route: [{destination: {host: e.x, subset: canari}}]\n";
    std::fs::write(at("route.yml"), route).unwrap();
    std::fs::write(at("notes.txt"), "no policy").unwrap();
    let (out, code) = of(vec![directory.path().to_owned(), at("route.yml"), at("gone.yaml")], "json");
    assert_eq!(code, ExitCode::FAILURE);
    let out: Value = serde_json::from_str(&out).unwrap();
    let [gone, undefined] = &out.as_array().unwrap()[..] else { panic!("{out:#}") };
    assert_eq!((&gone["code"], &gone["severity"]), (&json!("unreadable"), &json!("error")));
    let want = json!({
        "file": at("route.yml").display().to_string(), "line": 7, "column": 47,
        "path": "http[0].route[0].destination.subset", "severity": "error", "code": "undefined-subset",
        "message": "the DestinationRule of `e.x` has no subset `canari`, did you mean `canary`?", "suggestion": "canary",
    });
    assert_eq!(undefined, &want);
}

fn document(kind: &str, name: &str, spec: &str) -> String {
    format!("apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n")
}

fn join(count: usize, one: impl Fn(usize) -> String) -> String {
    (0..count).map(one).collect::<Vec<_>>().join("\n  ")
}

/// Texts for which a comparison of every pair would be visible in the time, for a number of things.
fn many(count: usize) -> Vec<(&'static str, String)> {
    let all = |one: &dyn Fn(usize) -> String| (0..count).map(one).collect::<String>();
    let service = |n: usize, host: String| {
        document("VirtualService", &format!("v{n}"), &format!("{{hosts: [{host}], http: [{{redirect: {{uri: /}}}}]}}"))
    };
    let rule = |n: usize, host: String| {
        document(
            "DestinationRule",
            &format!("r{n}"),
            &format!("{{host: {host}, subsets: [{{name: v1, labels: {{a: b}}}}]}}"),
        )
    };
    let routes = |one: &dyn Fn(usize) -> String| {
        document("VirtualService", "v", &format!("\n  hosts: [v]\n  http:\n  {}", join(count, one)))
    };
    let matching = |matches: String| format!("- match: [{{{matches}}}]\n    redirect: {{uri: /x}}");
    let to = |n: usize, subset: &str| {
        format!("- match: [{{uri: {{exact: /{n}}}}}]\n    route: [{{destination: {{host: a, subset: {subset}}}}}]")
    };
    let endpoints =
        || join(count, |n| format!("- {{address: 10.{}.{}.{}, labels: {{l: v{n}}}}}", n >> 16, n >> 8 & 255, n & 255));
    let subsets = |name: &str| {
        document(
            "DestinationRule",
            "r",
            &format!(
                "\n  host: {name}\n  subsets:\n  {}",
                join(count, |n| format!("- {{name: v{n}, labels: {{l: v{n}}}}}"))
            ),
        )
    };
    vec![
        ("virtual services of their own hosts", all(&|n| service(n, format!("h{n}")))),
        ("virtual services of one host", all(&|n| service(n, "h".to_owned()))),
        (
            "hosts of one",
            document(
                "VirtualService",
                "v",
                &format!("\n  http: [{{redirect: {{uri: /}}}}]\n  hosts:\n  {}", join(count, |n| format!("- h{n}.x"))),
            ),
        ),
        ("rules of wildcards", all(&|n| rule(n, format!("'*.h{n}.x'"))) + &all(&|n| service(n, format!("a.h{n}.x")))),
        ("rules of one host", all(&|n| rule(n, "h".to_owned()))),
        ("routes by path", routes(&|n| matching(format!("uri: {{prefix: /p{n}/}}")))),
        (
            "routes by longer paths",
            routes(&|n| matching(format!("uri: {{prefix: /{}}}, method: {{exact: M{n}}}", "p".repeat(n % 200)))),
        ),
        ("routes by header", routes(&|n| matching(format!("headers: {{x: {{exact: v{n}}}}}")))),
        // The most expensive expressions: nearly too large, and too large.
        ("expressions", routes(&|n| matching(format!("uri: {{regex: '/{n}/[a-z]{{1000}}'}}")))),
        (
            "expressions that are too large",
            routes(&|n| matching(format!("uri: {{regex: '{n}((a{{99}}){{99}}){{99}}'}}"))),
        ),
        ("routes that are never reached", routes(&|_| matching("uri: {prefix: /}".to_owned()))),
        ("routes to subsets", routes(&|n| to(n, &format!("v{n}"))) + &subsets("a")),
        ("routes to subsets that are not", routes(&|n| to(n, &format!("w{n}"))) + &subsets("a")),
        (
            "endpoints and subsets",
            document(
                "ServiceEntry",
                "e",
                &format!(
                    "\n  hosts: [e.x]\n  resolution: STATIC\n  ports: [{{number: 80, name: http}}]\n  endpoints:\n  {}",
                    endpoints()
                ),
            ) + &subsets("e.x"),
        ),
        (
            "hosts and endpoints",
            document(
                "ServiceEntry",
                "e",
                &format!(
                    "\n  hosts: [{}]\n  resolution: STATIC\n  ports: [{{number: 80, name: http}}]\n  endpoints:\n  {}",
                    (0..count).map(|n| format!("h{n}.x")).collect::<Vec<_>>().join(", "),
                    endpoints()
                ),
            ),
        ),
        (
            "workloads and their selectors",
            all(&|n| {
                document(
                    "WorkloadEntry",
                    &format!("w{n}"),
                    &format!("{{address: 10.0.{}.{}, labels: {{app: a{n}}}}}", n >> 8, n & 255),
                ) + &document(
                    "ServiceEntry",
                    &format!("e{n}"),
                    &format!(
                        "{{hosts: [h{n}.x], resolution: STATIC, ports: [{{number: 80, name: http}}], workloadSelector: {{labels: {{app: a{n}}}}}}}"
                    ),
                )
            }),
        ),
        ("errors", routes(&|n| format!("- mach: {n}\n    redirct: {{uri: /x}}"))),
        ("deep", format!("a: {}1{}", "[".repeat(count * 10), "]".repeat(count * 10))),
        (
            "one line",
            document(
                "VirtualService",
                "v",
                &format!(
                    "{{hosts: [{}], http: [{{redirect: {{uri: /}}}}]}}",
                    (0..count * 10).map(|n| format!("h{n}.x")).collect::<Vec<_>>().join(", ")
                ),
            ),
        ),
        (
            "one text",
            document(
                "VirtualService",
                "v",
                &format!(
                    "{{hosts: [v], http: [{{directResponse: {{status: 200, body: {{string: '{}'}}}}}}]}}",
                    "x''".repeat(count * 100)
                ),
            ),
        ),
        ("anchors", format!("a: &a [1]\nb: &b [{}]\n", "*a, ".repeat(count))),
    ]
}

/// CPU time of this thread: other work of the machine is not included.
fn spent() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(spent.tv_sec as u64, spent.tv_nsec as u32)
}

fn time(text: &str) -> Duration {
    let given = [InputFile { name: "f.yaml".to_owned(), text: Ok(text.to_owned()) }];
    let start = spent();
    let (_, problems) = analyse(&given);
    drop(problems);
    spent() - start
}

/// Four times the input takes about four times as long, and not sixteen times; short times are not compared.
#[test]
fn time_is_linear() {
    let mut slow = Vec::new();
    for ((what, little), (_, much)) in many(500).into_iter().zip(many(2000)) {
        let linear = || {
            let (first, second) = (time(&little), time(&much));
            (second < Duration::from_millis(200) || second < first * 9, first, second)
        };
        // The machine may have been busy with something else.
        let times: Vec<_> = (0..3).map(|_| linear()).take_while(|(linear, ..)| !linear).collect();
        if times.len() == 3 {
            slow.push((what, times[0].1, times[0].2));
        }
    }
    assert!(slow.is_empty(), "{slow:#?}");
}

/// 100 ms for a thousand lines, for a build without optimisation on a busy machine.
#[test]
fn validation_of_any_text_is_fast() {
    let mut slow = Vec::new();
    for (what, text) in many(1000) {
        let thousands = text.lines().count().div_ceil(1000) as u32;
        let took = (0..3).map(|_| time(&text) / thousands).min().unwrap_or_default();
        if took > Duration::from_millis(300) {
            slow.push((what, took));
        }
    }
    assert!(slow.is_empty(), "for a thousand lines: {slow:#?}");
}

#[test]
fn probable_mistakes_are_shown_with_verbose_only() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("p.yaml");
    std::fs::write(&file, document("DestinationRule", "r", "{host: registered-later}")).unwrap();
    let shown = |verbose: bool| {
        let mut out = Vec::new();
        let command = Validate { paths: vec![file.clone()], output: "text".to_owned(), verbose };
        assert_eq!(command.run(&mut out).unwrap(), ExitCode::SUCCESS);
        String::from_utf8(out).unwrap()
    };
    assert_eq!(shown(false), "1 file: 1 document valid, 0 warnings\n");
    assert!(shown(true).contains(":4:14: info: host `registered-later` means"), "{}", shown(true));
}
