//! One request from its head to its line in the log: decided, answered or passed on, tried again
//! where that does no harm, and accounted for.

use std::future::poll_fn;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use http::{Method, StatusCode};
use tokio::time::Instant;

use super::client::Client;
use super::connection::Connection;
use super::context::{Context, Forwarding};
use super::decision::{Action, Decision};
use super::failure::{ClientError, Failure};
use super::forwarded::{self, Origin};
use super::patience::is_patient;
use super::relay::{Relay, Replay, Request};
use super::respond::Answer;
use super::tunnel::Tunnel;
use super::{CLIENT_WRITE_TIMEOUT, Proxy, access_log, dial};
use crate::listener::ConnectionInfo;
use crate::message::{Framing, RequestHead};

/// How often one request may be sent on its way: dials that failed, and kept connections that
/// turned out to be closed.
const MAX_ATTEMPTS: usize = 16;

/// How long a client may take for the part that there is of a response.
const CUT_OFF_TIMEOUT: Duration = Duration::from_secs(5);

/// A request with all that is needed to see it through.
pub struct Exchange<'e, C> {
    pub proxy: &'e Proxy,
    pub connection: &'e ConnectionInfo,
    pub request: &'e RequestHead,
    pub client: &'e mut C,
}

/// What came of one attempt.
enum Attempt {
    Over,
    /// The connection was closed before the upstream can have answered: on another one.
    Again(Replay),
}

impl<C: Client> Exchange<'_, C> {
    /// Sees it through. The client has its response then, or it is cut off.
    pub async fn run(mut self) {
        let mut context = Context::default();
        let Decision { site, action } = self.proxy.decide(self.request, self.connection);
        context.site = site;
        match action {
            Action::KeyAuthorization(text) => {
                let answer = Answer::key_authorization(text);
                self.answer(answer, &mut context).await;
            }
            Action::Redirect(location) => {
                self.answer(Answer::redirect(&location), &mut context).await;
            }
            Action::Refuse(refusal) => {
                self.answer(Answer::refusal(refusal), &mut context).await;
            }
            Action::Proxy { route } => self.forward(route, &mut context).await,
        }
        self.account(&context);
    }

    /// Sends an answer of ours.
    async fn answer(&mut self, answer: Answer, context: &mut Context) {
        self.client.forgo_body();
        let sent = Box::pin(send_answer(self.client, answer, &self.request.method)).await;
        match sent {
            Ok((status, bytes)) => {
                context.status = Some(status);
                context.bytes = bytes;
            }
            Err(error) => self.fail(error.into(), context),
        }
    }

    async fn forward(&mut self, route: usize, context: &mut Context) {
        let Some(site) = context.site.clone() else {
            return;
        };
        let forwarding = Forwarding::new(site, route);
        let fixed = forwarding.pool().fixed_answer(forwarding.turn);
        let fixed = fixed.map(Answer::fixed);
        context.forwarding = Some(forwarding);
        if let Some(answer) = fixed {
            return self.answer(answer, context).await;
        }
        if let Err(failure) = self.attempts(context).await {
            Box::pin(self.give_up(failure, context)).await;
        }
    }

    async fn attempts(&mut self, context: &mut Context) -> Result<(), Failure> {
        let mut replay = None;
        let mut fresh = false;
        for _ in 0..MAX_ATTEMPTS {
            let Some((upstream, reused)) = self.connect(context, fresh).await? else {
                fresh = false;
                continue;
            };
            let attempt = self.attempt(upstream, reused, replay.take(), context);
            match attempt.await? {
                Attempt::Over => return Ok(()),
                Attempt::Again(body) => {
                    replay = Some(body);
                    fresh = true;
                }
            }
        }
        Err(Failure::NoUpstream {
            status: StatusCode::BAD_GATEWAY,
            reason: format!("no answer after {MAX_ATTEMPTS} attempts"),
        })
    }

    /// A connection to the next address, and whether it was used before. `None`: there was none to
    /// be had, and that is noted. `fresh`: a new one to the same address.
    async fn connect(
        &mut self,
        context: &mut Context,
        fresh: bool,
    ) -> Result<Option<(Connection, bool)>, Failure> {
        let forwarding = context.forwarding_mut()?;
        if !fresh {
            forwarding.advance().await?;
        }
        forwarding.note_version();
        let address = forwarding.address()?;
        if !fresh && let Some(kept) = self.proxy.kept.take(address) {
            return Ok(Some((kept, true)));
        }
        // Boxed, like all that most requests do without: what is not is a part of every connection's
        // memory.
        match Box::pin(dial::dial(address)).await {
            Ok(connection) => {
                self.note_dialled(context);
                Ok(Some((connection, false)))
            }
            Err(error) => {
                self.note_dial_failed(context, &error);
                Ok(None)
            }
        }
    }

    async fn attempt(
        &mut self,
        mut upstream: Connection,
        reused: bool,
        replay: Option<Replay>,
        context: &mut Context,
    ) -> Result<Attempt, Failure> {
        let upgrade = forwarded::wants_upgrade(self.request);
        self.write_head(&mut upstream, upgrade);
        let may_repeat = reused && is_idempotent(&self.request.method);
        let replay = replay.unwrap_or(match may_repeat {
            true => Replay::Kept(Vec::new()),
            false => Replay::Lost,
        });
        let request = Request {
            method: &self.request.method,
            framing: self.request.framing,
            upgrade,
            patient: upgrade || is_patient(&self.request.fields),
        };
        let mut relay = Relay::new(request, self.client, &mut upstream, replay);
        let result = poll_fn(|cx| relay.poll(cx)).await;
        (context.status, context.bytes) = relay.sent();
        let (reusable, ignored) = (relay.is_reusable(), relay.was_ignored());
        let replay = relay.take_replay();
        match result {
            Ok(()) if context.status == Some(StatusCode::SWITCHING_PROTOCOLS) => {
                Box::pin(self.tunnel(&mut upstream, context)).await?;
            }
            Ok(()) if reusable => self.keep(upstream, context),
            Ok(()) => {}
            Err(Failure::Upstream(error))
                if error.is_closed() && may_repeat && ignored && replay.is_whole() =>
            {
                return Ok(Attempt::Again(replay));
            }
            Err(failure) => return Err(failure),
        }
        Ok(Attempt::Over)
    }

    async fn tunnel(
        &mut self,
        upstream: &mut Connection,
        context: &mut Context,
    ) -> Result<(), Failure> {
        context.switched = true;
        let mut tunnel = Tunnel::new(self.client, upstream);
        let result = poll_fn(|cx| tunnel.poll(cx)).await;
        context.bytes = tunnel.sent();
        result
    }

    fn write_head(&self, upstream: &mut Connection, upgrade: bool) {
        let origin = Origin {
            client: &self.connection.client_ip,
            secure: self.connection.tls.is_some(),
        };
        forwarded::write(&mut upstream.output, self.request, &origin, upgrade);
    }

    fn keep(&self, upstream: Connection, context: &Context) {
        if let Some(forwarding) = &context.forwarding
            && let Ok(address) = forwarding.address()
        {
            let kept = &self.proxy.kept;
            kept.put(address, forwarding.version, upstream);
        }
    }

    /// Tells the client that it comes to nothing, if it can be told.
    async fn give_up(&mut self, failure: Failure, context: &mut Context) {
        let status = failure.status().filter(|_| context.status.is_none());
        context.note(&failure);
        match status {
            Some(status) => self.answer(Answer::failure(status), context).await,
            None => self.cut_off().await,
        }
    }

    /// The client gets what there is of its response, and sees that this is not all.
    async fn cut_off(&mut self) {
        self.client.cut_off();
        let deadline = Instant::now() + CUT_OFF_TIMEOUT;
        let client = &mut *self.client;
        poll_fn(|cx| match client.poll_flush(cx) {
            // It may be gone.
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => client.poll_deadline(cx, deadline),
        })
        .await;
    }

    fn fail(&mut self, failure: Failure, context: &mut Context) {
        context.note(&failure);
        self.client.cut_off();
    }

    fn note_dialled(&self, context: &Context) {
        if let Some(upstream) = context.forwarding.as_ref().and_then(Forwarding::dialled) {
            let site = context.site_label();
            let metrics = &self.proxy.metrics;
            metrics.upstream_healthy(site, upstream.label(), true);
            tracing::info!(site, upstream = upstream.label(), "upstream is back");
        }
    }

    fn note_dial_failed(&self, context: &mut Context, error: &dial::DialError) {
        context.note_dial(error);
        let forwarding = context.forwarding.as_ref();
        if let Some(upstream) = forwarding.and_then(Forwarding::dial_failed) {
            let site = context.site_label();
            let metrics = &self.proxy.metrics;
            metrics.upstream_healthy(site, upstream.label(), false);
        }
    }

    fn account(&self, context: &Context) {
        let duration = context.started.elapsed();
        let measured = (!context.switched).then_some(duration);
        let status = context.status.unwrap_or_else(access_log::client_closed);
        let metrics = &self.proxy.metrics;
        metrics.request(context.site_label(), status, measured);
        access_log::record(self.request, context, self.connection, status, duration);
    }
}

/// RFC 9110 section 9.2.2. A method of somebody's own may be anything.
fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE
    )
}

/// Sends it, to HEAD without its body. The status, and how many bytes of body.
pub async fn send_answer<C: Client>(
    client: &mut C,
    answer: Answer,
    method: &Method,
) -> Result<(StatusCode, u64), ClientError> {
    let Answer { head, body } = answer;
    let bytes = match *method {
        Method::HEAD => 0,
        _ => body.len(),
    };
    let framing = match bytes {
        0 => Framing::None,
        bytes => Framing::Length(bytes as u64),
    };
    client.send_head(&head, framing)?;
    let mut body = BytesMut::from(&body[..bytes]);
    let deadline = Instant::now() + CLIENT_WRITE_TIMEOUT;
    poll_fn(|cx| {
        let sent = poll_answer(client, cx, &mut body);
        match sent.is_pending() {
            true => client
                .poll_deadline(cx, deadline)
                .map(|()| Err(ClientError::WriteTimeout)),
            false => sent,
        }
    })
    .await?;
    Ok((head.status, bytes as u64))
}

fn poll_answer<C: Client>(
    client: &mut C,
    cx: &mut std::task::Context<'_>,
    body: &mut BytesMut,
) -> Poll<Result<(), ClientError>> {
    while !body.is_empty() {
        let room = ready!(client.poll_room(cx, body.len()))?;
        let length = room.min(body.len());
        client.send_data(body, length, length == body.len())?;
    }
    client.poll_flush(cx)
}
