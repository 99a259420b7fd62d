//! Unreachable routes: an earlier one takes all of their requests.
//!
//! A match is reported to cover another only in plain cases: equal texts, prefixes of prefixes, fewer conditions.
//! Earlier matches are found by their path, and of very many on one path only the first are compared, which keeps the
//! time linear; an unreachable route that is missed is a missing warning.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use weft_proto::v1::{self, string_match::Kind as Text};

use crate::kinds::virtual_service::covers;
use crate::{Action, Code, Document, Finding, MESH, RouteMatch, VirtualService};

/// Bound on the earlier matches that a match is compared with.
const MOST: usize = 200;

/// The unreachable routes of `service`.
pub(super) fn check<'a>(document: &'a Document, service: &'a VirtualService) -> Vec<Finding<'a>> {
    let mut findings = Vec::new();
    let mut unreachable =
        |path: String, text: String| findings.push(Finding::warning(document, path, Code::Unreachable, text));
    let (mut earlier, mut all) = (Earlier::default(), None);
    for (n, route) in service.http.iter().enumerate() {
        if let Some(line) = all {
            unreachable(format!("http[{n}]"), format!("never reached: the route at line {line} matches every request"));
            continue;
        }
        let line = route.place.line;
        let covered: Vec<Option<u32>> = route.matches.iter().map(|one| earlier.covering(one, service)).collect();
        if let Some(Some(first)) = covered.first().filter(|_| covered.iter().all(Option::is_some)) {
            let text = format!("never reached: the route at line {first} matches all that this does");
            unreachable(format!("http[{n}]"), text);
            continue;
        }
        for (m, by) in covered.iter().enumerate() {
            if let Some(by) = by {
                let text = format!("without effect: the route at line {by} matches all that this does");
                unreachable(format!("http[{n}].match[{m}]"), text);
            }
        }
        match route.action {
            // Requests that the delegate's routes do not take reach later ones.
            Action::Delegate(_) => {}
            // Gateways move it behind all others.
            _ if crate::takes_all(route) => all = service.of_mesh().then_some(line),
            _ => route.matches.iter().for_each(|one| earlier.add(one, line)),
        }
    }
    findings
}

type Matches<'a> = Vec<(&'a RouteMatch, u32)>;

/// Matches by their path, with the lines of their routes.
#[derive(Default)]
struct Earlier<'a> {
    any: Matches<'a>,
    regex: HashMap<&'a str, Matches<'a>>,
    as_written: Paths<'a>,
    /// In lower case.
    whatever_case: Paths<'a>,
}

#[derive(Default)]
struct Paths<'a> {
    exact: HashMap<String, Matches<'a>>,
    prefix: BTreeMap<String, Matches<'a>>,
}

impl<'a> Earlier<'a> {
    fn add(&mut self, one: &'a RouteMatch, line: u32) {
        let (paths, text): (_, fn(&str) -> String) = match one.http.ignore_uri_case {
            true => (&mut self.whatever_case, str::to_ascii_lowercase),
            false => (&mut self.as_written, str::to_owned),
        };
        let matches = match kind(&one.http.uri) {
            None | Some(Text::Present(_)) => &mut self.any,
            Some(Text::Prefix(path)) if path.is_empty() || path == "/" => &mut self.any,
            Some(Text::Regex(regex)) if regex == ".*" => &mut self.any,
            Some(Text::Regex(regex)) => self.regex.entry(regex).or_default(),
            Some(Text::Exact(path)) => paths.exact.entry(text(path)).or_default(),
            Some(Text::Prefix(path)) => paths.prefix.entry(text(path)).or_default(),
        };
        if matches.len() < MOST {
            matches.push((one, line));
        }
    }

    /// The line of an earlier route that takes all requests of `one`.
    fn covering(&self, one: &RouteMatch, service: &VirtualService) -> Option<u32> {
        let conditions = Conditions::of(one, service);
        let mut candidates: Vec<&Matches<'_>> = vec![&self.any];
        if let Some(Text::Regex(regex)) = kind(&one.http.uri) {
            candidates.extend(self.regex.get(regex.as_str()));
        }
        if let Some(Text::Exact(path) | Text::Prefix(path)) = kind(&one.http.uri) {
            let exact = matches!(kind(&one.http.uri), Some(Text::Exact(_)));
            if !one.http.ignore_uri_case {
                self.as_written.find(path, exact, &mut candidates);
            }
            self.whatever_case.find(&path.to_ascii_lowercase(), exact, &mut candidates);
        }
        let compared = candidates.into_iter().flatten().take(MOST);
        compared.filter(|(earlier, _)| conditions.within(earlier)).map(|(_, line)| *line).min()
    }
}

impl<'a> Paths<'a> {
    /// The matches whose path is equal to `path`, or a prefix of it.
    fn find<'s>(&'s self, path: &str, exact: bool, candidates: &mut Vec<&'s Matches<'a>>) {
        if exact {
            candidates.extend(self.exact.get(path));
        }
        let mut end = Bound::Included(path);
        for _ in 0..MOST {
            // The greatest key that is not greater than the path: a prefix of the path, or a key with a common
            // beginning that is not shorter than the remaining prefixes.
            let Some((prefix, matches)) = self.prefix.range::<str, _>((Bound::Unbounded, end)).next_back() else {
                return;
            };
            if path.starts_with(prefix.as_str()) {
                candidates.push(matches);
                end = Bound::Excluded(&path[..prefix.len()]);
            } else {
                let shared = path.char_indices().zip(prefix.chars()).find(|((_, a), b)| a != b);
                end = Bound::Included(shared.map_or("", |((at, _), _)| &path[..at]));
            }
        }
    }
}

/// All conditions of a match except the path, prepared for many comparisons.
struct Conditions<'a> {
    one: &'a RouteMatch,
    gateways: Vec<&'a str>,
    headers: HashMap<String, &'a v1::NamedMatch>,
    without: HashMap<String, &'a v1::NamedMatch>,
    params: HashMap<String, &'a v1::NamedMatch>,
}

impl<'a> Conditions<'a> {
    fn of(one: &'a RouteMatch, service: &'a VirtualService) -> Self {
        let gateways = if one.gateways.is_empty() { &service.gateways } else { &one.gateways };
        let gateways = if gateways.is_empty() { vec![MESH] } else { gateways.iter().map(String::as_str).collect() };
        let headers = |all: &'a [v1::NamedMatch]| all.iter().map(|one| (one.name.to_ascii_lowercase(), one)).collect();
        Conditions {
            one,
            gateways,
            headers: headers(&one.http.headers),
            without: headers(&one.http.without_headers),
            params: one.http.query_params.iter().map(|one| (one.name.clone(), one)).collect(),
        }
    }

    /// Whether `earlier` takes all requests that these conditions let pass.
    fn within(&self, earlier: &RouteMatch) -> bool {
        let (outer, inner) = (&earlier.http, &self.one.http);
        let has_condition = |own: &HashMap<String, &v1::NamedMatch>, name: &str, other: &v1::NamedMatch| {
            own.get(name).is_some_and(|own| is_within(&other.value, &own.value))
        };
        let header = |other: &v1::NamedMatch| has_condition(&self.headers, &other.name.to_ascii_lowercase(), other);
        // Negative conditions are compared in the other direction.
        let without = |other: &v1::NamedMatch| {
            let own = self.without.get(&other.name.to_ascii_lowercase());
            own.is_some_and(|own| is_within(&own.value, &other.value))
        };
        is_within(&outer.method, &inner.method)
            && is_within(&outer.authority, &inner.authority)
            && is_within(&outer.scheme, &inner.scheme)
            && (outer.port == 0 || outer.port == inner.port)
            && outer.headers.iter().all(header)
            && outer.without_headers.iter().all(without)
            && outer.query_params.iter().all(|other| has_condition(&self.params, &other.name, other))
            && earlier.source_labels.iter().all(|(name, value)| self.one.source_labels.get(name) == Some(value))
            && (earlier.source_namespace.is_empty() || earlier.source_namespace == self.one.source_namespace)
            && (earlier.gateways.is_empty()
                || self.gateways.iter().all(|own| earlier.gateways.iter().any(|gateway| gateway == own)))
    }
}

fn kind(text: &Option<v1::StringMatch>) -> Option<&Text> {
    text.as_ref()?.kind.as_ref()
}

/// Whether `outer` matches all texts that `inner` matches.
fn is_within(outer: &Option<v1::StringMatch>, inner: &Option<v1::StringMatch>) -> bool {
    match (kind(outer), kind(inner)) {
        (None | Some(Text::Present(_)), _) => true,
        (Some(outer), Some(inner)) => outer == inner || covers(outer, inner),
        (Some(_), None) => false,
    }
}
