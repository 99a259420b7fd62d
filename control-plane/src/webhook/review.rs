//! `AdmissionReview` of `admission.k8s.io/v1`: the request and the response, as JSON without types: a newer API server may
//! send more.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

const VERSION: &str = "admission.k8s.io/v1";

/// A request, with the fields that are absent as null.
pub(super) struct Request<'a>(pub(super) &'a Value);

/// The answer to a request.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Verdict {
    /// Why it is refused; `None`: it is allowed.
    pub(super) refusal: Option<String>,
    /// Operations of a JSON Patch.
    pub(super) patch: Vec<Value>,
    /// Lines that kubectl prints.
    pub(super) warnings: Vec<String>,
}

impl Request<'_> {
    pub(super) fn object(&self) -> &Value {
        &self.0["object"]
    }

    pub(super) fn old_object(&self) -> &Value {
        &self.0["oldObject"]
    }

    /// A text below the request.
    pub(super) fn text(&self, pointer: &str) -> &str {
        self.0.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// The object's name, or the beginning of the one that it will get.
    pub(super) fn name(&self) -> &str {
        let name = self.text("/object/metadata/name");
        if name.is_empty() { self.text("/object/metadata/generateName") } else { name }
    }
}

/// The response to a review.
///
/// # Errors
/// If it is no review.
pub(super) fn answer(body: &[u8], judge: impl FnOnce(&Request<'_>) -> Verdict) -> Result<Value, String> {
    let review: Value = serde_json::from_slice(body).map_err(|error| format!("not JSON: {error}"))?;
    let (kind, version) = (&review["kind"], &review["apiVersion"]);
    if kind != "AdmissionReview" || version != VERSION {
        return Err(format!(
            "{version} {kind} is not an AdmissionReview of {VERSION}: the webhook's configuration has \
             `admissionReviewVersions: [v1]`"
        ));
    }
    let request = &review["request"];
    if !request["uid"].is_string() {
        return Err("the review has no `request.uid`".to_owned());
    }
    let verdict = judge(&Request(request));
    let mut response = json!({ "uid": request["uid"], "allowed": verdict.refusal.is_none() });
    if let Some(message) = verdict.refusal {
        response["status"] = json!({ "code": 422, "reason": "Invalid", "message": message });
    } else if !verdict.patch.is_empty() {
        response["patchType"] = "JSONPatch".into();
        response["patch"] = STANDARD.encode(Value::from(verdict.patch).to_string()).into();
    }
    if !verdict.warnings.is_empty() {
        response["warnings"] = verdict.warnings.into();
    }
    Ok(json!({ "apiVersion": VERSION, "kind": "AdmissionReview", "response": response }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_has_the_uid_and_the_verdict() {
        let review = |request: Value| {
            json!({ "apiVersion": VERSION, "kind": "AdmissionReview", "request": request }).to_string().into_bytes()
        };
        let body = review(json!({ "uid": "u", "object": { "metadata": { "generateName": "a-" } }, "new": 1 }));
        let judge = |request: &Request<'_>| {
            assert_eq!((request.name(), request.text("/namespace")), ("a-", ""));
            Verdict { patch: vec![json!({ "op": "remove", "path": "/a" })], warnings: vec!["w".into()], refusal: None }
        };
        let response = &answer(&body, judge).unwrap()["response"];
        assert_eq!(
            (&response["uid"], &response["allowed"], &response["warnings"]),
            (&json!("u"), &json!(true), &json!(["w"]))
        );
        let patch = STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
        assert_eq!(String::from_utf8(patch).unwrap(), r#"[{"op":"remove","path":"/a"}]"#);
        let refuse = |_: &Request<'_>| Verdict { refusal: Some("no".into()), ..Verdict::default() };
        let response = answer(&body, refuse).unwrap();
        let expected =
            json!({ "uid": "u", "allowed": false, "status": { "code": 422, "reason": "Invalid", "message": "no" } });
        assert_eq!(response["response"], expected);
        for (body, expected) in [
            (b"{".to_vec(), "not JSON"),
            (b"[]".to_vec(), "is not an AdmissionReview"),
            (
                br#"{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1beta1"}"#.to_vec(),
                "admissionReviewVersions",
            ),
            (review(json!(null)), "request.uid"),
        ] {
            let error = answer(&body, |_| Verdict::default()).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
