use serde_json::json;
use weft_proto::v1::StoredSession;

use super::*;
use crate::identity::bounds;
use crate::identity::caller::Writer;
use crate::state::Refusal;
use crate::state::pairs::Only;
use crate::state::tests::{node, open, store};
use crate::state::txn::{PairOp, Put, Transaction, Verb};

const A: Writer<'_> = Writer { namespace: "default", identity: "spiffe://cluster.local/ns/default/sa/a" };
const B: Writer<'_> = Writer { namespace: "default", identity: "spiffe://cluster.local/ns/default/sa/b" };
const KEY: usize = "default/k1".len();

fn why<T>(result: Result<T, Refusal>) -> String {
    match result {
        Err(Refusal::Exceeded(exceeded)) => exceeded.0,
        Err(other) => panic!("another refusal: {other}"),
        Ok(_) => panic!("it is done"),
    }
}

fn of_pairs(mesh: &Mesh, writer: Writer<'_>) -> Account {
    mesh.read_pairs(|pairs| pairs.written.of(writer.identity))
}

#[tokio::test]
async fn the_pairs_of_an_identity_have_a_budget_that_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let put = async |mesh: &Mesh, writer: Writer<'_>, key: &str, bytes: usize| {
        mesh.put_pair(writer, key, &vec![b'x'; bytes], 0, Only::Always).await
    };
    {
        let mesh = open(store(dir.path()).await).await;
        put(&mesh, A, "k1", 1000).await.unwrap();
        put(&mesh, A, "k1", 900).await.unwrap();
        put(&mesh, A, "k2", 100).await.unwrap();
    }
    let mesh = open(store(dir.path()).await).await;
    assert_eq!(of_pairs(&mesh, A), Account { count: 2, bytes: 1000 + 2 * KEY });
    mesh.lock().pairs.written.add(A.identity, 0, bounds::PAIRS.bytes - 2000);
    put(&mesh, A, "k3", 500).await.unwrap();
    let refused = why(put(&mesh, A, "k4", 500).await);
    for words in [A.identity, "67108864 bytes together", "delete keys"] {
        assert!(refused.contains(words), "{refused}");
    }
    let transaction = |verb: Verb| {
        let op = |key: &str| PairOp { key: key.into(), verb: verb.clone() };
        Transaction { pairs: vec![(0, op("k5")), (1, op("k6"))], ..Transaction::default() }
    };
    let set = transaction(Verb::Set(Put { value: vec![b'x'; 240], flags: 0 }));
    assert!(why(mesh.transact(A, &set).await).contains("2 more of 500 bytes"), "each would be allowed alone");
    assert!(put(&mesh, A, "k1", 900).await.unwrap(), "a replacement of the same size");
    let before = of_pairs(&mesh, A);
    assert!(put(&mesh, B, "k1", 950).await.unwrap() && put(&mesh, B, "k4", 500).await.unwrap(), "of another identity");
    assert_eq!(of_pairs(&mesh, A), Account { count: before.count - 1, bytes: before.bytes - 900 - KEY });
    put(&mesh, A, "k4", 500).await.unwrap();
    mesh.delete_pairs("default", "k").await.unwrap();
    assert_eq!((of_pairs(&mesh, A).count, of_pairs(&mesh, B)), (0, Account::default()));
    mesh.lock().pairs.written.add(A.identity, bounds::PAIRS.count, 0);
    assert!(why(put(&mesh, A, "k1", 1).await).contains("at most 50000"));
    let without = Writer { identity: "", ..A };
    assert!(put(&mesh, without, "k1", 1).await.unwrap(), "a program without a sidecar");
}

#[tokio::test]
async fn concurrent_writes_stay_within_the_budget_and_release_keeps_the_writer() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = open(store(dir.path()).await).await;
    mesh.begin_session("n1", node(1)).await.unwrap();
    let session = StoredSession { node: "n1".into(), ..Default::default() };
    let session = mesh.create_session(A, session).await.unwrap();
    assert!(mesh.lock_pair(A, "k0", b"1", 0, &session).await.unwrap());
    mesh.destroy_session("default", &session).await.unwrap();
    assert_eq!(of_pairs(&mesh, A), Account { count: 1, bytes: KEY + 1 });
    mesh.lock().pairs.written.add(A.identity, 0, bounds::PAIRS.bytes - 1000);
    let keys: Vec<String> = (1..9).map(|n| format!("k{n}")).collect();
    let writes = keys.iter().map(|key| mesh.put_pair(A, key, &[0; 300], 0, Only::Always));
    let done = futures::future::join_all(writes).await;
    assert!((1..=3).contains(&done.iter().filter(|result| result.is_ok()).count()), "{done:?}");
}

#[tokio::test]
async fn sessions_queries_and_config_entries_have_bounds_and_budgets() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = open(store(dir.path()).await).await;
    mesh.begin_session("n1", node(1)).await.unwrap();
    let session = StoredSession { node: "n1".into(), ..Default::default() };
    let named = StoredSession { name: "x".repeat(513), ..session.clone() };
    assert!(why(mesh.create_session(A, named).await).contains("the field Name has 513 bytes, at most 512"));
    let checks = vec!["serfHealth".to_owned(); 65];
    let of_many = StoredSession { checks, ..session.clone() };
    assert!(why(mesh.create_session(A, of_many).await).contains("65 checks, at most 64"));
    let of_long = StoredSession { checks: vec!["x".repeat(513)], ..session.clone() };
    assert!(why(mesh.create_session(A, of_long).await).contains("the field Checks"));
    mesh.create_session(A, session.clone()).await.unwrap();
    mesh.lock().locks.written.add(A.identity, bounds::SESSIONS.count - 1, 0);
    assert!(why(mesh.create_session(A, session.clone()).await).contains("written 5000 sessions"));
    mesh.create_session(B, session).await.unwrap();

    let query = |bytes: usize| json!({ "Name": "", "Service": { "ServiceMeta": { "k": "x".repeat(bytes) } } });
    let refused = why(mesh.put_query(A, "q1", Some(&query(bounds::QUERY)), true).await);
    assert!(refused.contains("too many for one of the prepared queries, at most 16384"), "{refused}");
    assert!(mesh.put_query(A, "q1", Some(&query(1)), true).await.unwrap());
    let seen = mesh.read_queries(|all| all.get("default", "q1").cloned()).unwrap();
    assert_eq!((seen.value, seen.writer.as_str()), (query(1), A.identity), "the writer is not in the document");
    mesh.lock().queries.written.add(A.identity, bounds::QUERIES.count - 1, 0);
    assert!(why(mesh.put_query(A, "q2", Some(&query(1)), true).await).contains("written 1000 prepared queries"));
    assert!(mesh.put_query(A, "q1", Some(&query(1)), false).await.unwrap(), "a replacement");
    assert!(mesh.put_query(A, "q1", None, false).await.unwrap());
    assert!(mesh.put_query(A, "q2", Some(&query(1)), true).await.unwrap());

    // A program without a sidecar cannot write on another identity's account.
    let forged = json!({ "Name": "", "$writer": B.identity });
    assert!(mesh.put_query("default", "q3", Some(&forged), true).await.unwrap());
    let seen = mesh.read_queries(|all| all.get("default", "q3").cloned()).unwrap();
    assert_eq!((seen.value, seen.writer.as_str()), (json!({ "Name": "" }), ""));

    let entry = |bytes: usize| json!({ "Kind": "service-router", "Name": "a", "Meta": { "k": "x".repeat(bytes) } });
    let put = async |writer: Writer<'_>, id: &str, bytes: usize| {
        mesh.put_config(writer, id, Some(&entry(bytes)), None, (Vec::new(), &[])).await
    };
    assert!(why(put(A, "service-router/a", bounds::CONFIG_ENTRY).await).contains("at most 131072"));
    assert!(put(A, "service-router/a", 1).await.unwrap());
    mesh.lock().config_entries.written.add(A.identity, 0, bounds::CONFIG_ENTRIES.bytes - 1000);
    assert!(why(put(A, "service-router/b", 2000).await).contains("16777216 bytes together"));
    assert!(put(B, "service-router/b", 2000).await.unwrap());
}
