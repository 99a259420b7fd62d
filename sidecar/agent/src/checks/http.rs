//! HTTP checks: a request with its redirects, each of which is subject to the same rule as the first URL.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::state::{MAX_OUTPUT, Status};
use super::{Http, Place, Sockets, dial};

const MAX_REDIRECTS: usize = 10;

/// The health for a status code.
pub(super) fn health(status: StatusCode) -> Status {
    match status {
        StatusCode::TOO_MANY_REQUESTS => Status::Warning,
        _ if status.is_success() => Status::Passing,
        _ => Status::Critical,
    }
}

/// What a redirect to another host means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Elsewhere {
    /// It is followed, which fails unless the host is one of this pod.
    Follows,
    /// It is the answer.
    Ends,
}

/// Sends the request and follows redirects: the last status, and the beginning of its body.
pub(super) async fn fetch(
    sockets: &dyn Sockets,
    http: &Http,
    elsewhere: Elsewhere,
    timeout: Duration,
) -> Result<(StatusCode, String), String> {
    let mut url = http.url.clone();
    let (mut method, mut body) = (http.method.clone(), http.body.clone());
    for _ in 0..=MAX_REDIRECTS {
        let response = send(sockets, http, &method, &url, body.clone(), timeout).await?;
        let status = response.status();
        let location = response.headers().get(header::LOCATION).and_then(|l| l.to_str().ok());
        match location {
            Some(location) if !http.disable_redirects && follows(status) => {
                url = join(&url, location).ok_or_else(|| format!("redirected to {location:?}, which is not a URL"))?;
                if elsewhere == Elsewhere::Ends && url.host() != http.url.host() {
                    return Ok((status, String::new()));
                }
                // As in browsers: only 307 and 308 keep the method.
                if !matches!(status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT)
                    && method != Method::HEAD
                {
                    (method, body) = (Method::GET, Bytes::new());
                }
            }
            _ => return Ok((status, read(response.into_body()).await)),
        }
    }
    Err(format!("stopped after {MAX_REDIRECTS} redirects"))
}

fn follows(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

async fn send(
    sockets: &dyn Sockets,
    http: &Http,
    method: &Method,
    url: &Uri,
    body: Bytes,
    timeout: Duration,
) -> Result<hyper::Response<Incoming>, String> {
    let tls = match url.scheme_str() {
        Some("http") => None,
        Some("https") => Some(http.tls.clone()),
        _ => return Err(format!("{url} is neither http:// nor https://")),
    };
    let authority = url.authority().ok_or_else(|| format!("{url} names no host"))?;
    let port = authority.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
    let place = Place { host: authority.host().to_owned(), port, tls };
    let stream = dial::open(sockets, &place, None, timeout).await?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|e| format!("HTTP handshake failed: {e}"))?;
    // The connection ends with the request, which reports any error.
    tokio::spawn(connection);
    let path = url.path_and_query().map_or("/", |p| p.as_str());
    let mut request = Request::builder().method(method).uri(path);
    if let Some(headers) = request.headers_mut() {
        for (name, value) in &http.headers {
            headers.append(name, value.clone());
        }
        let mut or = |name, value: Result<header::HeaderValue, _>| {
            if let Ok(value) = value {
                headers.entry(name).or_insert(value);
            }
        };
        or(header::HOST, header::HeaderValue::from_str(authority.as_str()));
        or(header::USER_AGENT, Ok(header::HeaderValue::from_static("Consul Health Check")));
        or(header::ACCEPT, Ok(header::HeaderValue::from_static("text/plain, text/*, */*")));
        or(header::CONNECTION, Ok(header::HeaderValue::from_static("close")));
    }
    let request = request.body(Full::new(body)).map_err(|e| e.to_string())?;
    sender.send_request(request).await.map_err(|e| format!("no answer: {e}"))
}

/// The beginning of a body; a body that breaks off counts as far as it was received.
async fn read(mut body: Incoming) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < MAX_OUTPUT {
        match body.frame().await {
            Some(Ok(frame)) => bytes.extend(frame.into_data().unwrap_or_default()),
            _ => break,
        }
    }
    bytes.truncate(MAX_OUTPUT);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `location` resolved against `base`.
fn join(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next()?;
    let root = format!("{}://{}", base.scheme_str()?, base.authority()?);
    let text = if location.contains("://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{}://{rest}", base.scheme_str()?)
    } else if location.starts_with('/') {
        format!("{root}{location}")
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{root}{folder}/{location}")
    };
    let uri: Uri = text.parse().ok()?;
    uri.authority()?;
    Some(uri)
}

#[cfg(test)]
pub(super) mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::Kind;
    use super::super::probe::{kubelet_probe, probe};
    use super::super::tests::Plain;
    use super::*;

    /// Answers each connection with the next of `answers`, and returns the received requests.
    async fn server(answers: Vec<String>) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            let mut requests = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = vec![0; 4096];
                let n = stream.read(&mut buffer).await.unwrap();
                requests.push(String::from_utf8_lossy(&buffer[..n]).into_owned());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            requests
        });
        (port, task)
    }

    pub(in crate::checks) fn http(port: u16, path: &str) -> Http {
        Http {
            url: format!("http://localhost:{port}{path}").parse().unwrap(),
            method: Method::GET,
            headers: Vec::new(),
            body: Bytes::new(),
            disable_redirects: false,
            tls: Default::default(),
        }
    }

    #[tokio::test]
    async fn health_follows_the_status_code() {
        for (answer, status, text) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", Status::Passing, "200 OK Output: ok"),
            ("HTTP/1.1 204 No Content\r\n\r\n", Status::Passing, "204 No Content Output: "),
            ("HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n", Status::Warning, "429 Too Many"),
            ("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", Status::Critical, "503 Service"),
            ("no HTTP\r\n\r\n", Status::Critical, "no answer"),
        ] {
            let (port, task) = server(vec![answer.into()]).await;
            let (found, output) = probe(&Plain, &Kind::Http(http(port, "/health")), Duration::from_secs(2)).await;
            assert_eq!(found, status, "{output}");
            let expected = format!("HTTP GET http://localhost:{port}/health: {text}");
            assert!(output.starts_with(&expected), "{output}");
            let requests = task.await.unwrap().remove(0);
            assert!(requests.starts_with("GET /health HTTP/1.1\r\n"), "{requests}");
            assert!(requests.contains("user-agent: Consul Health Check\r\n"), "{requests}");
        }
    }

    #[tokio::test]
    async fn redirects_are_followed_within_the_pod_only() {
        let to = |l: &str| format!("HTTP/1.1 302 Found\r\nlocation: {l}\r\ncontent-length: 0\r\n\r\n");
        let fine = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned();
        let (port, task) = server(vec![to("there?x=1"), fine]).await;
        let (status, output) = probe(&Plain, &Kind::Http(http(port, "/a/health")), Duration::from_secs(2)).await;
        assert_eq!(status, Status::Passing, "{output}");
        assert!(task.await.unwrap()[1].starts_with("GET /a/there?x=1 "));

        let (port, _task) = server(vec![to("http://192.0.2.1/secret")]).await;
        let (status, output) = probe(&Plain, &Kind::Http(http(port, "/")), Duration::from_secs(2)).await;
        assert_eq!(status, Status::Critical);
        assert!(output.ends_with("192.0.2.1 is not an address of this pod"), "{output}");

        let (port, _task) = server(vec![to("/b")]).await;
        let kind = Kind::Http(Http { disable_redirects: true, ..http(port, "/") });
        let (status, output) = probe(&Plain, &kind, Duration::from_secs(2)).await;
        assert!(status == Status::Critical && output.contains("302 Found"), "{output}");
    }

    #[tokio::test]
    async fn the_kubelet_takes_redirects_for_success() {
        let to = |l: &str| format!("HTTP/1.1 302 Found\r\nlocation: {l}\r\ncontent-length: 0\r\n\r\n");
        let answer = |status: &str| format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nab");
        for (answers, expected) in [
            (vec![answer("200 OK")], Ok("200 OK: ab")),
            (vec![answer("304 Not Modified").replace("content-length: 2\r\n\r\nab", "\r\n")], Ok("304")),
            (vec![answer("404 Not Found")], Err("404 Not Found: ab")),
            (vec![answer("429 Too Many Requests")], Err("429")),
            (vec![to("http://192.0.2.1/elsewhere")], Ok("302 Found")),
            (vec![to("/here"), answer("500 Oh")], Err("500")),
            (vec!["no HTTP\r\n\r\n".to_owned()], Err("no answer")),
        ] {
            let (port, _task) = server(answers).await;
            let result = kubelet_probe(&Plain, &Kind::Http(http(port, "/")), Duration::from_secs(2)).await;
            match (&result, expected) {
                (Ok(found), Ok(text)) | (Err(found), Err(text)) => assert!(found.contains(text), "{found}, not {text}"),
                _ => panic!("{result:?}, not {expected:?}"),
            }
        }
    }
}
