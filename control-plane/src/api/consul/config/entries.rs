//! Config entries of the three kinds that route requests, as far as they have a counterpart in the mesh's policies. A
//! field without one is refused by its name.

use serde_json::{Value, json};
use weft_registry_api::decode::Fields;

/// `service-router`
#[derive(Debug, Default, PartialEq)]
pub(super) struct Router {
    pub(super) routes: Vec<Route>,
}

/// One of its routes: a match in Istio's form, and a destination.
#[derive(Debug, PartialEq)]
pub(super) struct Route {
    /// Null: all requests.
    pub(super) matching: Value,
    pub(super) to: Leg,
    /// `rewrite`, `timeout`, `retries` and `headers`, in Istio's form.
    pub(super) settings: Value,
}

/// A service, and a subset of it; an empty subset is the default.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Leg {
    /// Empty: the entry's own.
    pub(super) service: String,
    pub(super) subset: String,
}

/// `service-splitter`: weights in hundredths of a percent, and headers in Istio's form.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Splitter {
    pub(super) splits: Vec<(u64, Leg, Value)>,
}

/// `service-resolver`
#[derive(Debug, Default, PartialEq)]
pub(super) struct Resolver {
    pub(super) default_subset: String,
    /// Name and labels.
    pub(super) subsets: Vec<(String, Value)>,
    pub(super) redirect: Option<Leg>,
    pub(super) request_timeout: String,
    /// `trafficPolicy` in Istio's form; null: absent.
    pub(super) policy: Value,
}

/// Refuses the remaining fields: they would have an effect in Consul.
fn refuse(fields: &mut Fields, place: &str, all: &[(&str, &str)]) -> Result<(), String> {
    match all.iter().find(|(field, _)| fields.means(&field.to_ascii_lowercase())) {
        Some((field, why)) => Err(format!("{place}{field}: {why}")),
        None => Ok(()),
    }
}

fn duration(fields: &mut Fields, key: &str) -> Result<Option<String>, String> {
    let given = fields.duration(key)?;
    Ok((!given.is_zero()).then(|| format!("{}s", given.as_secs_f64())))
}

const NO_NAMESPACES: (&str, &str) = ("Namespace", "the namespace is that of the token");
const NO_PARTITIONS: (&str, &str) = ("Partition", "there are no partitions");

fn leg(fields: &mut Fields) -> Result<Leg, String> {
    Ok(Leg { service: fields.text("service")?.to_ascii_lowercase(), subset: fields.text("servicesubset")? })
}

/// `RequestHeaders` and `ResponseHeaders`.
fn headers(fields: &mut Fields) -> Result<Value, String> {
    let mut all = json!({});
    for (key, name) in [("requestheaders", "request"), ("responseheaders", "response")] {
        let Some(mut given) = fields.object(key, "headers")? else { continue };
        let (add, set, remove) = (given.text_map("add")?, given.text_map("set")?, given.texts("remove")?);
        all[name] = json!({ "add": add, "set": set, "remove": remove });
    }
    Ok(all)
}

pub(super) fn router(fields: &mut Fields) -> Result<Router, String> {
    let mut routes = Vec::new();
    for (number, mut given) in fields.objects("routes", "a route")?.into_iter().enumerate() {
        let place = format!("Routes[{number}].");
        let mut matched = Value::Null;
        if let Some(mut of_all) = given.object("match", "Match")? {
            if let Some(mut http) = of_all.object("http", "HTTP")? {
                let place = format!("{place}Match.HTTP.");
                matched = matching(&mut http, &place)?;
                http.refuse_rest(&place)?;
            }
            of_all.refuse_rest(&format!("{place}Match."))?;
        }
        let (mut to, mut effects) = (Leg::default(), json!({}));
        if let Some(mut destination) = given.object("destination", "Destination")? {
            let place = format!("{place}Destination.");
            (to, effects) = (leg(&mut destination)?, settings(&mut destination, &place)?);
            destination.refuse_rest(&place)?;
        }
        given.refuse_rest(&place)?;
        routes.push(Route { matching: matched, to, settings: effects });
    }
    Ok(Router { routes })
}

fn matching(http: &mut Fields, place: &str) -> Result<Value, String> {
    let mut all = json!({});
    let paths = [("pathexact", "exact"), ("pathprefix", "prefix"), ("pathregex", "regex")];
    for (key, kind) in paths {
        let text = http.text(key)?;
        if !text.is_empty() {
            if all.get("uri").is_some() {
                return Err(format!("{place}PathExact, PathPrefix and PathRegex: give one of them"));
            }
            all["uri"] = json!({ kind: text });
        }
    }
    if http.flag("caseinsensitive")? {
        all["ignoreUriCase"] = true.into();
    }
    match http.texts("methods")?.as_slice() {
        [] => {}
        [one] => all["method"] = json!({ "exact": one }),
        several => {
            let escaped: Vec<String> = several.iter().map(|method| regex::escape(method)).collect();
            all["method"] = json!({ "regex": escaped.join("|") });
        }
    }
    for mut header in http.objects("header", "a header")? {
        let (name, inverted) = (header.text("name")?.to_ascii_lowercase(), header.flag("invert")?);
        let of = string_match(&mut header, &format!("{place}Header."))?;
        header.refuse_rest(&format!("{place}Header."))?;
        all[if inverted { "withoutHeaders" } else { "headers" }][&name] = of;
    }
    for mut parameter in http.objects("queryparam", "a query parameter")? {
        let name = parameter.text("name")?;
        all["queryParams"][&name] = string_match(&mut parameter, &format!("{place}QueryParam."))?;
        parameter.refuse_rest(&format!("{place}QueryParam."))?;
    }
    Ok(all)
}

/// One of Present, Exact, Prefix, Suffix, Contains and Regex.
fn string_match(fields: &mut Fields, place: &str) -> Result<Value, String> {
    if fields.flag("ignorecase")? {
        return Err(format!("{place}IgnoreCase: values are compared as they are; a Regex may begin with (?i)"));
    }
    let present = fields.flag("present")?;
    let mut text = |key: &str| fields.text(key);
    let (exact, prefix, regex) = (text("exact")?, text("prefix")?, text("regex")?);
    let (suffix, contains) = (text("suffix")?, text("contains")?);
    Ok(match () {
        () if !exact.is_empty() => json!({ "exact": exact }),
        () if !prefix.is_empty() => json!({ "prefix": prefix }),
        () if !regex.is_empty() => json!({ "regex": regex }),
        () if !suffix.is_empty() => json!({ "regex": format!(".*{}", regex::escape(&suffix)) }),
        () if !contains.is_empty() => json!({ "regex": format!(".*{}.*", regex::escape(&contains)) }),
        () if present => json!({}),
        () => return Err(format!("{place}one of Present, Exact, Prefix, Suffix, Contains and Regex is required")),
    })
}

fn settings(to: &mut Fields, place: &str) -> Result<Value, String> {
    refuse(
        to,
        place,
        &[
            NO_NAMESPACES,
            NO_PARTITIONS,
            ("IdleTimeout", "the idle timeout is connectionPool.http.idleTimeout of a DestinationRule"),
        ],
    )?;
    let mut all = json!({});
    let rewrite = to.text("prefixrewrite")?;
    if !rewrite.is_empty() {
        all["rewrite"] = json!({ "uri": rewrite });
    }
    if let Some(timeout) = duration(to, "requesttimeout")? {
        all["timeout"] = timeout.into();
    }
    let (attempts, mut on) = (to.number("numretries")?, to.texts("retryon")?);
    if to.flag("retryonconnectfailure")? {
        on.push("connect-failure".into());
    }
    for code in to.list("retryonstatuscodes")? {
        on.push(code.as_u64().ok_or_else(|| format!("{place}RetryOnStatusCodes: {code} is not a status"))?.to_string());
    }
    if attempts > 0 || !on.is_empty() {
        all["retries"] = json!({ "attempts": attempts.max(1), "retryOn": on.join(",") });
        if on.is_empty() {
            all["retries"] = json!({ "attempts": attempts });
        }
    }
    let headers = headers(to)?;
    if headers.as_object().is_some_and(|map| !map.is_empty()) {
        all["headers"] = headers;
    }
    Ok(all)
}

pub(super) fn splitter(fields: &mut Fields) -> Result<Splitter, String> {
    let mut splits = Vec::new();
    for (number, mut given) in fields.objects("splits", "a split")?.into_iter().enumerate() {
        let place = format!("Splits[{number}].");
        refuse(&mut given, &place, &[NO_NAMESPACES, NO_PARTITIONS])?;
        let weight = given.decimal("weight")?;
        if !(0.0..=100.0).contains(&weight) {
            return Err(format!("{place}Weight: {weight} is not a percentage"));
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let weight = (weight * 100.0).round() as u64;
        splits.push((weight, leg(&mut given)?, headers(&mut given)?));
        given.refuse_rest(&place)?;
    }
    let sum: u64 = splits.iter().map(|(weight, ..)| weight).sum();
    if sum != 10_000 {
        return Err(format!("the sum of all split weights must be 100, not {}", sum as f64 / 100.0));
    }
    Ok(Splitter { splits })
}

pub(super) fn resolver(fields: &mut Fields) -> Result<Resolver, String> {
    refuse(
        fields,
        "",
        &[
            (
                "Failover",
                "the mesh fails over by itself to the data centres that export the service (ServiceExport), and between \
             localities by a DestinationRule (localityLbSetting, outlierDetection)",
            ),
            ("PrioritizeByLocality", "localities are preferred by localityLbSetting of a DestinationRule"),
        ],
    )?;
    let mut subsets = Vec::new();
    for (name, value) in fields.map("subsets")? {
        let mut subset = Fields::of("a subset", value)?;
        refuse(
            &mut subset,
            &format!("Subsets.{name}."),
            &[("OnlyPassing", "instances in warning are always called in the mesh")],
        )?;
        let filter = subset.text("filter")?;
        subset.refuse_rest(&format!("Subsets.{name}."))?;
        let labels = labels(&filter).ok_or_else(|| {
            format!(
                "Subsets.{name}.Filter: {filter:?} is not what labels of a DestinationRule mean: `Service.Meta.KEY == VALUE`, \
                 several with `and`"
            )
        })?;
        subsets.push((name, labels));
    }
    let redirect = fields.object("redirect", "Redirect")?.filter(|redirect| !redirect.is_empty());
    let redirect = redirect
        .map(|mut redirect| {
            let elsewhere = "a service of another data centre is called by its own name if it is exported";
            refuse(
                &mut redirect,
                "Redirect.",
                &[
                    NO_NAMESPACES,
                    NO_PARTITIONS,
                    ("Datacenter", elsewhere),
                    ("Peer", "clusters are not peered"),
                    ("SamenessGroup", "there are no sameness groups"),
                ],
            )?;
            let to = leg(&mut redirect)?;
            redirect.refuse_rest("Redirect.")?;
            Ok::<_, String>(to)
        })
        .transpose()?;
    let mut policy = json!({});
    if let Some(timeout) = duration(fields, "connecttimeout")? {
        policy["connectionPool"] = json!({ "tcp": { "connectTimeout": timeout } });
    }
    if let Some(mut balancer) = fields.object("loadbalancer", "LoadBalancer")? {
        policy["loadBalancer"] = load_balancer(&mut balancer)?;
        balancer.refuse_rest("LoadBalancer.")?;
    }
    let is_said = policy.as_object().is_some_and(|map| !map.is_empty());
    Ok(Resolver {
        default_subset: fields.text("defaultsubset")?,
        subsets,
        redirect,
        request_timeout: duration(fields, "requesttimeout")?.unwrap_or_default(),
        policy: if is_said { policy } else { Value::Null },
    })
}

/// The labels that a filter selects; `None`: it selects by other properties. No filter selects all instances.
fn labels(filter: &str) -> Option<Value> {
    let mut labels = json!({});
    for one in filter.split(" and ").map(str::trim).filter(|one| !one.is_empty()) {
        let (selector, value) = one.split_once("==")?;
        let key = selector.trim().strip_prefix("Service.Meta.")?;
        let value = value.trim();
        let bare = value.trim_matches('"');
        let plain =
            |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
        if !plain(key) || !plain(bare) {
            return None;
        }
        labels[key] = bare.into();
    }
    Some(labels)
}

fn load_balancer(fields: &mut Fields) -> Result<Value, String> {
    let policy = fields.text("policy")?;
    let simple = match policy.as_str() {
        "" | "least_request" => "LEAST_REQUEST",
        "random" => "RANDOM",
        "round_robin" => "ROUND_ROBIN",
        "ring_hash" | "maglev" => "",
        other => return Err(format!("LoadBalancer.Policy: {other:?} is not a load balancer")),
    };
    refuse(fields, "LoadBalancer.", &[("LeastRequestConfig", "the better of two is always picked")])?;
    if !simple.is_empty() {
        return Ok(json!({ "simple": simple }));
    }
    let mut keys = fields.objects("hashpolicies", "a hash policy")?;
    let (Some(mut key), true) = (keys.pop(), keys.is_empty()) else {
        return Err("LoadBalancer.HashPolicies: one of them decides".into());
    };
    let mut hash = hash_key(&mut key)?;
    // Whether later ones would be used: there are none.
    key.means("terminal");
    key.refuse_rest("LoadBalancer.HashPolicies[0].")?;
    if policy == "maglev" {
        hash["maglev"] = json!({});
    } else if let Some(mut ring) = fields.object("ringhashconfig", "RingHashConfig")? {
        refuse(&mut ring, "LoadBalancer.RingHashConfig.", &[("MaximumRingSize", "rings have a minimum size only")])?;
        let size = ring.large_number("minimumringsize")?;
        if size > 0 {
            hash["ringHash"] = json!({ "minimumRingSize": size });
        }
    }
    Ok(json!({ "consistentHash": hash }))
}

fn hash_key(policy: &mut Fields) -> Result<Value, String> {
    if policy.flag("sourceip")? {
        return Ok(json!({ "useSourceIp": true }));
    }
    let (field, value) = (policy.text("field")?, policy.text("fieldvalue")?);
    match field.as_str() {
        "header" => Ok(json!({ "httpHeaderName": value })),
        "query_parameter" => Ok(json!({ "httpQueryParameterName": value })),
        "cookie" => {
            let mut cookie = json!({ "name": value, "ttl": "0s" });
            if let Some(mut config) = policy.object("cookieconfig", "CookieConfig")? {
                let (ttl, path) = (duration(&mut config, "ttl")?, config.text("path")?);
                if let Some(ttl) = ttl.filter(|_| !config.flag("session").unwrap_or_default()) {
                    cookie["ttl"] = ttl.into();
                }
                if !path.is_empty() {
                    cookie["path"] = path.into();
                }
            }
            Ok(json!({ "httpCookie": cookie }))
        }
        other => {
            Err(format!("LoadBalancer.HashPolicies[0].Field: {other:?} is none of header, cookie and query_parameter"))
        }
    }
}
