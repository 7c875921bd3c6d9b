//! Answers that come from here: texts, files, redirects, errors.

use std::future::poll_fn;

use bytes::BytesMut;
use http::{Method, StatusCode};
use tokio::time::Instant;

use super::CLIENT_WRITE_TIMEOUT;
use super::changes::{self, Adjustment};
use super::client::{Client, poll_send};
use super::coding::{self, Coding};
use super::compress::Compressing;
use super::context::Context;
use super::decision::{origin_form, path_of};
use super::exchange::Exchange;
use super::failure::ClientError;
use super::files::{self, FileError, Found};
use super::origin::Origin;
use super::path;
use super::respond::Answer;
use super::routing::FixedAnswer;
use crate::message::Framing;

impl<C: Client> Exchange<'_, C> {
    /// Sends an answer of ours.
    pub(super) async fn answer(
        &mut self,
        mut answer: Answer,
        origin: &Origin<'_>,
        context: &mut Context,
    ) {
        self.client.forgo_body();
        let tls = self.connection.tls.as_ref();
        if let Some(adjustment) = Adjustment::of(context, self.request, tls, origin) {
            adjustment.apply(&mut answer.head);
        }
        let method = &self.request.method;
        let sent = match self.codings(context) {
            None => Box::pin(send_answer(self.client, answer, method)).await,
            Some(codings) => {
                let mut client = Compressing::new(self.client, method, codings);
                let sent = Box::pin(send_answer(&mut client, answer, method)).await;
                sent.map(|(status, _)| (status, client.sent()))
            }
        };
        match sent {
            Ok((status, bytes)) => {
                context.status = Some(status);
                context.bytes = bytes;
            }
            Err(error) => self.fail(error.into(), context),
        }
    }

    pub(super) fn fixed_answer(
        &self,
        answer: &FixedAnswer,
        origin: &Origin<'_>,
        context: &Context,
    ) -> Answer {
        match answer {
            FixedAnswer::Respond { status, body } => Answer::respond(*status, body.clone()),
            FixedAnswer::Redirect { status, location } => {
                let target = changes::stripped(self.request, context.strip_prefix());
                let subject = self.subject(&target, origin, context);
                Answer::elsewhere(*status, &changes::location(location, &subject))
            }
        }
    }

    /// Answers with a file of the route's folder.
    pub(super) async fn serve_file(&mut self, origin: &Origin<'_>, context: &mut Context) {
        let mut file = match self.find_file(origin, context).await {
            Ok(Some(Found::File(file))) => file,
            Ok(Some(Found::Answer(answer))) => {
                let answer = dressed(answer, context);
                return self.answer(answer, origin, context).await;
            }
            Ok(None) => return,
            Err(error) => return self.give_up(error.into(), origin, context).await,
        };
        self.client.forgo_body();
        let tls = self.connection.tls.as_ref();
        if let Some(adjustment) = Adjustment::of(context, self.request, tls, origin) {
            adjustment.apply(&mut file.head);
        }
        context.status = Some(file.head.status);
        let sent = match self.codings(context) {
            None => files::send(self.client, file, &mut context.bytes).await,
            Some(codings) => {
                let method = &self.request.method;
                let mut client = Compressing::new(self.client, method, codings);
                let sent = Box::pin(files::send(&mut client, file, &mut 0)).await;
                context.bytes = client.sent();
                sent
            }
        };
        if let Err(failure) = sent {
            self.give_up(failure, origin, context).await;
        }
    }

    /// What the route's folder has for the request.
    async fn find_file(
        &self,
        origin: &Origin<'_>,
        context: &Context,
    ) -> Result<Option<Found>, FileError> {
        let route = context.route();
        let Some(folder) = route.and_then(|route| route.files.as_ref()) else {
            return Ok(None);
        };
        let changes = route.and_then(|route| route.changes.as_deref());
        let prefix = changes.and_then(|changes| changes.strip_prefix.as_deref());
        let mut target = changes::stripped(self.request, prefix);
        if let Some(rewrite) = changes.and_then(|changes| changes.rewrite.as_ref()) {
            let subject = self.subject(&target, origin, context);
            target = changes::rewritten(rewrite, &subject).into();
        } else if prefix.is_some() && path_of(&target) == b"/" && !self.is_for_directory() {
            // What is left of `/files` is not `/files/`.
            return Ok(Some(Found::Answer(files::below(self.request))));
        }
        let path = path::normal(path_of(&target));
        folder.find(self.request, &path).await.map(Some)
    }

    fn is_for_directory(&self) -> bool {
        path_of(origin_form(self.request.target())).ends_with(b"/")
    }

    /// In which codings the client may have the body, the best first; `None`: in none, whatever it
    /// takes.
    pub(super) fn codings(&self, context: &Context) -> Option<Vec<Coding>> {
        let offered = &context.route()?.compress;
        (!offered.is_empty()).then(|| coding::accepted(&self.request.fields, offered))
    }
}

/// An error of ours as the site shows it.
pub fn dressed(answer: Answer, context: &Context) -> Answer {
    let page = context
        .site
        .as_ref()
        .and_then(|site| site.error_pages.get(answer.head.status));
    match page {
        Some(page) => answer.with_page(page),
        None => answer,
    }
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
    let (mut body, mut sent) = (BytesMut::from(&body[..bytes]), 0);
    let deadline = Instant::now() + CLIENT_WRITE_TIMEOUT;
    poll_fn(|cx| {
        let done = poll_send(client, cx, &mut body, &mut sent, true);
        match done.is_pending() {
            true => client
                .poll_deadline(cx, deadline)
                .map(|()| Err(ClientError::WriteTimeout)),
            false => done,
        }
    })
    .await?;
    Ok((head.status, sent))
}
