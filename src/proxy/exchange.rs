//! One request from its head to its line in the log: decided, answered or passed on, tried again
//! where that does no harm, and accounted for.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use http::{Method, StatusCode};
use tokio::time::Instant;

use super::access::{Denial, Guard};
use super::answering::dressed;
use super::changes::{self, Adjustment, Subject};
use super::client::Client;
use super::compress::Compressing;
use super::connection::Connection;
use super::context::{Context, Forwarding};
use super::decision::{Action, Decision};
use super::failure::Failure;
use super::forward_auth::{self, Verdict};
use super::forwarded::{self, Outgoing};
use super::origin::Origin;
use super::patience::is_patient;
use super::relay::{Relay, Replay, Request};
use super::respond::Answer;
use super::tunnel::Tunnel;
use super::{Proxy, access_log, dial};
use crate::config::ForwardAuth;
use crate::listener::ConnectionInfo;
use crate::message::{RequestHead, ResponseHead};

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
        if let Some(auth) = guard.and_then(|guard| guard.forward_auth())
            && !Box::pin(self.is_granted(auth, origin, context)).await
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
        let forwarding = Forwarding::new(site, route);
        let fixed = forwarding.pool().fixed_answer(forwarding.turn);
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
        auth: &ForwardAuth,
        origin: &Origin<'_>,
        context: &mut Context,
    ) -> bool {
        match forward_auth::ask(auth, self.request, origin, context.named_request()).await {
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
        let mut fresh = false;
        for _ in 0..MAX_ATTEMPTS {
            let Some((upstream, reused)) = self.connect(origin, context, fresh).await? else {
                fresh = false;
                continue;
            };
            let attempt = self.attempt(upstream, reused, replay.take(), origin, context);
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
        origin: &Origin<'_>,
        context: &mut Context,
        fresh: bool,
    ) -> Result<Option<(Connection, bool)>, Failure> {
        let announced = context.route().and_then(|route| route.proxy_protocol);
        let forwarding = context.forwarding_mut()?;
        if !fresh {
            forwarding.advance().await?;
        }
        forwarding.note_version();
        let address = forwarding.address()?;
        // What says who the client is, is that client's alone.
        if !fresh
            && announced.is_none()
            && let Some(kept) = self.proxy.kept.take(address)
        {
            return Ok(Some((kept, true)));
        }
        // Boxed, like all that most requests do without: what is not is a part of every connection's
        // memory.
        let header = announced.map(|version| origin.announcement(version, self.connection));
        match Box::pin(dial::dial(address, header)).await {
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
        origin: &Origin<'_>,
        context: &mut Context,
    ) -> Result<Attempt, Failure> {
        let upgrade = forwarded::wants_upgrade(self.request);
        self.write_head(&mut upstream, upgrade, origin, context);
        let may_repeat = reused && is_idempotent(&self.request.method);
        let replay = replay.unwrap_or(match may_repeat {
            true => Replay::Kept(Vec::new()),
            false => Replay::Lost,
        });
        let tls = self.connection.tls.as_ref();
        let adjustment = Adjustment::of(context, self.request, tls, origin);
        let adjust = |head: &mut ResponseHead| {
            if let Some(adjustment) = &adjustment {
                adjustment.apply(head);
            }
        };
        let request = Request {
            max_body: context.max_body(),
            rates: context.min_rates(),
            adjust: adjustment.is_some().then_some(&adjust),
            method: &self.request.method,
            framing: self.request.framing,
            upgrade,
            patient: upgrade || is_patient(&self.request.fields),
        };
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

    fn write_head(
        &self,
        upstream: &mut Connection,
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
        let output = &mut upstream.output;
        let Some(changes) = changes else {
            return forwarded::write(output, self.request, &outgoing, upgrade);
        };
        let target = changes::stripped(self.request, changes.strip_prefix.as_deref());
        let subject = self.subject(&target, origin, context);
        outgoing.changes = Some((changes, &subject));
        forwarded::write(output, self.request, &outgoing, upgrade);
    }

    fn keep(&self, upstream: Connection, context: &Context) {
        let announced = context.route().and_then(|route| route.proxy_protocol);
        if announced.is_none()
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
                let answer = dressed(Answer::failure(status), context);
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

/// What came of a relay.
struct Relayed {
    result: Result<(), Failure>,
    /// The status that the client was sent, and how many bytes of body.
    sent: (Option<StatusCode>, u64),
    reusable: bool,
    ignored: bool,
    replay: Replay,
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
