//! The policies in the pages are valid, by `weftctl validate`.

use std::io::Write;
use std::process::{Command, Stdio};

use super::pages;
use crate::binary;

/// Marks a block whose policies must be refused.
const WRONG: &str = "wrong";

#[test]
fn policies_in_pages_are_valid() {
    let weftctl = binary("weftctl").unwrap();
    let mut wrong = Vec::new();
    let mut count = 0;
    for page in pages().unwrap() {
        for block in page.blocks().into_iter().filter(|block| block.is("yaml", &[])) {
            let mut child = Command::new(&weftctl)
                .args(["validate", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(block.text.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            if output.status.success() == block.is("yaml", &[WRONG]) {
                let printed = String::from_utf8_lossy(&output.stdout);
                wrong.push(format!("{}:{}: {}\n{printed}", page.path, block.line, output.status));
            }
            count += 1;
        }
    }
    assert!(wrong.is_empty() && count > 0, "{count} blocks\n{}", wrong.join("\n"));
}
