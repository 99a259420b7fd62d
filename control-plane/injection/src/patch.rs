//! A JSON Patch (RFC 6902) that is made by changing a document: each change is recorded as an operation.

use serde_json::{Map, Value, json};

/// Operations, and the document with them.
#[derive(Debug, Clone)]
pub struct Patch {
    operations: Vec<Value>,
    document: Value,
}

/// A part of the document has another type than the change needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongType(pub String);

impl Patch {
    /// A patch without operations.
    pub fn of(document: Value) -> Self {
        Self { operations: Vec::new(), document }
    }

    /// The document as it is after the operations.
    pub fn document(&self) -> &Value {
        &self.document
    }

    /// The operations, and the document as it is after them.
    pub fn finish(self) -> (Vec<Value>, Value) {
        (self.operations, self.document)
    }

    /// Sets a member of an object, which is created with its parents if it is absent.
    pub fn set(&mut self, path: &[&str], value: Value) -> Result<(), WrongType> {
        let Some((last, parents)) = path.split_last() else { return Ok(()) };
        self.ensure(parents)?;
        let pointer = pointer(path);
        let parent = self.document.pointer_mut(&self::pointer(parents));
        let object = parent.and_then(Value::as_object_mut).ok_or_else(|| WrongType(self::pointer(parents)))?;
        let operation = match object.get(*last) {
            Some(old) if *old == value => return Ok(()),
            Some(_) => "replace",
            None => "add",
        };
        object.insert((*last).to_owned(), value.clone());
        self.operations.push(json!({ "op": operation, "path": pointer, "value": value }));
        Ok(())
    }

    /// Sets a member of an object unless it is there.
    pub fn set_default(&mut self, path: &[&str], value: Value) -> Result<(), WrongType> {
        if self.document.pointer(&pointer(path)).is_some_and(|found| !found.is_null()) {
            return Ok(());
        }
        self.set(path, value)
    }

    /// Adds an item to a list, which is created if it is absent: at `index`, or at the end.
    pub fn insert(&mut self, path: &[&str], index: Option<usize>, value: Value) -> Result<(), WrongType> {
        if self.document.pointer(&pointer(path)).is_none_or(Value::is_null) {
            self.set(path, Value::Array(Vec::new()))?;
        }
        let pointer = pointer(path);
        let list = self.document.pointer_mut(&pointer).and_then(Value::as_array_mut);
        let list = list.ok_or_else(|| WrongType(pointer.clone()))?;
        let at = index.filter(|index| *index < list.len());
        list.insert(at.unwrap_or(list.len()), value.clone());
        let place = at.map_or_else(|| "-".to_owned(), |index| index.to_string());
        self.operations.push(json!({ "op": "add", "path": format!("{pointer}/{place}"), "value": value }));
        Ok(())
    }

    /// Removes a member of an object, if it is there.
    pub fn remove(&mut self, path: &[&str]) {
        let Some((last, parents)) = path.split_last() else { return };
        let parent = self.document.pointer_mut(&pointer(parents)).and_then(Value::as_object_mut);
        if parent.and_then(|object| object.remove(*last)).is_some() {
            self.operations.push(json!({ "op": "remove", "path": pointer(path) }));
        }
    }

    /// Creates the objects of a path that are absent or null.
    fn ensure(&mut self, path: &[&str]) -> Result<(), WrongType> {
        for depth in 1..=path.len() {
            let pointer = pointer(&path[..depth]);
            match self.document.pointer_mut(&pointer) {
                Some(Value::Object(_)) => continue,
                // A step through a list has to exist.
                Some(Value::Array(_)) if depth < path.len() => continue,
                Some(found @ Value::Null) => *found = Value::Object(Map::new()),
                Some(_) => return Err(WrongType(pointer)),
                None => {
                    let parent = self.document.pointer_mut(&self::pointer(&path[..depth - 1]));
                    let object = parent.and_then(Value::as_object_mut).ok_or_else(|| WrongType(pointer.clone()))?;
                    object.insert(path[depth - 1].to_owned(), Value::Object(Map::new()));
                }
            }
            self.operations.push(json!({ "op": "add", "path": pointer, "value": {} }));
        }
        Ok(())
    }
}

/// A JSON Pointer (RFC 6901).
fn pointer(path: &[&str]) -> String {
    path.iter().map(|part| format!("/{}", part.replace('~', "~0").replace('/', "~1"))).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn operations_give_the_document() {
        let before = json!({ "metadata": { "labels": null }, "spec": { "list": [1], "n": 1 } });
        let mut patch = Patch::of(before.clone());
        patch.set(&["metadata", "annotations", "a/b~c"], json!("x")).unwrap();
        patch.set(&["metadata", "labels", "app"], json!("y")).unwrap();
        patch.set(&["spec", "n"], json!(1)).unwrap();
        patch.set(&["spec", "n"], json!(2)).unwrap();
        patch.set_default(&["spec", "n"], json!(3)).unwrap();
        patch.insert(&["spec", "list"], Some(0), json!(0)).unwrap();
        patch.insert(&["spec", "list"], Some(9), json!(2)).unwrap();
        patch.insert(&["spec", "other"], None, json!({ "name": "b" })).unwrap();
        patch.set(&["spec", "other", "0", "env"], json!([])).unwrap();
        patch.remove(&["spec", "absent"]);
        assert_eq!(patch.set(&["spec", "n", "deeper"], json!(1)), Err(WrongType("/spec/n".into())));
        assert_eq!(patch.insert(&["spec", "n"], None, json!(1)), Err(WrongType("/spec/n".into())));
        let (operations, after) = patch.finish();
        let expected = json!({
            "metadata": { "labels": { "app": "y" }, "annotations": { "a/b~c": "x" } },
            "spec": { "list": [0, 1, 2], "n": 2, "other": [{ "name": "b", "env": [] }] },
        });
        assert_eq!(after, expected);
        assert_eq!(apply(before, &operations), expected);
    }

    /// The document as another program sees it after the operations.
    pub(crate) fn apply(mut document: Value, operations: &[Value]) -> Value {
        let patch: json_patch::Patch = serde_json::from_value(Value::from(operations.to_vec())).unwrap();
        json_patch::patch(&mut document, &patch).unwrap();
        document
    }
}
