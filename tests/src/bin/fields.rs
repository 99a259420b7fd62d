//! Writes the table of all fields into the README: `make fields`.

use anyhow::Result;

fn main() -> Result<()> {
    let readme = weft_tests::tests_dir().join("../README.md");
    let text = std::fs::read_to_string(&readme)?;
    Ok(std::fs::write(&readme, weft_tests::fields::with_table(&text)?)?)
}
