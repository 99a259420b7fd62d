//! `rewrite`: another path, another authority.

use weft_proto::v1;

use super::matching::check_regex;
use crate::decode::fields::{Fields, Shape, object, read};

/// Its fields.
pub(super) const SHAPE: Shape =
    &[read("uri"), read("authority"), object("uriRegexRewrite", &[read("match"), read("rewrite")])];

/// Reads it.
pub(super) fn decode(fields: &Fields<'_>) -> v1::Rewrite {
    if !["uri", "authority", "uriRegexRewrite"].into_iter().any(|name| fields.has(name)) {
        fields.error_at(fields.place, "`rewrite` needs `uri`, `uriRegexRewrite` or `authority`");
    }
    if fields.has("uri") && fields.has("uriRegexRewrite") {
        fields.error("uriRegexRewrite", "`uri` and `uriRegexRewrite` exclude each other");
    }
    let uri_regex = fields.object("uriRegexRewrite").map(|regex| {
        let pattern = regex.required_string("match");
        check_regex(&regex, "match", &pattern);
        regex.require("rewrite");
        let substitution = regex.string("rewrite").unwrap_or_default();
        if let Ok(pattern) = weft_core::re2::searched(&pattern)
            && let Err(why) = weft_core::route::RegexRewrite::new(pattern, &substitution)
        {
            regex.error("rewrite", format!("`rewrite`: {why}"));
        }
        v1::RegexRewrite { pattern, substitution }
    });
    v1::Rewrite { uri: fields.string("uri"), authority: fields.string("authority"), uri_regex, full_path: None }
}
