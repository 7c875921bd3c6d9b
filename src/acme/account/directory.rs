//! The way to a CA through its directory (RFC 8555 section 7.1.1), which may have changed since it
//! was remembered. It makes no account.

use std::{fs, io};

use time::{Duration, OffsetDateTime};

use super::{Authority, CachedDirectory, Directory, Opened, job_http, unfit};
use crate::acme::error::{AcmeError, Class, classify};
use crate::acme::http::{HttpError, JobHttp};
use crate::acme::ledger::Kind;
use crate::clock;

/// What has been right before is not for the operator to set right: a balancer before the CA answers
/// so for minutes.
fn class(may_pass: bool) -> Class {
    match may_pass {
        true => Class::Retryable,
        false => Class::Operator,
    }
}

/// Whether the CA has answered as one before.
fn is_known(opened: &Opened) -> bool {
    let account = opened.account.as_ref();
    opened.directory.is_some() || account.is_some_and(|account| account.id.is_some())
}

impl Authority {
    /// The directory and a client, once newNonce has answered. Where the remembered directory leads
    /// nowhere, the CA may have moved: it is asked for it again, once.
    pub(super) async fn way_in(
        &self,
        opened: &mut Opened,
        now: OffsetDateTime,
    ) -> Result<(Directory, JobHttp), AcmeError> {
        let remembered = opened.directory.clone();
        if remembered.is_none() {
            self.fetch_directory(opened, now).await?;
        }
        let error = match self.reach(opened).await {
            Ok(way) => return Ok(way),
            Err(error) => error,
        };
        let Some(before) = remembered.filter(|_| error.class != Class::RateLimited) else {
            return Err(error);
        };
        if self.fetch_directory(opened, now).await.is_err() {
            opened.directory = Some(before.clone());
        }
        match &opened.directory {
            Some((now, _)) if !now.has_same_urls(&before.0) => self.reach(opened).await,
            _ => Err(error),
        }
    }

    async fn reach(&self, opened: &Opened) -> Result<(Directory, JobHttp), AcmeError> {
        let (Some(transport), Some((directory, _))) = (&opened.transport, &opened.directory) else {
            return Err(self.error(Class::Retryable, "the directory is missing"));
        };
        let http = job_http(transport, self.url(), directory);
        let status = http
            .probe_nonce(&directory.new_nonce)
            .await
            .map_err(|error| self.not_reached(opened, &http, &error))?;
        if !status.is_success() {
            return Err(AcmeError {
                class: classify(None, Some(status.as_u16())),
                ..self.unreachable(&http, format!("newNonce answers HTTP {status}"))
            });
        }
        Ok((directory.clone(), http))
    }

    pub(super) async fn fetch_directory(
        &self,
        opened: &mut Opened,
        now: OffsetDateTime,
    ) -> Result<(), AcmeError> {
        let Some(transport) = &opened.transport else {
            return Err(self.error(Class::Retryable, "HTTPS is not prepared"));
        };
        let http = JobHttp::new(transport.clone());
        let answer = http
            .get_whole(self.url())
            .await
            .map_err(|error| self.not_reached(opened, &http, &error))?;
        let directory = unfit::directory(&answer).map_err(|unfit| AcmeError {
            class: class(unfit.is_passing || is_known(opened)),
            advice: unfit.advice(&self.config),
            ..self.unreachable(&http, unfit.text)
        })?;
        self.keep_directory(&directory, now).await;
        opened.directory = Some((directory, now));
        Ok(())
    }

    fn not_reached(&self, opened: &Opened, http: &JobHttp, error: &HttpError) -> AcmeError {
        let is_distrust = error.is_distrust();
        let advice = is_distrust.then(|| unfit::distrust(&error.to_string(), &self.config));
        AcmeError {
            class: class(!is_distrust || is_known(opened)),
            advice,
            ..self.unreachable(http, error.to_string())
        }
    }

    /// Asks for the directory again: whether it is another than the one we have used. Where it
    /// cannot be had, the next session asks for it.
    pub async fn directory_has_changed(&self) -> bool {
        let mut opened = self.opened.lock().await;
        let before = opened.directory.take();
        self.remove_directory().await;
        let Ok(attempt) = self.begin(Kind::Session).await else {
            return false;
        };
        let result = self.fetch_directory(&mut opened, clock::now()).await;
        self.finish(attempt, &result).await;
        let after = opened.directory.as_ref();
        match (before, after) {
            (Some((before, _)), Some((after, _))) => !before.has_same_urls(after),
            _ => false,
        }
    }

    /// Asks for the directory again, unless it is younger than `age`: whether it was asked for.
    pub(super) async fn refresh_directory(&self, age: Duration) -> Result<bool, AcmeError> {
        let mut opened = self.opened.lock().await;
        let now = clock::now();
        let is_young = |at: OffsetDateTime| at <= now && now - at < age;
        if opened
            .directory
            .as_ref()
            .is_some_and(|(_, at)| is_young(*at))
        {
            return Ok(false);
        }
        let attempt = self.begin(Kind::Session).await?;
        let result = self.fetch_directory(&mut opened, now).await;
        self.finish(attempt, &result).await;
        if let Err(error) = &result {
            opened.answered = false;
            opened.last_error = Some(error.clone());
        }
        result.map(|()| true)
    }

    async fn remove_directory(&self) {
        let path = self.directory_path();
        let removed = tokio::task::spawn_blocking(move || fs::remove_file(path)).await;
        if let Ok(Err(error)) = removed
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(ca = self.url(), %error, "cannot forget the CA's directory");
        }
    }

    /// A directory that cannot be kept is asked for again after the next restart.
    async fn keep_directory(&self, directory: &Directory, now: OffsetDateTime) {
        let cached = serde_json::from_slice(&directory.raw).and_then(|directory| {
            serde_json::to_vec(&CachedDirectory {
                fetched_at: now,
                directory,
            })
        });
        let result = match cached {
            Ok(bytes) => self
                .write(self.directory_path(), bytes)
                .await
                .map_err(|it| it.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = result {
            tracing::warn!(ca = self.url(), error, "cannot keep the CA's directory");
        }
    }
}
