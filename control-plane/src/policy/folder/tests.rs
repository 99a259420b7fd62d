use std::time::Instant;

use super::*;

const RULE: &str = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: order}\nspec:\n  host: order\n  subsets: [{name: v1}]\n";

fn routes(subset: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: order}}\nspec:\n  hosts: [order]\n  http:\n  - route:\n    - destination: {{host: order, subset: {subset}}}\n"
    )
}

fn scan(folder: &mut PolicyFolder) -> FolderState {
    folder.scan(SystemTime::now(), Duration::ZERO);
    folder.state()
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
    let mut folder = PolicyFolder::new(directory.path(), "cluster.local");
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
    let state = scan(&mut folder);
    assert!(state.documents.is_empty() && state.problems.is_empty());
}

#[test]
fn files_are_checked_together() {
    let directory = tempfile::tempdir().unwrap();
    let (rule, route) = (directory.path().join("rule.yaml"), directory.path().join("route.yaml"));
    fs::write(&rule, RULE).unwrap();
    fs::write(&route, routes("v2")).unwrap();
    let mut folder = PolicyFolder::new(directory.path(), "cluster.local");
    let state = scan(&mut folder);
    assert_eq!(names(&state), ["DestinationRule/default/order"], "a file that was never right gives nothing");
    assert!(state.problems[0].text.contains("no subset `v2`"), "{:?}", state.problems);

    fs::write(&route, routes("v1")).unwrap();
    assert_eq!(scan(&mut folder).documents.len(), 2);

    // The rule drops what the unchanged route needs: it waits until the route follows.
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
fn the_same_object_in_two_files_is_refused_where_it_came_second() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("b.yaml"), RULE).unwrap();
    let mut folder = PolicyFolder::new(directory.path(), "cluster.local");
    scan(&mut folder);
    fs::write(directory.path().join("c.yaml"), RULE).unwrap();
    let state = scan(&mut folder);
    assert_eq!(state.documents.len(), 1);
    assert!(
        state.problems[0].to_string().contains("c.yaml:1:1: error: DestinationRule/default/order is defined already")
    );
}

#[test]
fn a_file_being_written_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), RULE).unwrap();
    let mut folder = PolicyFolder::new(directory.path(), "cluster.local");
    let written = fs::metadata(directory.path().join("a.yaml")).unwrap().modified().unwrap();
    let scan = folder.scan(written + Duration::from_millis(10), SETTLE);
    assert_eq!(scan, Scan { changed: false, unsettled: true });
    let scan = folder.scan(written + SETTLE, SETTLE);
    assert_eq!(scan, Scan { changed: true, unsettled: false });
}

#[tokio::test]
async fn an_edit_arrives_well_under_a_second() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), RULE).unwrap();
    let mut state = PolicyFolder::start(directory.path(), "cluster.local").unwrap();
    assert_eq!(state.borrow_and_update().documents.len(), 1);
    let start = Instant::now();
    fs::write(directory.path().join("b.yaml"), routes("v1")).unwrap();
    tokio::time::timeout(Duration::from_secs(5), state.changed()).await.unwrap().unwrap();
    assert_eq!(state.borrow_and_update().documents.len(), 2);
    assert!(start.elapsed() < Duration::from_millis(900), "{:?}", start.elapsed());
    assert!(PolicyFolder::start(directory.path().join("missing"), "cluster.local").is_err());
}
