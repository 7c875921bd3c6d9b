//! Whoever says which names may be had on demand: an HTTP server that answers as it is told and
//! remembers what it was asked.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

use super::place::Place;
use super::server::Server;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Say {
    Yes,
    /// Any other status.
    Status(u16),
    /// To a place that would say yes.
    Redirect,
    /// Nothing, ever.
    Nothing,
    /// Nothing until something else is to be said.
    Wait,
}

/// Stopped when dropped.
pub struct PermissionServer {
    pub url: String,
    server: Server,
    shared: Arc<Shared>,
}

struct Shared {
    say: Mutex<Say>,
    /// The queries, oldest first.
    asked: Mutex<Vec<String>>,
}

impl PermissionServer {
    pub async fn start(place: &Place, say: Say) -> PermissionServer {
        let addr = place.free();
        let shared = Arc::new(Shared {
            say: Mutex::new(say),
            asked: Mutex::default(),
        });
        let router = Router::new().fallback(answer);
        let server = Server::tcp(addr, router.with_state(Arc::clone(&shared))).await;
        PermissionServer {
            url: format!("http://{addr}/allowed"),
            server,
            shared,
        }
    }

    pub fn say(&self, say: Say) {
        *self.shared.say.lock().unwrap() = say;
    }

    /// What was asked, `domain=...&client=...`, oldest first.
    pub fn asked(&self) -> Vec<String> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// Unreachable from now on.
    pub async fn stop(&self) {
        self.server.stop().await;
    }
}

async fn answer(State(shared): State<Arc<Shared>>, uri: Uri) -> Response {
    if uri.path() == "/yes" {
        return StatusCode::OK.into_response();
    }
    let query = uri.query().unwrap_or_default().to_owned();
    shared.asked.lock().unwrap().push(query);
    let mut say = *shared.say.lock().unwrap();
    while say == Say::Wait {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        say = *shared.say.lock().unwrap();
    }
    match say {
        Say::Yes => StatusCode::OK.into_response(),
        Say::Status(status) => StatusCode::from_u16(status)
            .expect("a status")
            .into_response(),
        Say::Redirect => {
            let place = [(header::LOCATION, "/yes")];
            (StatusCode::FOUND, place).into_response()
        }
        Say::Nothing | Say::Wait => std::future::pending::<Response<Body>>().await,
    }
}
