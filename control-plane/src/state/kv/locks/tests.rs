use super::*;
use crate::state::pairs::Only;
use crate::state::tests::{node, open, store};

const N: &str = "default";

fn session(ttl_ms: u64, lock_delay_ms: u64) -> StoredSession {
    StoredSession { node: "n1".into(), checks: vec![SERF_HEALTH.into()], ttl_ms, lock_delay_ms, ..Default::default() }
}

/// A mesh with the node n1, and that node's session.
async fn mesh(dir: &std::path::Path) -> (Arc<Mesh>, u64) {
    let mesh = open(store(dir).await).await;
    let of_node = mesh.begin_session("n1", node(1)).await.unwrap();
    (mesh, of_node)
}

async fn until(what: &str, mut check: impl FnMut() -> bool) {
    let checked = async {
        while !check() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(10), checked).await.is_ok(), "{what}");
}

#[tokio::test]
async fn pairs_are_set_compared_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let (mesh, _) = mesh(dir.path()).await;
    let index = || mesh.read_pairs(|pairs| pairs.get(N, "a").map(|pair| pair.modify_index));
    assert!(!mesh.put_pair(N, "a", b"1", 0, Only::IfIndex(7)).await.unwrap());
    assert!(mesh.put_pair(N, "a", b"1", 42, Only::IfIndex(0)).await.unwrap());
    assert!(!mesh.put_pair(N, "a", b"2", 0, Only::IfIndex(0)).await.unwrap(), "it is there");
    let first = index().unwrap();
    assert!(mesh.put_pair(N, "a", b"2", 0, Only::IfIndex(first)).await.unwrap());
    assert!(index().unwrap() > first);
    assert!(!mesh.delete_pair(N, "a", Only::IfIndex(first)).await.unwrap());
    assert!(mesh.delete_pair(N, "a", Only::IfIndex(index().unwrap())).await.unwrap());
    assert_eq!(index(), None);
    assert!(mesh.delete_pair(N, "a", Only::Always).await.unwrap(), "deleting a missing pair succeeds");
    for key in ["x/1", "x/2", "y"] {
        mesh.put_pair(N, key, b"", 0, Only::Always).await.unwrap();
    }
    mesh.delete_pairs(N, "x/").await.unwrap();
    assert_eq!(mesh.read_pairs(|pairs| pairs.list(N, "").map(|(key, _)| key.to_owned()).collect::<Vec<_>>()), ["y"]);
    assert!(mesh.read_pairs(|pairs| pairs.list("other", "").next().is_none()));
}

#[tokio::test]
async fn a_lock_belongs_to_one_session_until_its_lock_delay_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (mesh, _) = mesh(dir.path()).await;
    let one = mesh.create_session(N, session(0, 300)).await.unwrap();
    let two = mesh.create_session(N, session(0, 0)).await.unwrap();
    assert!(mesh.lock_pair(N, "leader", b"one", 0, &one).await.unwrap());
    assert!(mesh.lock_pair(N, "leader", b"again", 0, &one).await.unwrap(), "its own");
    assert!(!mesh.lock_pair(N, "leader", b"two", 0, &two).await.unwrap());
    assert!(!mesh.unlock_pair(N, "leader", b"two", 0, &two).await.unwrap());
    let pair = || mesh.read_pairs(|pairs| pairs.get(N, "leader").cloned()).unwrap();
    assert_eq!((pair().lock_index, pair().session.as_str(), pair().value.as_slice()), (1, &*one, &b"again"[..]));
    assert!(mesh.put_pair(N, "leader", b"without", 0, Only::Always).await.unwrap());
    assert_eq!(pair().session, one, "a write without a lock does not take it away");
    mesh.destroy_session(N, &one).await.unwrap();
    assert_eq!((pair().session.as_str(), pair().value.as_slice()), ("", &b"without"[..]));
    assert!(!mesh.lock_pair(N, "leader", b"two", 0, &two).await.unwrap(), "the lock delay");
    until("the lock delay ends", || !mesh.lock().delays.contains("default/leader")).await;
    assert!(mesh.lock_pair(N, "leader", b"two", 0, &two).await.unwrap());
    assert_eq!(pair().lock_index, 2);
    assert!(mesh.unlock_pair(N, "leader", b"", 0, &two).await.unwrap());
    let unknown = mesh.lock_pair(N, "leader", b"", 0, &one).await.unwrap_err();
    assert!(unknown.to_string().contains("invalid session"), "{unknown}");
}

#[tokio::test]
async fn an_expired_session_deletes_its_pairs() {
    let dir = tempfile::tempdir().unwrap();
    let (mesh, _) = mesh(dir.path()).await;
    let id = mesh.create_session(N, StoredSession { delete: true, ..session(150, 0) }).await.unwrap();
    mesh.lock_pair(N, "a", b"1", 0, &id).await.unwrap();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(mesh.renew_session(N, &id).await.unwrap());
    }
    until("it ends", || mesh.read_sessions(|all| all.get(N, &id).is_none())).await;
    assert!(mesh.read_pairs(|pairs| pairs.get(N, "a").is_none()));
    assert!(!mesh.renew_session(N, &id).await.unwrap());
}

#[tokio::test]
async fn a_session_ends_with_its_checks_and_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (mesh, of_node) = mesh(dir.path()).await;
    let check = |status: &str| v1::CheckUpdate {
        check: Some(v1::Check { check_id: "disk".into(), status: status.into(), ..Default::default() }),
        removed: false,
    };
    let of_disk = StoredSession { checks: vec!["disk".into()], ..session(0, 0) };
    let missing = mesh.create_session(N, of_disk.clone()).await.unwrap_err();
    assert!(missing.to_string().contains("Missing check"), "{missing}");
    mesh.update_check("n1", of_node, check("passing")).await.unwrap();
    let id = mesh.create_session(N, of_disk.clone()).await.unwrap();
    let other = mesh.create_session(N, session(60_000, 0)).await.unwrap();
    mesh.update_check("n1", of_node, check("critical")).await.unwrap();
    until("it ends with its check", || mesh.read_sessions(|all| all.get(N, &id).is_none())).await;
    assert!(mesh.create_session(N, of_disk).await.unwrap_err().to_string().contains("critical"));
    assert!(mesh.create_session(N, StoredSession { node: "n2".into(), ..session(0, 0) }).await.is_err());
    drop(mesh);
    let mesh = open(store(dir.path()).await).await;
    assert!(mesh.renew_session(N, &other).await.unwrap());
    assert_eq!(mesh.read_sessions(|all| all.list(N).count()), 1);
}
