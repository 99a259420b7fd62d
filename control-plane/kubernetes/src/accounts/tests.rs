use std::collections::BTreeMap;

use k8s_openapi::api::authentication::v1::UserInfo;
use serde_json::{Value, json};
use weft_identity::token::encode;

use super::*;

fn status(edit: impl FnOnce(&mut TokenReviewStatus)) -> Option<TokenReviewStatus> {
    let extra = |key: &str, value: &str| (format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
    let mut status = TokenReviewStatus {
        authenticated: Some(true),
        audiences: Some(vec![AUDIENCE.to_owned()]),
        user: Some(UserInfo {
            username: Some("system:serviceaccount:shop:order".into()),
            groups: Some(vec![GROUP.to_owned(), "system:authenticated".into()]),
            extra: Some(BTreeMap::from([extra("pod-name", "order-1"), extra("pod-uid", "u1")])),
            uid: None,
        }),
        error: None,
    };
    edit(&mut status);
    Some(status)
}

fn owner() -> Reviewed {
    Reviewed { namespace: "shop".into(), name: "order".into(), pod: "order-1".into(), uid: "u1".into() }
}

fn pod(metadata: Value, status: Value) -> Pod {
    serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap()
}

fn text<T: std::fmt::Debug>(result: Result<T, Refusal>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_review_is_believed_for_a_bound_token_of_our_audience_alone() {
    assert_eq!(reviewed(status(|_| ())), Ok(owner()));
    let user = |edit: fn(&mut UserInfo)| status(|status| edit(status.user.get_or_insert_default()));
    let refusals = [
        (None, "it is expired"),
        (status(|status| status.authenticated = Some(false)), "it is expired"),
        (status(|status| status.error = Some("token audiences [\"x\"] is invalid".into())), "audiences [\"x\"]"),
        (status(|status| status.audiences = None), "has not compared"),
        (status(|status| status.audiences = Some(vec!["istio-ca".into()])), "has not compared"),
        (user(|user| user.username = Some("system:node:n1".into())), "that of system:node:n1"),
        (user(|user| user.groups = None), "not of a service account"),
        (user(|user| user.extra = None), "not bound to a pod"),
    ];
    for (status, reason) in refusals {
        let error = text(reviewed(status));
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

#[test]
fn a_token_is_taken_from_an_address_of_its_own_pod_alone() {
    let remote = |text: &str| Some(text.parse().unwrap());
    let running =
        |ips: Value| pod(json!({"uid": "u1"}), json!({"phase": "Running", "podIP": "10.0.0.1", "podIPs": ips}));
    let account_of = |pod: &Pod, remote| account(owner(), pod, remote);
    let found = Account { namespace: "shop".into(), name: "order".into(), services: Vec::new() };
    for (ips, address) in [
        (json!([{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]), "fd00::1"),
        (json!(null), "10.0.0.1"),
        (json!([{"ip": "10.0.0.1"}]), "::ffff:10.0.0.1"),
    ] {
        assert_eq!(account_of(&running(ips), remote(address)), Ok(found.clone()), "{address}");
    }
    let starting = pod(json!({"uid": "u1"}), json!({}));
    assert_eq!(account_of(&starting, None), Ok(found), "addresses are not compared");
    for (pod, address, reason) in [
        (running(json!([])), "10.0.0.2", "is shown by 10.0.0.2, and the pod's addresses are: 10.0.0.1"),
        (starting, "10.0.0.1", "none yet"),
        (pod(json!({"uid": "u2"}), json!({"podIP": "10.0.0.1"})), "10.0.0.1", "replaced by another"),
        (pod(json!({"uid": "u1"}), json!({"phase": "Failed", "podIP": "10.0.0.1"})), "10.0.0.1", "has ended (Failed)"),
    ] {
        let error = text(account_of(&pod, remote(address)));
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

#[test]
fn services_of_a_pod_are_those_of_its_annotation() {
    let of = |text: &str| services(&pod(json!({"annotations": {SERVICES: text}}), json!({})));
    assert_eq!(of(" order, cart,"), Ok(vec!["order".to_owned(), "cart".into()]));
    assert_eq!(services(&pod(json!({}), json!({}))), Ok(Vec::new()));
    assert!(of("Order").unwrap_err().contains("\"Order\""));
    assert!(of(&"a,".repeat(65)).unwrap_err().contains("at most 64"));
}

#[test]
fn texts_that_are_no_token_of_a_service_account_do_not_reach_the_api_server() {
    let token = |payload: Value| format!("e30.{}.c2ln", encode(&payload));
    assert!(Accounts::is_token(&token(json!({"sub": "system:serviceaccount:shop:order", "aud": "weft-ca"}))));
    for other in [token(json!({"sub": "system:node:n"})), token(json!({})), "weft1.e30.AAAA".into(), "e30.e30".into()] {
        assert!(!Accounts::is_token(&other), "{other}");
    }
}
