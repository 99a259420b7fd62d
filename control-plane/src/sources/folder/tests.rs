use super::*;

const GRACE: Duration = Duration::from_secs(10);

const RULE: &str = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: order}\nspec:\n  host: order\n  subsets: [{name: v1}]\n";

fn routes(subset: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: order}}\nspec:\n  hosts: [order]\n  http:\n  - route:\n    - destination: {{host: order, subset: {subset}}}\n"
    )
}

fn folder(directory: &Path) -> PolicyFolder {
    PolicyFolder::new(directory, "cluster.local", GRACE, ())
}

fn scan(folder: &mut PolicyFolder) -> FolderState {
    folder.scan(Now::get(), Duration::ZERO);
    folder.state()
}

/// A scan as if `later` had passed.
fn scan_later(folder: &mut PolicyFolder, later: Duration) -> FolderState {
    let now = Now::get();
    folder.scan(Now { steady: now.steady + later, ..now }, Duration::ZERO);
    folder.state()
}

fn kept(state: &FolderState) -> Vec<String> {
    state.withdrawn.iter().map(|document| document.reference()).collect()
}

fn withdrawn(state: &FolderState) -> Vec<&str> {
    let of_code = state.problems.iter().filter(|problem| problem.code == Code::Withdrawn);
    of_code.map(|problem| problem.text.as_str()).collect()
}

fn names(state: &FolderState) -> Vec<String> {
    state.documents.iter().map(|document| document.reference()).collect()
}

#[test]
fn a_broken_file_keeps_its_last_good_documents() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("sub/order.yaml");
    fs::create_dir(directory.path().join("sub")).unwrap();
    fs::write(directory.path().join(".hidden.yaml"), "not: [yaml").unwrap();
    fs::write(directory.path().join("README.md"), "not: [yaml").unwrap();
    fs::write(&file, RULE).unwrap();
    let mut folder = folder(directory.path());
    let state = scan(&mut folder);
    assert_eq!(names(&state), ["DestinationRule/default/order"]);
    assert!(state.problems.is_empty());

    fs::write(&file, format!("{RULE}---\n{}", RULE.replace("name: order", "name: more").replace("host:", "hots:")))
        .unwrap();
    let state = scan(&mut folder);
    assert_eq!(names(&state), ["DestinationRule/default/order"], "nothing of the rejected version is applied");
    assert!(
        state.problems[0].to_string().contains("order.yaml:12:3: error: unknown field `hots`, did you mean `host`?"),
        "{:?}",
        state.problems
    );

    fs::write(&file, [0xff, 0xfe]).unwrap();
    assert_eq!(names(&scan(&mut folder)), ["DestinationRule/default/order"]);

    fs::remove_file(&file).unwrap();
    scan(&mut folder);
    let state = scan_later(&mut folder, GRACE);
    assert!(state.documents.is_empty() && state.withdrawn.is_empty() && state.problems.is_empty());
}

#[test]
fn an_empty_or_missing_file_keeps_its_documents_for_the_grace_time() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("rule.yaml");
    fs::write(&file, RULE).unwrap();
    let mut folder = folder(directory.path());
    scan(&mut folder);
    for text in [Some(""), Some("# to be written\n---\n"), None] {
        match text {
            Some(text) => fs::write(&file, text).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        let state = scan(&mut folder);
        assert_eq!(
            (names(&state), kept(&state)),
            (vec![], vec!["DestinationRule/default/order".to_owned()]),
            "{text:?}"
        );
        let problems = withdrawn(&state);
        let why = if text.is_some() { "the file was emptied" } else { "the file was removed" };
        assert!(
            problems.len() == 1 && problems[0].contains("is kept for 10 s") && problems[0].ends_with(why),
            "{problems:?}"
        );
        // Scans in between, as by the poll, have the same result.
        assert!(!folder.scan(Now::get(), Duration::ZERO).changed);
        fs::write(&file, RULE).unwrap();
        let state = scan(&mut folder);
        assert_eq!((names(&state).len(), kept(&state).len(), state.problems.len()), (1, 0, 0), "{text:?}");
        let state = scan_later(&mut folder, GRACE * 2);
        assert_eq!((names(&state).len(), state.problems.len()), (1, 0), "its time has ended with its return");
    }
}

#[test]
fn a_file_that_comes_back_with_an_error_keeps_its_last_good_documents() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("rule.yaml");
    fs::write(&file, RULE).unwrap();
    let mut folder = folder(directory.path());
    scan(&mut folder);
    fs::write(&file, "").unwrap();
    assert_eq!(kept(&scan(&mut folder)).len(), 1);
    fs::write(&file, &RULE[..RULE.len() - 4]).unwrap();
    scan(&mut folder);
    let state = scan_later(&mut folder, GRACE * 2);
    assert_eq!((names(&state).len(), kept(&state).len()), (1, 0));
    assert!(state.problems.iter().any(|problem| problem.severity == Severity::Error), "{:?}", state.problems);
}

#[test]
fn a_document_that_a_route_needs_outlives_the_grace_time_of_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let (rule, route) = (directory.path().join("rule.yaml"), directory.path().join("route.yaml"));
    fs::write(&rule, RULE).unwrap();
    fs::write(&route, routes("v1")).unwrap();
    let mut folder = folder(directory.path());
    assert!(scan(&mut folder).problems.is_empty());
    fs::remove_file(&rule).unwrap();
    scan(&mut folder);
    let state = scan_later(&mut folder, GRACE * 100);
    assert_eq!(kept(&state), ["DestinationRule/default/order"]);
    let problems = withdrawn(&state);
    assert!(problems[0].contains("VirtualService/default/order needs its subset `v1`"), "{problems:?}");
    assert_eq!(state.problems.len(), 1, "no warning that the rule is missing: {:?}", state.problems);

    // A new version of the route without the subset releases it at once.
    fs::write(&route, routes("v1").replace(", subset: v1", "")).unwrap();
    let state = scan_later(&mut folder, GRACE * 100);
    assert!(kept(&state).is_empty() && withdrawn(&state).is_empty(), "{state:?}");
    assert_eq!(names(&state), ["VirtualService/default/order"]);
}

#[test]
fn moving_a_document_between_files_is_not_a_withdrawal() {
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (directory.path().join("one.yaml"), directory.path().join("two.yaml"));
    fs::write(&one, RULE).unwrap();
    let mut folder = folder(directory.path());
    scan(&mut folder);
    fs::rename(&one, &two).unwrap();
    let state = scan(&mut folder);
    assert_eq!((names(&state).len(), kept(&state).len(), state.problems.len()), (1, 0, 0), "{state:?}");
    // Left out beside others: the text is complete, so that it is withdrawn at once.
    fs::write(&two, format!("{RULE}---\n{}", routes("v1"))).unwrap();
    scan(&mut folder);
    fs::write(&two, RULE).unwrap();
    let state = scan(&mut folder);
    assert_eq!((names(&state), kept(&state).len()), (vec!["DestinationRule/default/order".to_owned()], 0));
}

#[test]
fn files_are_checked_together() {
    let directory = tempfile::tempdir().unwrap();
    let (rule, route) = (directory.path().join("rule.yaml"), directory.path().join("route.yaml"));
    fs::write(&rule, RULE).unwrap();
    fs::write(&route, routes("v2")).unwrap();
    let mut folder = folder(directory.path());
    let state = scan(&mut folder);
    assert_eq!(names(&state), ["DestinationRule/default/order"], "a file that was never right gives nothing");
    assert!(state.problems[0].text.contains("no subset `v2`"), "{:?}", state.problems);

    fs::write(&route, routes("v1")).unwrap();
    assert_eq!(scan(&mut folder).documents.len(), 2);

    // The rule drops a subset that the unchanged route needs: it is pending until the route follows.
    fs::write(&rule, RULE.replace("v1}", "v3}")).unwrap();
    let state = scan(&mut folder);
    assert!(state.documents.iter().any(|document| document.yaml.contains("v1}")));
    assert!(state.problems.iter().any(|problem| problem.text.contains("no subset `v1`")), "{:?}", state.problems);
    fs::write(&route, routes("v3")).unwrap();
    let state = scan(&mut folder);
    assert!(state.problems.is_empty(), "{:?}", state.problems);
    assert!(state.documents.iter().all(|document| document.yaml.contains("v3")));
}

#[test]
fn an_object_in_two_files_is_refused_in_the_later_one() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("b.yaml"), RULE).unwrap();
    let mut folder = folder(directory.path());
    scan(&mut folder);
    fs::write(directory.path().join("c.yaml"), RULE).unwrap();
    let state = scan(&mut folder);
    assert_eq!(state.documents.len(), 1);
    assert!(
        state.problems[0].to_string().contains("c.yaml:1:1: error: DestinationRule/default/order is defined already")
    );
}

#[test]
fn a_file_is_read_only_after_it_has_settled() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), RULE).unwrap();
    let mut folder = folder(directory.path());
    let written = fs::metadata(directory.path().join("a.yaml")).unwrap().modified().unwrap();
    let scan = folder.scan(Now { wall: written + Duration::from_millis(10), ..Now::get() }, SETTLE);
    assert_eq!(scan, Scan { changed: false, unsettled: Some(SETTLE - Duration::from_millis(10)) });
    let scan = folder.scan(Now { wall: written + SETTLE, ..Now::get() }, SETTLE);
    assert_eq!(scan, Scan { changed: true, unsettled: None });
}

#[tokio::test]
async fn an_edit_arrives_well_under_a_second() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), RULE).unwrap();
    let mut state = folder(directory.path()).start().unwrap();
    assert_eq!(state.borrow_and_update().documents.len(), 1);
    let start = Instant::now();
    fs::write(directory.path().join("b.yaml"), routes("v1")).unwrap();
    tokio::time::timeout(Duration::from_secs(5), state.changed()).await.unwrap().unwrap();
    assert_eq!(state.borrow_and_update().documents.len(), 2);
    assert!(start.elapsed() < Duration::from_millis(900), "{:?}", start.elapsed());
    assert!(folder(&directory.path().join("missing")).start().is_err());
}

#[test]
fn scanning_unchanged_files_reads_none_in_linear_time() {
    let directory = tempfile::tempdir().unwrap();
    for n in 0..4_000 {
        fs::write(directory.path().join(format!("f{n}.yaml")), "").unwrap();
    }
    let mut folder = folder(directory.path());
    scan(&mut folder);
    let start = Instant::now();
    assert_eq!(folder.scan(Now::get(), Duration::ZERO), Scan::default());
    // Compared in pairs they took over a second.
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
}

#[test]
fn the_pause_between_scans_is_two_hundred_times_their_duration() {
    let directory = tempfile::tempdir().unwrap();
    let mut folder = folder(directory.path());
    let began = |ago| Instant::now().checked_sub(Duration::from_millis(ago)).unwrap();
    assert_eq!(folder.pause(Scan::default(), Instant::now()), POLL);
    assert!(folder.pause(Scan::default(), began(20)) >= Duration::from_secs(4));
    assert_eq!(folder.pause(Scan::default(), began(10_000)), MAX_POLL);
    let rest = Duration::from_millis(7);
    assert_eq!(folder.pause(Scan { unsettled: Some(rest), ..Scan::default() }, began(20)), rest);
    // A kept document is checked when its time is over.
    folder.grace.withdraw(Arc::new(parse_policies("f.yaml", RULE).documents.remove(0)), Cause::Removed, Instant::now());
    assert!(folder.pause(Scan::default(), began(10_000)) <= GRACE);
}
