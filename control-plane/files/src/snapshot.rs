//! The form of a snapshot: one file with every record of the store that is not bound to a lease.
//!
//! The file is a line that names its form, the records (each with its length before it, as protobuf delimits messages),
//! and at the end the SHA-256 of all before, so that a truncated file is never restored. It contains the keys of the
//! certificate authority, so only its owner can read it.

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use prost::Message;
use weft_proto::v1::SnapshotRecord;

/// First line of a file.
const FORM: &[u8] = b"weft-snapshot-1\n";
/// Largest file that is restored, bytes: it is checked as a whole before anything is changed.
pub const MAX_FILE: usize = 1 << 30;
/// Bytes of one message of a snapshot on the wire.
pub const PIECE: usize = 1 << 20;

/// The file with these records.
pub fn encode(records: impl IntoIterator<Item = SnapshotRecord>) -> Vec<u8> {
    let mut file = FORM.to_vec();
    for record in records {
        file.extend(record.encode_length_delimited_to_vec());
    }
    let sum = digest(&SHA256, &file);
    file.extend_from_slice(sum.as_ref());
    file
}

/// The records of a file.
///
/// # Errors
/// If it is not a snapshot, or damaged.
pub fn decode(file: &[u8]) -> Result<Vec<SnapshotRecord>, String> {
    let body_at = file.len().checked_sub(SHA256_OUTPUT_LEN).filter(|at| *at >= FORM.len() && file.starts_with(FORM));
    let (body, sum) = file.split_at(body_at.ok_or("this is not a snapshot of Weft")?);
    if digest(&SHA256, body).as_ref() != sum {
        return Err("the snapshot is damaged: its checksum does not match".into());
    }
    let mut left = body.get(FORM.len()..).unwrap_or_default();
    let mut records = Vec::new();
    while !left.is_empty() {
        let record =
            SnapshotRecord::decode_length_delimited(&mut left).map_err(|e| format!("a damaged record: {e}"))?;
        records.push(record);
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_is_refused() {
        let record =
            |table: &str, key: &str| SnapshotRecord { table: table.into(), key: key.into(), value: b"v".to_vec() };
        let file = encode([record("kv", "a"), record("sessions", "b")]);
        assert_eq!(decode(&file).unwrap().len(), 2);
        assert!(
            decode(b"").is_err() && decode(b"weft-snapshot-1\n").is_err() && decode(&file[..file.len() - 1]).is_err()
        );
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 1;
            assert!(decode(&damaged).is_err(), "byte {at}");
        }
    }
}
