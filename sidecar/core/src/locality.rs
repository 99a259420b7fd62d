//! Locality load balancing: the order of endpoints by distance, and the shares of localities. Istio's rules
//! (`localityLbSetting`), evaluated at the proxy.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Location of a proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Location {
    /// `region/zone/subzone`; empty: unknown.
    pub locality: Arc<str>,
    /// Labels of its workload.
    pub labels: BTreeMap<String, String>,
}

/// Localities for a cluster's requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Locality {
    /// All localities are equal.
    Any,
    /// Shares by locality, for proxies in some localities; for all other proxies localities are equal.
    Distribute(Vec<Distribution>),
    /// Near endpoints first; farther ones while too few of the near are healthy.
    Failover(Failover),
}

/// Shares of localities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribution {
    /// Locality of the proxies that this applies to.
    pub from: Pattern,
    /// Percent by locality; localities that are not listed get none.
    pub to: Vec<(Pattern, u32)>,
}

/// Criteria for the distance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failover {
    /// The same subzone, the same zone, the same region; then the region that this map gives for the proxy's region;
    /// then any.
    Regions(BTreeMap<String, String>),
    /// More labels equal to the proxy's make an endpoint nearer; a label counts only if all before it are equal.
    Labels(Vec<Label>),
    /// By labels, and by regions for endpoints with the same number of equal labels.
    Both(Vec<Label>, BTreeMap<String, String>),
}

/// Number of distances by region.
const STEPS_OF_REGIONS: u32 = 5;

/// A label to compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: String,
    /// `None`: the proxy's own value.
    pub value: Option<String>,
}

/// `region/zone/subzone`; trailing parts may be omitted, and a trailing `*` matches everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<String>);

impl Pattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// If it does not have one to three parts, has an empty part, or a `*` that is not last.
    pub fn parse(text: &str) -> Result<Pattern, String> {
        let mut parts: Vec<String> = text.split('/').map(str::to_owned).collect();
        let all = parts.len();
        if parts.last().is_some_and(|last| last == "*") {
            parts.pop();
        }
        if all > 3 || parts.iter().any(|part| part.is_empty() || part.contains('*')) {
            return Err(format!("{text:?} is not a locality: region/zone/subzone, which may end in * instead"));
        }
        Ok(Pattern(parts))
    }

    /// Whether the pattern covers a locality.
    pub fn covers(&self, locality: &str) -> bool {
        let mut parts = locality.split('/');
        self.0.iter().all(|wanted| parts.next() == Some(wanted))
    }

    /// Whether some locality is covered by both.
    pub fn overlaps(&self, other: &Pattern) -> bool {
        self.0.iter().zip(&other.0).all(|(one, another)| one == another)
    }
}

impl Failover {
    /// Distance of an endpoint, with this locality and these labels, from a proxy: 0 is nearest. For a proxy of unknown
    /// locality all are at the same distance.
    pub fn distance(&self, location: &Location, locality: &str, labels: &BTreeMap<String, String>) -> u32 {
        match self {
            Failover::Regions(failover) => by_region(failover, &location.locality, locality),
            Failover::Labels(compared) => by_labels(compared, location, locality, labels),
            Failover::Both(compared, failover) => by_labels(compared, location, locality, labels)
                .saturating_mul(STEPS_OF_REGIONS)
                .saturating_add(by_region(failover, &location.locality, locality)),
        }
    }
}

fn by_labels(compared: &[Label], location: &Location, locality: &str, labels: &BTreeMap<String, String>) -> u32 {
    let alike = compared.iter().take_while(|label| {
        let own = || label_of(&label.name, &location.labels, &location.locality);
        let wanted = label.value.as_deref().or_else(own);
        // A label that both lack counts as equal, as in Istio.
        wanted.unwrap_or_default() == label_of(&label.name, labels, locality).unwrap_or_default()
    });
    u32::try_from(compared.len() - alike.count()).unwrap_or(u32::MAX)
}

/// 0 to 4.
fn by_region(failover: &BTreeMap<String, String>, own: &str, other: &str) -> u32 {
    if own.is_empty() {
        return 0;
    }
    let parts = |locality: &str| -> [String; 3] {
        let mut parts = locality.split('/').map(str::to_owned);
        std::array::from_fn(|_| parts.next().unwrap_or_default())
    };
    let (own, other) = (parts(own), parts(other));
    match own.iter().zip(&other).take_while(|(a, b)| a == b).count() {
        0 => match failover.get(&own[0]) {
            // The configured failover region precedes the others.
            Some(region) if *region != other[0] => 4,
            _ => 3,
        },
        alike => 3 - u32::try_from(alike).unwrap_or(3),
    }
}

/// A label, or the part of a locality that Istio and Kubernetes expose under that label's name.
fn label_of<'a>(name: &str, labels: &'a BTreeMap<String, String>, locality: &'a str) -> Option<&'a str> {
    let part = match name {
        "topology.kubernetes.io/region" => 0,
        "topology.kubernetes.io/zone" => 1,
        "topology.istio.io/subzone" => 2,
        _ => return labels.get(name).map(String::as_str),
    };
    let own = labels.get(name).map(String::as_str);
    own.or_else(|| locality.split('/').nth(part).filter(|part| !part.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(locality: &str, labels: &[(&str, &str)]) -> Location {
        let labels = labels.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        Location { locality: locality.into(), labels: labels.collect() }
    }

    fn distance(failover: &Failover, from: &Location, to: &Location) -> u32 {
        failover.distance(from, &to.locality, &to.labels)
    }

    #[test]
    fn patterns_match_by_prefix() {
        for (pattern, covered, not) in [
            ("eu/a/1", "eu/a/1", "eu/a/2"),
            ("eu/a", "eu/a/1", "eu/b/1"),
            ("eu/a/*", "eu/a/1", "eu/b"),
            ("eu", "eu/a/1", "us/a/1"),
            ("eu/*", "eu/a", "europe/a"),
        ] {
            let pattern = Pattern::parse(pattern).unwrap();
            assert!(pattern.covers(covered) && !pattern.covers(not), "{pattern:?}");
        }
        assert!(Pattern::parse("*").unwrap().covers("") && Pattern::parse("*").unwrap().covers("eu/a"));
        for wrong in ["", "eu//1", "*/a", "eu/*/1", "a/b/c/d", "eu/a*"] {
            assert!(Pattern::parse(wrong).is_err(), "{wrong}");
        }
        let of = |text: &str| Pattern::parse(text).unwrap();
        assert!(of("eu").overlaps(&of("eu/a")) && of("*").overlaps(&of("us")) && !of("eu/a").overlaps(&of("eu/b")));
    }

    #[test]
    fn the_same_subzone_is_nearest() {
        let plain = Failover::Regions(BTreeMap::new());
        let with_failover = Failover::Regions([("eu".to_owned(), "us".to_owned())].into());
        let here = location("eu/a/1", &[]);
        for (locality, far, with_name) in [
            ("eu/a/1", 0, 0),
            ("eu/a/2", 1, 1),
            ("eu/a", 1, 1),
            ("eu/b/1", 2, 2),
            ("us/a/1", 3, 3),
            ("asia/a/1", 3, 4),
            ("", 3, 4),
        ] {
            let endpoint = location(locality, &[]);
            assert_eq!(distance(&plain, &here, &endpoint), far, "{locality}");
            assert_eq!(distance(&with_failover, &here, &endpoint), with_name, "{locality}");
            assert_eq!(
                distance(&plain, &Location::default(), &endpoint),
                0,
                "a proxy of unknown locality has no preference"
            );
        }
    }

    #[test]
    fn labels_count_while_all_before_them_are_equal() {
        let label = |name: &str, value: Option<&str>| Label { name: name.into(), value: value.map(str::to_owned) };
        let failover = Failover::Labels(vec![
            label("topology.kubernetes.io/region", None),
            label("rack", None),
            label("version", Some("v2")),
        ]);
        let here = location("eu/a", &[("rack", "7"), ("version", "v1")]);
        for (locality, labels, far) in [
            ("eu/b", &[("rack", "7"), ("version", "v2")][..], 0),
            ("eu/a", &[("rack", "7"), ("version", "v1")], 1),
            ("eu/a", &[("rack", "8"), ("version", "v2")], 2),
            ("us/a", &[("rack", "7"), ("version", "v2")], 3),
            ("", &[("rack", "7"), ("topology.kubernetes.io/region", "eu")], 1),
        ] {
            assert_eq!(distance(&failover, &here, &location(locality, labels)), far, "{locality} {labels:?}");
        }
        let none = location("eu/a", &[]);
        assert_eq!(distance(&failover, &none, &location("eu/b", &[("version", "v2")])), 0, "neither has a rack");
    }

    #[test]
    fn regions_break_ties_between_labels() {
        let rack = Label { name: "rack".into(), value: None };
        let both = Failover::Both(vec![rack], [("eu".to_owned(), "us".to_owned())].into());
        let here = location("eu/a", &[("rack", "7")]);
        let rack = &[("rack", "7")][..];
        for (locality, labels, far) in [
            ("eu/a", rack, 0),
            ("eu/b", rack, 2),
            ("asia", rack, 4),
            ("eu/a", &[], 5),
            ("eu/b", &[], 7),
            ("us", &[], 8),
            ("asia", &[], 9),
        ] {
            assert_eq!(distance(&both, &here, &location(locality, labels)), far, "{locality} {labels:?}");
        }
        let nowhere = Location { locality: "".into(), ..here };
        assert_eq!(distance(&both, &nowhere, &location("us", rack)), 0, "labels alone");
    }
}
