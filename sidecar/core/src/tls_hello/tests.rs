use super::*;
use proptest::prelude::*;

fn vector(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vector(data)].concat()
}

fn sni(name: &str) -> Vec<u8> {
    extension(EXTENSION_SERVER_NAME, &vector(&[&[0][..], &vector(name.as_bytes())].concat()))
}

fn alpn(names: &[&str]) -> Vec<u8> {
    let names: Vec<u8> = names.iter().flat_map(|name| [&[name.len() as u8][..], name.as_bytes()].concat()).collect();
    extension(EXTENSION_ALPN, &vector(&names))
}

/// The handshake message.
fn hello(extensions: Option<&[u8]>) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([2, 1, 2]); // session
    body.extend(vector(&[0x13, 1, 0x13, 2]));
    body.extend([1, 0]);
    if let Some(extensions) = extensions {
        body.extend(vector(extensions));
    }
    let length = (body.len() as u32).to_be_bytes();
    [&[CLIENT_HELLO, length[1], length[2], length[3]][..], &body].concat()
}

/// Split into records of at most `size` bytes.
fn records(message: &[u8], size: usize) -> Vec<u8> {
    message.chunks(size).flat_map(|chunk| [&[HANDSHAKE, 3, 1][..], &vector(chunk)].concat()).collect()
}

fn expected(sni: Option<&str>, alpn: &[&str]) -> Hello {
    let alpn = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Hello::ClientHello { sni: sni.map(str::to_owned), alpn }
}

#[test]
fn server_name_and_alpn_are_parsed() {
    let grease = extension(0x0a0a, &[]);
    for (extensions, expected) in [
        (None, expected(None, &[])),
        (Some(vec![]), expected(None, &[])),
        (Some([grease.clone(), sni("Order.Shop"), grease.clone()].concat()), expected(Some("order.shop"), &[])),
        (Some([alpn(&["weft-h2", "h2"]), sni("a")].concat()), expected(Some("a"), &["weft-h2", "h2"])),
        (Some(sni("")), expected(None, &[])),
    ] {
        let bytes = records(&hello(extensions.as_deref()), 1 << 14);
        assert_eq!(client_hello(&bytes), expected);
        assert_eq!(client_hello(&[&bytes[..], b"more"].concat()), expected);
    }
}

#[test]
fn fragmented_hellos_are_joined() {
    let message = hello(Some(&[sni("order"), alpn(&["h2"])].concat()));
    for size in 1..=message.len() {
        let bytes = records(&message, size);
        assert_eq!(client_hello(&bytes), expected(Some("order"), &["h2"]), "records of {size}");
        for end in 0..bytes.len() {
            assert_eq!(client_hello(&bytes[..end]), Hello::NeedMore, "{end} bytes of records of {size}");
        }
    }
}

#[test]
fn other_bytes_are_rejected() {
    let good = records(&hello(None), 1 << 14);
    let mut server_hello = good.clone();
    server_hello[5] = 2;
    let mut endless = records(&hello(None), 1 << 14);
    endless[6] = 1; // a length of 64 KiB and more
    let alert = [0x15, 3, 3, 0, 2, 1, 0];
    let empty_record = [0x16, 3, 3, 0, 0];
    let mut lying = records(&hello(Some(&sni("a"))), 1 << 14);
    let last = lying.len() - 3;
    lying[last] = 0xff; // the name is longer than its list
    for bytes in [&server_hello[..], &endless, &alert, &empty_record, &lying, b"GET / HTTP/1.1", b"\x16\x02"] {
        assert_eq!(client_hello(bytes), Hello::NotTls, "{}", bytes.escape_ascii());
    }
}

#[test]
fn oversized_hellos_are_rejected() {
    let huge = records(&hello(Some(&extension(21, &vec![0; MAX_HELLO - 200]))), 1 << 14);
    assert_eq!(client_hello(&huge), expected(None, &[]));
    // As many bytes as allowed, and still incomplete: rejected, not awaited.
    let tiny_records = records(&hello(Some(&extension(21, &[0; 8000]))), 1);
    assert!(tiny_records.len() > MAX_HELLO);
    assert_eq!(client_hello(&tiny_records), Hello::NotTls);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = client_hello(&bytes);
        // Valid up to the extensions, so that they are fuzzed too.
        let _ = client_hello(&records(&hello(Some(&bytes)), 1 << 14));
        let _ = client_hello(&records(&hello(Some(&extension(0, &bytes))), 100));
        let _ = client_hello(&records(&hello(Some(&extension(16, &bytes))), 100));
    }

    #[test]
    fn a_flipped_byte_never_panics(at in 0usize..200, byte: u8) {
        let mut bytes = records(&hello(Some(&[sni("order"), alpn(&["h2"])].concat())), 40);
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = client_hello(&bytes);
    }
}
