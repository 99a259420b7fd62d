//! `txn`.

use serde_json::json;

use super::catalog::by_token;
use super::*;

async fn txn(fixture: &Fixture, caller: &Caller, ops: Value) -> (u16, Value) {
    let request = Request::put("/v1/txn").body(Bytes::from(ops.to_string())).unwrap();
    let reply = answer(&fixture.consul, caller, request).await;
    let body = serde_json::from_slice(reply.body());
    (reply.status().as_u16(), body.unwrap_or_else(|_| String::from_utf8_lossy(reply.body()).into()))
}

fn kv(verb: &str, key: &str, more: Value) -> Value {
    let mut op = json!({ "Verb": verb, "Key": key });
    op.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "KV": op })
}

fn set(key: &str) -> Value {
    kv("set", key, json!({ "Value": "eA==", "Flags": 7 }))
}

#[tokio::test]
async fn keys_are_changed_together_and_seen_by_later_operations() {
    let fixture = fixture().await;
    let me = caller("default", 1);
    let (status, body) = txn(&fixture, &me, json!([set("a/1"), set("a/2"), kv("get", "a/1", json!({}))])).await;
    assert_eq!((status, &body["Errors"]), (200, &Value::Null));
    let results = body["Results"].as_array().unwrap();
    assert_eq!((&results[0]["KV"]["Value"], &results[2]["KV"]["Value"]), (&Value::Null, &json!("eA==")));
    let index = &results[0]["KV"]["ModifyIndex"];
    assert_eq!((index, &results[0]["KV"]["Flags"]), (&results[1]["KV"]["CreateIndex"], &json!(7)));
    assert_eq!(&fixture.get("/v1/kv/a/1").await[0]["ModifyIndex"], index);
    // A tree, a deletion in the middle, and a missing key.
    let ops = json!([
        kv("delete", "a/1", json!({})),
        set("a/3"),
        kv("get-tree", "a/", json!({})),
        kv("check-not-exists", "a/1", json!({})),
        kv("get-or-empty", "a/1", json!({})),
        kv("cas", "a/2", json!({ "Index": index, "Value": "" })),
        kv("delete-tree", "a/3", json!({})),
    ]);
    let (status, body) = txn(&fixture, &me, ops).await;
    let keys: Vec<_> = body["Results"].as_array().unwrap().iter().map(|r| r["KV"]["Key"].as_str().unwrap()).collect();
    assert_eq!((status, keys), (200, vec!["a/3", "a/2", "a/3", "a/1", "a/2"]));
    let absent = &body["Results"][3]["KV"];
    assert_eq!((&absent["Key"], &absent["ModifyIndex"]), (&json!("a/1"), &json!(0)), "{body}");
    assert_eq!(fixture.get("/v1/kv/a/?keys").await, json!(["a/2"]));
}

#[tokio::test]
async fn a_failed_operation_undoes_the_transaction_and_is_reported() {
    let fixture = fixture().await;
    let me = caller("default", 1);
    assert_eq!(txn(&fixture, &me, json!([set("a")])).await.0, 200);
    for (op, words) in [
        (kv("cas", "a", json!({ "Index": 1 })), "failed to set key \"a\", index is stale"),
        (kv("cas", "a", json!({ "Index": 0 })), "index is stale"),
        (kv("delete-cas", "a", json!({ "Index": 1 })), "failed to delete key \"a\", index is stale"),
        (kv("get", "gone", json!({})), "key \"gone\" doesn't exist"),
        (kv("check-index", "a", json!({ "Index": 1 })), "failed index check for key \"a\""),
        (kv("check-session", "a", json!({ "Session": "x" })), "failed session check for key \"a\""),
        (kv("check-not-exists", "a", json!({})), "key \"a\" exists"),
        (kv("lock", "a", json!({ "Session": "none" })), "invalid session"),
        (kv("unlock", "a", json!({ "Session": "none" })), "lock isn't held"),
        (json!({ "Node": { "Verb": "get", "Node": { "Node": "absent" } } }), "node \"absent\" doesn't exist"),
    ] {
        let (status, body) = txn(&fixture, &me, json!([kv("get", "a", json!({})), op])).await;
        assert_eq!((status, &body["Results"], &body["Errors"][0]["OpIndex"]), (409, &Value::Null, &json!(1)), "{op}");
        assert!(body["Errors"][0]["What"].as_str().unwrap().contains(words), "{body}");
    }
    let failing = kv("check-index", "a", json!({ "Index": 1 }));
    assert_eq!(txn(&fixture, &me, json!([set("b"), failing])).await.0, 409);
    assert_eq!(fixture.ask("GET", "/v1/kv/b", &me).await.status(), 404, "nothing was done");
    for (ops, status, words) in [
        (json!({}), 400, "Failed to parse body"),
        (json!([{}]), 400, "operation 0: it is not one of KV"),
        (json!([kv("swap", "a", json!({}))]), 400, "unknown KV verb"),
        (json!([kv("set", "a", json!({ "Value": "%" }))]), 400, "not base64"),
        (json!([kv("set", "", json!({}))]), 400, "Must provide key"),
        (json!([kv("lock", "a", json!({}))]), 400, "missing session"),
        (json!([{ "Check": { "Verb": "cas", "Check": { "Node": "n" } } }]), 400, "is not supported"),
        (Value::Array(vec![set("a"); 65]), 413, "too many operations (65 > 64)"),
    ] {
        let (got, body) = txn(&fixture, &me, ops).await;
        assert!(got == status && body.as_str().unwrap().contains(words), "{got} {body}");
    }
    // A caller without the right to write one of the keys changes none.
    let (status, _) = txn(&fixture, &by_token(&["db"]), json!([set("a")])).await;
    assert_eq!(status, 403);
}

#[tokio::test]
async fn transactions_lock_and_unlock() {
    let fixture = fixture().await;
    let me = caller("default", 1);
    let create = fixture.ask("PUT", "/v1/session/create", &me).await;
    let session = serde_json::from_slice::<Value>(create.body()).unwrap()["ID"].clone();
    let with = json!({ "Session": session, "Value": "eA==" });
    let ops =
        json!([kv("lock", "a", with.clone()), kv("lock", "b", with.clone()), kv("check-session", "a", with.clone())]);
    let (status, body) = txn(&fixture, &me, ops).await;
    assert_eq!((status, &body["Results"][2]["KV"]["Session"]), (200, &session), "{body}");
    assert_eq!(body["Results"][1]["KV"]["LockIndex"], 1);
    let other = fixture.ask("PUT", "/v1/session/create", &me).await;
    let other = serde_json::from_slice::<Value>(other.body()).unwrap()["ID"].clone();
    let (status, body) = txn(&fixture, &me, json!([kv("lock", "a", json!({ "Session": other }))])).await;
    assert!(status == 409 && body["Errors"][0]["What"] == "failed to lock key \"a\", lock is already held");
    assert_eq!(txn(&fixture, &me, json!([kv("unlock", "a", with)])).await.0, 200);
    assert!(fixture.get("/v1/kv/a").await[0]["Session"].is_null());
}

#[tokio::test]
async fn the_catalog_is_written_and_read() {
    let fixture = fixture().await;
    let db = by_token(&["db"]);
    let ops = json!([
        { "Node": { "Verb": "set", "Node": { "Node": "db1", "Address": "192.0.2.7", "Meta": { "rack": "a" } } } },
        { "Service": { "Verb": "set", "Node": "db1", "Service": { "Service": "db", "ID": "db-1", "Port": 5432 } } },
        { "Check": { "Verb": "set", "Check": { "Node": "db1", "CheckID": "ping", "ServiceID": "db-1", "Status": "passing" } } },
    ]);
    let (status, body) = txn(&fixture, &db, ops).await;
    assert_eq!((status, &body["Errors"]), (200, &Value::Null), "{body}");
    let found = &fixture.get("/v1/health/service/db").await[0];
    assert_eq!((&found["Node"]["Meta"]["rack"], &found["Checks"][1]["Status"]), (&json!("a"), &json!("passing")));
    let reads = json!([
        { "Node": { "Verb": "get", "Node": { "Node": "db1" } } },
        { "Service": { "Verb": "get", "Node": "db1", "Service": { "ID": "db-1" } } },
        { "Check": { "Verb": "get", "Check": { "Node": "db1", "CheckID": "ping" } } },
    ]);
    let (status, body) = txn(&fixture, &db, reads).await;
    assert_eq!((status, &body["Results"][1]["Service"]["Port"]), (200, &json!(5432)), "{body}");
    assert_eq!(body["Results"][2]["Check"]["CheckID"], "ping");
    // A node of another namespace is not written, whatever the other operations are.
    let other = json!([{ "Service": { "Verb": "set", "Node": "db1", "Service": { "Service": "cache", "Port": 1 } } }]);
    assert_eq!(txn(&fixture, &db, other).await.0, 403);
    let both = json!([
        { "Check": { "Verb": "delete", "Check": { "Node": "db1", "CheckID": "ping" } } },
        { "Service": { "Verb": "delete", "Node": "db1", "Service": { "ID": "db-1" } } },
    ]);
    assert_eq!(txn(&fixture, &db, both).await.0, 400);
    let gone = json!([{ "Node": { "Verb": "delete", "Node": { "Node": "db1" } } }]);
    assert_eq!(txn(&fixture, &db, gone).await.0, 200);
    assert_eq!(fixture.get("/v1/health/service/db").await, json!([]));
}
