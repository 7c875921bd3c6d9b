//! The access log: a line for each request that has come, in both forms, and not one of them lost
//! when the process ends.

use rustix::process::Signal;
use serde_json::Value;

use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::wait::SOON;
use crate::support::wire::Wire;

const REQUESTS: usize = 200;

/// What is logged of so many requests on one connection, the last of them just before the end.
async fn logged(format: &str) -> Vec<String> {
    let place = Place::new();
    let site = "a.example.test=respond:hello";
    let mut perennial = Perennial::with_proxy(place, &[site, "--internal", "--log-format", format]);
    perennial.start_and_wait().await;
    let stream = tokio::net::TcpStream::connect(perennial.place.http).await;
    let mut client = Wire::new(stream.expect("a connection"));
    for number in 0..REQUESTS {
        let request = format!(
            "GET /{number}?secret HTTP/1.1\r\nHost: a.example.test\r\nUser-Agent: \"x\"\r\n\r\n"
        );
        client.send(request).await.expect("sent");
        assert_eq!(
            client.response("GET").await.expect("an answer").status(),
            308
        );
    }
    client
        .send("GET / HTTP/1.1\nHost: a.example.test\n\n")
        .await
        .expect("sent");
    assert_eq!(
        client.response("GET").await.expect("an answer").status(),
        400
    );
    perennial.signal(Signal::TERM);
    perennial.wait_exit(SOON).await;
    perennial.log_lines_with("perennial::access")
}

#[tokio::test(flavor = "multi_thread")]
async fn json_has_every_request() {
    let lines = logged("json").await;
    let lines: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), REQUESTS + 1);
    for (number, line) in lines[..REQUESTS].iter().enumerate() {
        assert_eq!(line["path"], format!("/{number}"), "{line}");
        assert_eq!(line["status"], 308);
        assert_eq!(line["client"], "127.0.0.1");
        assert_eq!(line["user_agent"], "\"x\"");
        assert!(line["duration_ms"].is_number(), "{line}");
    }
    assert_eq!(lines[REQUESTS]["status"], 400);
    assert_eq!(
        lines[REQUESTS]["malformed"],
        "a line that does not end in CRLF"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn people_read_the_same() {
    let lines = logged("human").await;
    assert_eq!(lines.len(), REQUESTS + 1);
    for (number, line) in lines[..REQUESTS].iter().enumerate() {
        let fields =
            format!("client=127.0.0.1 method=\"GET\" host=\"a.example.test\" path=\"/{number}\"");
        assert!(line.contains(&fields), "{line}");
        assert!(line.contains("user_agent=\"\\\"x\\\"\""), "{line}");
        assert!(!line.contains("secret"), "{line}");
    }
}
