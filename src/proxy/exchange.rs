//! One request from its head to its line in the log: decided, answered or passed on, tried again
//! where that does no harm, and accounted for.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, SendStream};
use http::{Method, StatusCode};
use tokio::time::Instant;

use super::access::{Denial, Guard};
use super::address::Address;
use super::answering::dressed;
use super::changes::{self, Adjustment, Subject};
use super::client::Client;
use super::compress::Compressing;
use super::connection::{Connection, Socket};
use super::context::{Context, Forwarding};
use super::decision::{Action, Decision};
use super::failure::{Failure, UpstreamError};
use super::forward_auth::{Asker, Verdict};
use super::forwarded::{self, Outgoing};
use super::intake::Replay;
use super::multiplexed::Place;
use super::origin::Origin;
use super::patience::is_patient;
use super::progress::Limits;
use super::relay::{Relay, Request};
use super::relay_http2::StreamRelay;
use super::respond::Answer;
use super::stream_socket::StreamSocket;
use super::tunnel::Tunnel;
use super::upstream::{Turned, Upstream};
use super::{Proxy, access_log, dial, forwarded_http2};
use crate::admin::metrics::EjectionCause;
use crate::listener::ConnectionInfo;
use crate::message::{Known, RequestHead};

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
    /// It came to nothing before the upstream can have worked on it: on another connection.
    Again(Replay, Failure),
}

/// What an attempt is made on. Whether it was used before is said beside it.
enum Way {
    Http1(Connection, bool),
    Http2(Place),
    /// A new connection of HTTP/1.1 to an upstream of HTTP/2, which may not speak it.
    Instead(Connection),
}

/// Which address is next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    First,
    /// Another one: the last could not be dialled.
    Another,
    /// The same again, on a new connection.
    Same,
}

impl<C: Client> Exchange<'_, C> {
    /// Sees it through. The client has its response then, or it is cut off.
    pub async fn run(mut self) {
        let mut context = Context::default();
        let Decision { site, action } = self.proxy.decide(self.request, self.connection);
        let settings = site.as_deref().map(|site| &*site.settings);
        let trusted = settings.map(|settings| &*settings.trusted_proxies);
        let origin = Origin::of(self.request, self.connection, trusted.unwrap_or_default());
        context.client = origin.named_client().map(Box::from);
        let named = settings.and_then(|settings| settings.request_id.as_ref());
        context.request_id = named.map(|name| self.request_id(name, &origin));
        context.site = site;
        match action {
            Action::KeyAuthorization(text) => {
                let answer = Answer::key_authorization(text);
                self.answer(answer, &origin, &mut context).await;
            }
            Action::Redirect(location) => {
                let answer = Answer::redirect(&location);
                self.answer(answer, &origin, &mut context).await;
            }
            Action::NotAllowed(methods) => {
                let answer = dressed(Answer::not_allowed(methods.as_bytes()), &context);
                self.answer(answer, &origin, &mut context).await;
            }
            Action::Refuse(refusal) => {
                let answer = dressed(Answer::refusal(refusal), &context);
                self.answer(answer, &origin, &mut context).await;
            }
            Action::Proxy { route } => self.forward(route, &origin, &mut context).await,
        }
        self.account(&context);
    }

    /// What a trusted proxy calls the request, or a name of our own.
    fn request_id(&self, name: &str, origin: &Origin<'_>) -> Box<str> {
        let given = self.request.fields.named(name).next();
        let is_named = origin.named_client().is_some();
        let given = given.filter(|_| is_named).and_then(readable_id);
        given.map_or_else(new_request_id, Box::from)
    }

    async fn forward(&mut self, route: usize, origin: &Origin<'_>, context: &mut Context) {
        context.route = Some(route);
        let Some(site) = context.site.clone() else {
            return;
        };
        if let Some(guard) = &site.routes[route].guard
            && let Err(denial) = Box::pin(self.admit(guard, origin, context)).await
        {
            let answer = dressed(Answer::denial(&denial), context);
            return self.answer(answer, origin, context).await;
        }
        let guard = site.routes[route].guard.as_ref();
        if let Some(asker) = guard.and_then(|guard| guard.forward_auth())
            && !Box::pin(self.is_granted(asker, origin, context)).await
        {
            return;
        }
        if let Some(answer) = &site.routes[route].answer {
            let answer = self.fixed_answer(answer, origin, context);
            return self.answer(answer, origin, context).await;
        }
        if site.routes[route].files.is_some() {
            return Box::pin(self.serve_file(origin, context)).await;
        }
        let selection = site.routes[route].pool.select(self.request, &origin.client);
        let forwarding = Forwarding::new(site, route, selection);
        let fixed = forwarding.pool().fixed_answer(&forwarding.selection);
        let fixed = fixed.map(Answer::fixed);
        context.forwarding = Some(forwarding);
        if let Some(answer) = fixed {
            return self.answer(answer, origin, context).await;
        }
        if let Err(failure) = self.attempts(origin, context).await {
            Box::pin(self.give_up(failure, origin, context)).await;
        }
    }

    async fn admit(
        &self,
        guard: &Guard,
        origin: &Origin<'_>,
        context: &mut Context,
    ) -> Result<(), Denial> {
        context.user = guard.admit(self.request, &origin.client).await?;
        Ok(())
    }

    /// Whether somebody else lets the request in. If not, the client has been told.
    async fn is_granted(
        &mut self,
        asker: &Asker,
        origin: &Origin<'_>,
        context: &mut Context,
    ) -> bool {
        match asker
            .ask(self.request, origin, context.named_request())
            .await
        {
            Ok(Verdict::Granted(granted)) => {
                context.granted = granted;
                return true;
            }
            Ok(Verdict::Refused(answer)) => self.answer(answer, origin, context).await,
            Err(error) => self.give_up(error.into(), origin, context).await,
        }
        false
    }

    /// What the route's templates speak of on the way to the upstream.
    pub(super) fn subject<'s>(
        &'s self,
        target: &'s [u8],
        origin: &'s Origin<'s>,
        context: &'s Context,
    ) -> Subject<'s> {
        Subject {
            request: self.request,
            target,
            origin,
            request_id: context.request_id.as_deref(),
            user: context.user.as_deref(),
            granted: context.granted.as_deref(),
            tls: self.connection.tls.as_ref(),
        }
    }

    async fn attempts(
        &mut self,
        origin: &Origin<'_>,
        context: &mut Context,
    ) -> Result<(), Failure> {
        let mut replay = None;
        let mut next = Next::First;
        let mut last = None;
        for _ in 0..MAX_ATTEMPTS {
            let way = self.connect(origin, context, next, last.take());
            let Some(way) = way.await? else {
                next = Next::Another;
                continue;
            };
            let body = replay.take();
            let attempt = match way {
                Way::Http1(upstream, reused) => {
                    self.attempt(upstream, reused, body, origin, context).await
                }
                Way::Instead(upstream) => {
                    let attempt = self.attempt(upstream, false, body, origin, context);
                    let attempt = Box::pin(attempt).await;
                    attempt.map_err(|failure| self.no_web_socket(failure, context))
                }
                // Boxed, like all that most requests do without: what is not is a part of every
                // connection's memory.
                Way::Http2(place) => {
                    Box::pin(self.attempt_http2(place, body, origin, context)).await
                }
            };
            self.note_ended(context, attempt.as_ref().err());
            match attempt? {
                Attempt::Over => return Ok(()),
                Attempt::Again(body, failure) => {
                    (replay, last) = (Some(body), Some(failure));
                    next = Next::Same;
                }
            }
        }
        Err(Failure::NoUpstream {
            status: StatusCode::BAD_GATEWAY,
            reason: format!("no answer after {MAX_ATTEMPTS} attempts"),
        })
    }

    /// A connection to the next address. `None`: there was none to be had, and that is noted.
    /// `last`: what a retry would be for, and what is to be said if there is to be none.
    async fn connect(
        &mut self,
        origin: &Origin<'_>,
        context: &mut Context,
        next: Next,
        last: Option<Failure>,
    ) -> Result<Option<Way>, Failure> {
        let started = context.started;
        let announced = context.announced();
        let forwarding = context.forwarding_mut()?;
        let timeouts = *forwarding.pool().timeouts();
        if next != Next::Same {
            match timeouts.total {
                None => forwarding.advance().await?,
                Some(total) => Box::pin(in_all(started + total, forwarding.advance())).await??,
            }
        }
        if next != Next::First {
            let allowed = forwarding.pool().may_retry();
            let metrics = &self.proxy.metrics;
            metrics.upstream_retry(forwarding.site_label(), allowed);
            if !allowed {
                let spent = "not tried again: the budget for retries is spent".to_owned();
                return Err(last.unwrap_or_else(|| forwarding.nowhere(spent)));
            }
        }
        forwarding.note_version();
        let address = forwarding.address()?;
        // What says who the client is, is that client's alone.
        if next != Next::Same
            && announced.is_none()
            && !address.is_http2()
            && let Some(kept) = self.proxy.kept.take(address)
        {
            return Ok(Some(Way::Http1(kept, true)));
        }
        let left = timeouts
            .total
            .map(|total| (started + total).saturating_duration_since(std::time::Instant::now()));
        let limit = left.map_or(timeouts.dial, |left| left.min(timeouts.dial));
        let dialled = match address.is_http2() {
            true => match Box::pin(self.over_http2(address, limit, timeouts.ping)).await {
                Ok(Some(way)) => Ok(way),
                Ok(None) => {
                    let reason = "its TLS agrees to nothing else (ALPN)".to_owned();
                    return Err(Failure::NoWebSocket(reason));
                }
                Err(error) => Err(error),
            },
            false => {
                let header = announced.map(|version| origin.announcement(version, self.connection));
                let dialled = Box::pin(dial::dial(address, limit, header)).await;
                dialled.map(|connection| Way::Http1(connection, false))
            }
        };
        match dialled {
            Ok(way) => {
                if !matches!(&way, Way::Http2(place) if place.reused) {
                    self.note_dialled(context);
                }
                Ok(Some(way))
            }
            Err(error) => {
                self.note_dial_failed(context, &error);
                Ok(None)
            }
        }
    }

    /// A place on a connection of HTTP/2; for a WebSocket that it does not take there, a connection of
    /// HTTP/1.1 to the same upstream. `None`: it has none.
    async fn over_http2(
        &self,
        address: &Address,
        limit: Duration,
        ping: Option<Duration>,
    ) -> Result<Option<Way>, dial::DialError> {
        let place = self.proxy.multiplexed.place(address, limit, ping).await?;
        if !forwarded::wants_upgrade(self.request) || place.takes_web_sockets(limit).await {
            return Ok(Some(Way::Http2(place)));
        }
        let connection = dial::http1(address, limit).await?;
        Ok(connection.map(Way::Instead))
    }

    /// What it means that an upstream of HTTP/2 does not answer as one of HTTP/1.1: nobody's failure,
    /// or any client could have it ejected.
    fn no_web_socket(&self, failure: Failure, context: &Context) -> Failure {
        match failure {
            Failure::Upstream(error) if context.status.is_none() => Failure::NoWebSocket(format!(
                "does not answer as one of HTTP/1.1 either: {error}"
            )),
            failure => failure,
        }
    }

    async fn attempt(
        &mut self,
        mut upstream: Connection,
        reused: bool,
        replay: Option<Replay>,
        origin: &Origin<'_>,
        context: &mut Context,
    ) -> Result<Attempt, Failure> {
        let upgrade = forwarded::wants_upgrade(self.request);
        self.write_head(upstream.head(), upgrade, origin, context);
        let may_repeat = reused && is_idempotent(&self.request.method);
        let replay = replay.unwrap_or(match may_repeat {
            true => Replay::Kept(Vec::new()),
            false => Replay::Lost,
        });
        let request = self.to_relay(upgrade, origin, context);
        let relayed = match self.codings(context) {
            None => relay(request, self.client, &mut upstream, replay).await,
            Some(codings) => {
                let mut client = Compressing::new(self.client, &self.request.method, codings);
                let relayed = relay(request, &mut client, &mut upstream, replay);
                let mut relayed = Box::pin(relayed).await;
                relayed.sent.1 = client.sent();
                relayed
            }
        };
        (context.status, context.bytes) = relayed.sent;
        let Relayed {
            result,
            reusable,
            ignored,
            replay,
            ..
        } = relayed;
        match result {
            Ok(()) if context.status == Some(StatusCode::SWITCHING_PROTOCOLS) => {
                Box::pin(self.tunnel(&mut upstream, context)).await?;
            }
            Ok(()) if reusable => self.keep(upstream, context),
            Ok(()) => {}
            Err(Failure::Upstream(error))
                if error.is_closed() && may_repeat && ignored && replay.is_whole() =>
            {
                return Ok(Attempt::Again(replay, error.into()));
            }
            Err(failure) => return Err(failure),
        }
        Ok(Attempt::Over)
    }

    async fn attempt_http2(
        &mut self,
        place: Place,
        replay: Option<Replay>,
        origin: &Origin<'_>,
        context: &mut Context,
    ) -> Result<Attempt, Failure> {
        let mut text = Vec::new();
        self.write_head(&mut text, false, origin, context);
        let tls = context.forwarding_mut()?.address()?.is_tls();
        let mut head = forwarded_http2::request(&text, self.request, tls)?;
        let upgrade = forwarded::wants_upgrade(self.request)
            && place.sender.is_extended_connect_protocol_enabled();
        if upgrade {
            forwarded_http2::extended_connect(&mut head);
        }
        // A stream that is refused was not worked on, whatever the method (RFC 9113 section 8.7).
        let replay = replay.unwrap_or_else(|| Replay::Kept(Vec::new()));
        let ends = self.request.framing.is_empty() && !upgrade;
        let mut sender = place.sender.clone();
        let begun = match poll_fn(|cx| sender.poll_ready(cx)).await {
            Ok(()) => sender.send_request(head, ends),
            Err(error) => Err(error),
        };
        // It holds on to the connection otherwise.
        drop(sender);
        let stream = match begun {
            Ok(stream) => stream,
            Err(error) => {
                place.retire();
                return Ok(Attempt::Again(replay, UpstreamError::from(error).into()));
            }
        };
        let request = self.to_relay(upgrade, origin, context);
        let accept = upgrade.then(|| forwarded::accepted(self.request));
        let relayed = match self.codings(context).filter(|_| !upgrade) {
            None => relay_stream(request, self.client, stream, replay, accept).await,
            Some(codings) => {
                let mut client = Compressing::new(self.client, &self.request.method, codings);
                let mut relayed = relay_stream(request, &mut client, stream, replay, None).await;
                relayed.sent.1 = client.sent();
                relayed
            }
        };
        (context.status, context.bytes) = relayed.sent;
        let replay = relayed.replay;
        match relayed.result {
            Ok(()) => {
                if let Some(stream) = relayed.switched {
                    let mut upstream = Connection::new(Socket::Stream(Box::new(stream)));
                    Box::pin(self.tunnel(&mut upstream, context)).await?;
                }
                Ok(Attempt::Over)
            }
            Err(Failure::Upstream(error)) => {
                let again = self.may_repeat_stream(&error, place.reused, relayed.ignored);
                if !is_about_stream(&error) {
                    place.retire();
                }
                match again && replay.is_whole() {
                    true => Ok(Attempt::Again(replay, error.into())),
                    false => Err(error.into()),
                }
            }
            Err(failure) => Err(failure),
        }
    }

    /// Whether a stream ended in a way that lets its request be sent again.
    fn may_repeat_stream(&self, error: &UpstreamError, reused: bool, ignored: bool) -> bool {
        let UpstreamError::Http2(error) = error else {
            return false;
        };
        let refused = error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM);
        // It was told that the stream is above those that are worked on (RFC 9113 section 6.8).
        let gone =
            error.is_remote() && error.is_go_away() && error.reason() == Some(Reason::NO_ERROR);
        let closed = reused && (error.is_io() || error.is_go_away());
        ignored && (refused || gone || (closed && is_idempotent(&self.request.method)))
    }

    /// What is relayed. `upgrade`: whether a switch of protocols was asked for.
    fn to_relay<'r>(&self, upgrade: bool, origin: &'r Origin<'r>, context: &Context) -> Request<'r>
    where
        Self: 'r,
    {
        let patient = upgrade || is_patient(&self.request.fields);
        let timeouts = context.forwarding.as_ref().map(|it| *it.pool().timeouts());
        Request {
            method: &self.request.method,
            framing: self.request.framing,
            upgrade,
            expects: !self.request.framing.is_empty() && self.request.fields.has(Known::Expect),
            limits: Limits::new(&timeouts.unwrap_or_default(), patient, context.started),
            max_body: context.max_body(),
            rates: context.min_rates(),
            adjust: Adjustment::of(context, self.request, self.connection.tls.as_ref(), origin),
        }
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

    fn write_head(
        &self,
        output: &mut Vec<u8>,
        upgrade: bool,
        origin: &Origin<'_>,
        context: &Context,
    ) {
        let changes = context.route().and_then(|route| route.changes.as_deref());
        let form = context.site.as_ref().map(|site| site.settings.forwarded);
        let mut outgoing = Outgoing {
            origin,
            form: form.unwrap_or_default(),
            request_id: context.named_request(),
            granted: context.granted.as_deref(),
            changes: None,
        };
        let Some(changes) = changes else {
            return forwarded::write(output, self.request, &outgoing, upgrade);
        };
        let target = changes::stripped(self.request, changes.strip_prefix.as_deref());
        let subject = self.subject(&target, origin, context);
        outgoing.changes = Some((changes, &subject));
        forwarded::write(output, self.request, &outgoing, upgrade);
    }

    fn keep(&self, upstream: Connection, context: &Context) {
        if context.announced().is_none()
            && let Some(forwarding) = &context.forwarding
            && let Ok(address) = forwarding.address()
        {
            let kept = &self.proxy.kept;
            kept.put(address, forwarding.version, upstream);
        }
    }

    /// Tells the client that it comes to nothing, if it can be told.
    pub(super) async fn give_up(
        &mut self,
        failure: Failure,
        origin: &Origin<'_>,
        context: &mut Context,
    ) {
        let status = failure.status().filter(|_| context.status.is_none());
        context.note(&failure);
        match status {
            Some(status) => {
                let mut answer = dressed(Answer::failure(status), context);
                if let Failure::Busy(busy) = failure {
                    let metrics = &self.proxy.metrics;
                    metrics.upstream_busy(context.site_label(), busy.label());
                    answer = answer.with_retry_after(busy.retry_after());
                }
                self.answer(answer, origin, context).await;
            }
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

    pub(super) fn fail(&mut self, failure: Failure, context: &mut Context) {
        context.note(&failure);
        self.client.cut_off();
    }

    fn note_dialled(&self, context: &Context) {
        if let Some(upstream) = context.forwarding.as_ref().and_then(Forwarding::dialled) {
            self.note_back(context, upstream);
        }
    }

    fn note_back(&self, context: &Context, upstream: &Upstream) {
        let (site, upstream) = (context.site_label(), upstream.label());
        self.proxy.metrics.upstream_healthy(site, upstream, true);
        tracing::info!(site, upstream, "upstream is back");
    }

    fn note_dial_failed(&self, context: &mut Context, error: &dial::DialError) {
        context.note_dial(error);
        let forwarding = context.forwarding.as_ref();
        if let Some((upstream, time)) = forwarding.and_then(Forwarding::dial_failed) {
            let (site, upstream) = (context.site_label(), upstream.label());
            self.proxy.metrics.upstream_healthy(site, upstream, false);
            if !time.is_zero() {
                let cause = EjectionCause::Dial;
                self.proxy.metrics.upstream_ejected(site, upstream, cause);
            }
            tracing::warn!(site, upstream, left_alone = ?time, cause = %error, "upstream cannot be dialled");
        }
    }

    /// What an attempt says of the upstream. `failure`: what ended it, if it was not whole.
    fn note_ended(&self, context: &Context, failure: Option<&Failure>) {
        let status = match failure {
            None => context.status,
            Some(Failure::Upstream(UpstreamError::Overdue | UpstreamError::Unsayable(_))) => return,
            Some(Failure::Upstream(_)) => None,
            Some(_) => return,
        };
        let forwarding = context.forwarding.as_ref();
        let Some((upstream, turned)) = forwarding.and_then(|it| it.ended(status)) else {
            return;
        };
        match turned {
            Turned::Back => self.note_back(context, upstream),
            Turned::Ejected(time) => {
                let (site, upstream) = (context.site_label(), upstream.label());
                self.proxy.metrics.upstream_healthy(site, upstream, false);
                let cause = match failure {
                    Some(_) => EjectionCause::Failures,
                    None => EjectionCause::Statuses,
                };
                self.proxy.metrics.upstream_ejected(site, upstream, cause);
                let cause = match (failure, status) {
                    (Some(failure), _) => failure.to_string(),
                    (None, Some(status)) => format!("it answers {}", status.as_u16()),
                    (None, None) => String::new(),
                };
                tracing::warn!(site, upstream, left_alone = ?time, cause, "upstream is ejected");
            }
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

/// Within what is left of a request's time.
async fn in_all<T>(end: std::time::Instant, work: impl Future<Output = T>) -> Result<T, Failure> {
    let done = tokio::time::timeout_at(end.into(), work).await;
    done.map_err(|_| UpstreamError::Overdue.into())
}

/// Whether the connection is as good as before, for all that is known.
fn is_about_stream(error: &UpstreamError) -> bool {
    match error {
        UpstreamError::Http2(error) => error.is_reset(),
        // Whoever answers nothing may be gone.
        UpstreamError::Silent => false,
        _ => true,
    }
}

/// What came of a relay.
struct Relayed {
    result: Result<(), Failure>,
    /// The status that the client was sent, and how many bytes of body.
    sent: (Option<StatusCode>, u64),
    reusable: bool,
    ignored: bool,
    replay: Replay,
    /// What has become a WebSocket.
    switched: Option<StreamSocket>,
}

async fn relay<C: Client>(
    request: Request<'_>,
    client: &mut C,
    upstream: &mut Connection,
    replay: Replay,
) -> Relayed {
    let mut relay = Relay::new(request, client, upstream, replay);
    let result = poll_fn(|cx| relay.poll(cx)).await;
    Relayed {
        result,
        sent: relay.sent(),
        reusable: relay.is_reusable(),
        ignored: relay.was_ignored(),
        replay: relay.take_replay(),
        switched: None,
    }
}

/// The same on a stream. `accept`: it is to become a WebSocket.
async fn relay_stream<C: Client>(
    request: Request<'_>,
    client: &mut C,
    stream: (ResponseFuture, SendStream<Bytes>),
    replay: Replay,
    accept: Option<String>,
) -> Relayed {
    let mut relay = StreamRelay::new(request, client, stream, replay).switching(accept);
    let result = poll_fn(|cx| relay.poll(cx)).await;
    Relayed {
        result,
        sent: relay.sent(),
        reusable: false,
        ignored: relay.was_ignored(),
        replay: relay.take_replay(),
        switched: relay.into_switched(),
    }
}

/// An identifier that somebody else has made, if it is one to pass on.
fn readable_id(given: &[u8]) -> Option<&str> {
    const MAX_BYTES: usize = 128;
    let is_plain = given.iter().all(u8::is_ascii_graphic);
    std::str::from_utf8(given)
        .ok()
        .filter(|_| is_plain && (1..=MAX_BYTES).contains(&given.len()))
}

/// 128 random bits.
fn new_request_id() -> Box<str> {
    format!("{:032x}", rand::random::<u128>()).into()
}

/// RFC 9110 section 9.2.2. A method of somebody's own may be anything.
fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE
    )
}
