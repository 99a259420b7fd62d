//! Writes `docs/fields.md`: `make fields`.

use anyhow::Result;
use weft_tests::{docs, fields};

fn main() -> Result<()> {
    Ok(std::fs::write(docs::root().join(fields::PAGE), fields::page())?)
}
