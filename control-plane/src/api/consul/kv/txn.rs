//! `txn`: several operations on pairs and on the catalog, done together or not at all.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use serde_json::{Value, json};
use weft_registry_api::decode::Fields;
use weft_registry_api::error::ApiError;
use weft_registry_api::query::Query;
use weft_registry_api::reply::{self, Reply};

use crate::api::consul::select::{self, Row, rows};
use crate::api::consul::{Caller, Consul, api_error, catalog, pairs, shapes};
use crate::registry::external;
use crate::state::catalog::{Entry, Removal};
use crate::state::txn::{PairOp, PairResult, Put, Transaction, Verb};

/// Operations of one transaction: Consul's first limit, and what a transaction of the store holds with its conditions.
const MAX_OPS: usize = 64;

/// A read of the catalog within a transaction.
enum Read {
    Node(String),
    Service(String, String),
    Check(String, String),
}

/// The operations of a request.
#[derive(Default)]
struct Operations {
    transaction: Transaction,
    /// By the operations' numbers.
    reads: Vec<(usize, Read)>,
}

/// `PUT txn`
pub(in crate::api::consul) async fn transact(
    consul: &Consul,
    caller: &Caller,
    query: &Query,
    body: &[u8],
) -> Result<Reply, ApiError> {
    let ops: Vec<Value> =
        serde_json::from_slice(body).map_err(|e| ApiError::bad_request(format!("Failed to parse body: {e}")))?;
    if ops.len() > MAX_OPS {
        let text = format!("Transaction contains too many operations ({} > {MAX_OPS})", ops.len());
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, text));
    }
    let mut operations = Operations::default();
    for (number, op) in ops.into_iter().enumerate() {
        add(&mut operations, number, op, caller)
            .map_err(|e| ApiError::bad_request(format!("operation {number}: {e}")))?;
    }
    permitted(consul, caller, &operations.transaction)?;
    let done = consul.mesh.transact(caller.writer(), &operations.transaction).await.map_err(api_error)?;
    let mut results = match done {
        Ok(found) => found.into_iter().map(|(number, found)| (number, of_pair(&found))).collect::<Vec<_>>(),
        Err(failed) => return Ok(conflict(failed, query)),
    };
    let mut missing = Vec::new();
    for (number, read) in &operations.reads {
        match look_up(consul, caller, read) {
            Some(value) => results.push((*number, value)),
            None => missing.push((*number, not_there(read))),
        }
    }
    if !missing.is_empty() {
        return Ok(conflict(missing, query));
    }
    results.sort_by_key(|(number, _)| *number);
    let results: Vec<Value> = results.into_iter().map(|(_, value)| value).collect();
    Ok(reply::json(&json!({ "Results": results, "Errors": null }), query))
}

fn conflict(failed: Vec<(usize, String)>, query: &Query) -> Reply {
    let errors = failed.into_iter().map(|(number, what)| json!({ "OpIndex": number, "What": what }));
    let mut reply = reply::json(&json!({ "Results": null, "Errors": errors.collect::<Vec<_>>() }), query);
    *reply.status_mut() = StatusCode::CONFLICT;
    reply
}

fn of_pair(PairResult { key, pair, read, .. }: &PairResult) -> Value {
    let mut shape = pairs::shape(key, pair);
    if let (false, Some(map)) = (*read, shape.as_object_mut()) {
        map.insert("Value".into(), Value::Null);
    }
    json!({ "KV": shape })
}

/// Reads an operation.
fn add(operations: &mut Operations, number: usize, op: Value, caller: &Caller) -> Result<(), String> {
    let mut fields = Fields::of("an operation", op)?;
    if let Some(mut pair) = fields.object("kv", "KV")? {
        operations.transaction.pairs.push((number, pair_op(&mut pair)?));
        return Ok(());
    }
    let (kind, mut given) = match ["node", "service", "check"].into_iter().find(|kind| fields.has(kind)) {
        Some(kind) => (kind, fields.object(kind, "the operation")?.ok_or("it is empty")?),
        None => return Err("it is not one of KV, Node, Service and Check".into()),
    };
    let verb = given.text("verb")?;
    let of = if kind == "service" { given.text("node")? } else { String::new() };
    let mut given = given.object(kind, "the written object")?.ok_or_else(|| format!("{kind} is missing"))?;
    let node = if kind == "service" { of } else { given.text("node")? };
    if node.is_empty() {
        return Err(format!("{kind}: Must provide node"));
    }
    if external::is_node(&node) && verb != "get" {
        return Err(format!("the node {node} is reserved for programs that register at the control plane themselves"));
    }
    let entry = |node: String| Entry { node, namespace: caller.namespace.clone(), ..Entry::default() };
    let cas = "is not supported: the catalog has no check-and-set, use it with KV";
    match (kind, verb.as_str()) {
        ("node", "get") => operations.reads.push((number, Read::Node(node))),
        ("node", "set") => {
            let address = catalog::address(&given.text("address")?, "address")?;
            let meta = given.has("meta").then(|| given.text_map("meta")).transpose()?;
            merge(operations, Entry { address, meta, ..entry(node) })?;
        }
        ("node", "delete") => remove(operations, node, Removal::Node)?,
        ("service", "get") => operations.reads.push((number, Read::Service(node, given.text("id")?))),
        ("service", "set") => {
            merge(operations, Entry { services: vec![catalog::service(&mut given)?], ..entry(node) })?
        }
        ("service", "delete") => {
            let id = given.text("id")?;
            let id = if id.is_empty() { given.text("service")? } else { id };
            remove(operations, node, Removal::Service(id))?;
        }
        ("check", "get") => operations.reads.push((number, Read::Check(node, given.text("checkid")?))),
        ("check", "set") => merge(operations, Entry { checks: vec![catalog::check(&mut given)?], ..entry(node) })?,
        ("check", "delete") => remove(operations, node, Removal::Check(given.text("checkid")?))?,
        (kind, "cas" | "delete-cas") => return Err(format!("{kind}: the verb {verb:?} {cas}")),
        (kind, _) => return Err(format!("{kind}: {verb:?} is not a verb: get, set, delete")),
    }
    Ok(())
}

/// Writes to one node are merged.
fn merge(operations: &mut Operations, new: Entry) -> Result<(), String> {
    if operations.transaction.removals.iter().any(|(node, _)| *node == new.node) {
        return Err(format!("the node {} has both writes and removals: use two transactions", new.node));
    }
    match operations.transaction.entries.iter_mut().find(|entry| entry.node == new.node) {
        None => operations.transaction.entries.push(new),
        Some(entry) => {
            entry.address = new.address.or(entry.address);
            entry.meta = new.meta.or(entry.meta.take());
            entry.services.extend(new.services);
            entry.checks.extend(new.checks);
        }
    }
    Ok(())
}

fn remove(operations: &mut Operations, node: String, what: Removal) -> Result<(), String> {
    if operations.transaction.entries.iter().any(|entry| entry.node == node) {
        return Err(format!("the node {node} has both writes and removals: use two transactions"));
    }
    if operations.transaction.removals.iter().any(|(other, _)| *other == node) {
        return Err(format!("a transaction has at most one removal for the node {node}"));
    }
    operations.transaction.removals.push((node, what));
    Ok(())
}

fn pair_op(fields: &mut Fields) -> Result<PairOp, String> {
    let (verb, key) = (fields.text("verb")?, fields.text("key")?);
    let text = fields.text("value")?;
    let value = STANDARD.decode(&text).map_err(|_| "Value is not base64")?;
    let put = Put { value, flags: fields.large_number("flags")? };
    let (index, session) = (fields.large_number("index")?, fields.text("session")?);
    let verb = match verb.as_str() {
        "set" => Verb::Set(put),
        "cas" => Verb::Cas(put, index),
        "lock" => Verb::Lock(put, session),
        "unlock" => Verb::Unlock(put, session),
        "get" => Verb::Get,
        "get-or-empty" => Verb::GetOrEmpty,
        "get-tree" => Verb::GetTree,
        "check-index" => Verb::CheckIndex(index),
        "check-session" => Verb::CheckSession(session),
        "check-not-exists" => Verb::CheckNotExists,
        "delete" => Verb::Delete,
        "delete-tree" => Verb::DeleteTree,
        "delete-cas" => Verb::DeleteCas(index),
        other => return Err(format!("unknown KV verb {other:?}")),
    };
    if key.is_empty() && !matches!(verb, Verb::GetTree | Verb::DeleteTree) {
        return Err("Must provide key".into());
    }
    if matches!(&verb, Verb::Lock(_, session) | Verb::Unlock(_, session) if session.is_empty()) {
        return Err("missing session".into());
    }
    Ok(PairOp { key, verb })
}

/// # Errors
/// If the caller may not do one of them.
fn permitted(consul: &Consul, caller: &Caller, transaction: &Transaction) -> Result<(), ApiError> {
    for (_, PairOp { key, verb }) in &transaction.pairs {
        match verb {
            // A tree is read only if all of it may be read: a part of it would look complete.
            Verb::Get | Verb::GetOrEmpty | Verb::GetTree => caller.read_key(key)?,
            Verb::CheckIndex(_) | Verb::CheckSession(_) | Verb::CheckNotExists => caller.read_key(key)?,
            _ => caller.write_keys(key)?,
        }
    }
    if !transaction.entries.is_empty() || !transaction.removals.is_empty() {
        catalog::allowed(consul)?;
    }
    transaction.entries.iter().try_for_each(|entry| catalog::may_write(consul, caller, entry))?;
    transaction.removals.iter().try_for_each(|(node, what)| catalog::may_remove(consul, caller, node, what))
}

fn look_up(consul: &Consul, caller: &Caller, read: &Read) -> Option<Value> {
    let of_node = |node: &str| -> Vec<Row> {
        let instances = consul.mesh.read(|world| caller.instances_of_node(world, node));
        rows(consul, caller, instances, &Query::default())
    };
    match read {
        Read::Node(name) => Some(json!({ "Node": shapes::node(&select::node(consul, caller, name)?) })),
        Read::Service(node, id) => {
            let found = of_node(node).into_iter().find(|row| row.instance.service_id == *id)?;
            Some(json!({ "Service": shapes::service(&found) }))
        }
        Read::Check(node, id) => {
            let seen = select::node(consul, caller, node)?;
            let rows = of_node(node);
            let mut all = shapes::node_checks(&seen).chain(rows.iter().flat_map(shapes::service_checks));
            Some(json!({ "Check": all.find(|check| check["CheckID"] == id.as_str())? }))
        }
    }
}

fn not_there(read: &Read) -> String {
    match read {
        Read::Node(name) => format!("node {name:?} doesn't exist"),
        Read::Service(node, id) => format!("service {id:?} doesn't exist on node {node:?}"),
        Read::Check(node, id) => format!("check {id:?} doesn't exist on node {node:?}"),
    }
}
