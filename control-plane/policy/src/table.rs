//! The table of all fields, made of the shapes of the decoders: for the documentation, and for the test that each field
//! has a test.
//!
//! Objects of one shape are one row, however many places they have: the policy of a subset is that of its rule.

use crate::decode::fields::{Is, Shape};
use crate::kinds::{Kind, NOT_YET};

/// An object of a kind's `spec`, and its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Kind.
    pub kind: &'static str,
    /// Its places, such as `trafficPolicy.tls`; empty: `spec` itself. Of the objects in another row's object, only the
    /// first place.
    pub paths: Vec<String>,
    /// The kind and place of an identical object, whose row has the fields.
    pub like: Option<(&'static str, String)>,
    /// The supported fields.
    pub supported: Vec<&'static str>,
    /// The refused fields, with the reasons.
    pub refused: Vec<(&'static str, &'static str)>,
    /// The fields that are skipped with a warning: they do not concern traffic.
    pub skipped: Vec<&'static str>,
}

/// All objects of all kinds, each kind's `spec` first and then its inner objects, in the order of the shapes.
pub fn field_table() -> Vec<Row> {
    let mut shapes = Vec::new();
    for &kind in Kind::ALL {
        of_kind(kind, &mut shapes);
    }
    shapes.into_iter().map(|(_, row)| row).collect()
}

/// Kinds of Istio that are an error as a whole.
pub fn refused_kinds() -> impl Iterator<Item = &'static str> {
    NOT_YET.iter().map(|(_, kind)| *kind)
}

/// Objects with at most this many fields may be equal by chance.
const FEW: usize = 2;

fn of_kind(kind: Kind, shapes: &mut Vec<(Shape, Row)>) {
    // Breadth first, so that the place nearest to `spec` is an object's first.
    let mut next = vec![(String::new(), kind.descriptor().spec)];
    while !next.is_empty() {
        for (path, shape) in std::mem::take(&mut next) {
            let of_kind = |row: &Row| row.kind == kind.name();
            if let Some((_, row)) = shapes.iter_mut().find(|(known, row)| *known == shape && of_kind(row)) {
                row.paths.push(path);
                continue;
            }
            let (like, supported, refused, skipped) = Default::default();
            let mut row = Row { kind: kind.name(), paths: vec![path.clone()], like, supported, refused, skipped };
            if let Some((_, known)) = shapes.iter().find(|(known, _)| *known == shape && shape.len() > FEW) {
                row.like = Some((known.kind, known.paths[0].clone()));
                shapes.push((shape, row));
                continue;
            }
            let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            for field in shape {
                match field.is {
                    Is::Refused(why) => row.refused.push((field.name, why)),
                    Is::Skipped => row.skipped.push(field.name),
                    Is::Read | Is::Explicit => row.supported.push(field.name),
                    Is::Object(shape) => {
                        row.supported.push(field.name);
                        next.push((below(field.name), shape));
                    }
                }
            }
            shapes.push((shape, row));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_one_shape_are_one_row() {
        let table = field_table();
        let of = |kind: &str, path: &str| {
            table.iter().find(|row| row.kind == kind && row.paths.iter().any(|own| own == path)).unwrap()
        };
        let rule = of("DestinationRule", "");
        assert!(rule.supported.contains(&"host") && rule.paths == [""]);
        let tcp = of("DestinationRule", "trafficPolicy.connectionPool.tcp");
        assert!(tcp.supported.contains(&"maxConnections"));
        assert_eq!(of("DestinationRule", "trafficPolicy").paths, ["trafficPolicy", "subsets.trafficPolicy"]);
        let paths: Vec<&String> =
            table.iter().filter(|row| row.kind == "DestinationRule").flat_map(|r| &r.paths).collect();
        assert!(paths.iter().all(|path| paths.iter().filter(|other| other == &path).count() == 1), "{paths:?}");
        assert!(refused_kinds().any(|kind| kind == "AuthorizationPolicy"));
    }
}
