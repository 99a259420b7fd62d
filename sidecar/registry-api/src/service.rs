//! Fields of a service that the registrations of an agent and of the catalog have in common.

use std::collections::BTreeMap;

use weft_proto::v1::TaggedAddress;

use crate::decode::Fields;

/// Weights of a service in passing and in warning state.
///
/// # Errors
/// If they are not numbers.
pub fn weights(fields: &mut Fields) -> Result<(u32, u32), String> {
    let Some(mut weights) = fields.object("weights", "Weights")? else { return Ok((1, 1)) };
    let pair = (weights.number("passing")?.max(1), weights.number("warning")?);
    weights.finish();
    Ok(pair)
}

/// The tagged addresses of a service, by name; an address may be any text, since it is only displayed.
///
/// # Errors
/// If they are not objects of address and port.
pub fn tagged_addresses(fields: &mut Fields) -> Result<BTreeMap<String, TaggedAddress>, String> {
    let given = fields.map("taggedaddresses")?.into_iter().filter(|(_, value)| !value.is_null());
    let read = given.map(|(name, value)| {
        let mut fields = Fields::of("a tagged address", value)?;
        let tagged = TaggedAddress { address: fields.text("address")?, port: fields.number("port")? };
        fields.finish();
        Ok((name, tagged))
    });
    read.collect()
}
