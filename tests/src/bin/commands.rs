//! Writes `docs/commands.md`: `make commands`.

use anyhow::Result;
use weft_tests::docs::{commands, root};

fn main() -> Result<()> {
    Ok(std::fs::write(root().join(commands::PAGE), commands::text()?)?)
}
