//! The date as HTTP writes it, made once a second.

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use http::HeaderValue;

thread_local! {
    static DATE: RefCell<(u64, HeaderValue)> = const { RefCell::new((0, HeaderValue::from_static(""))) };
}

/// Gives the value of a `Date` header (RFC 9110, 6.6.1).
pub fn with_now<T>(f: impl FnOnce(&HeaderValue) -> T) -> T {
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    DATE.with_borrow_mut(|(made, value)| {
        if *made != second || value.is_empty() {
            let text = httpdate::fmt_http_date(now);
            (*made, *value) = (second, HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("")));
        }
        f(value)
    })
}
