//! What the history of the CA is told of an order, step by step. It decides nothing: what a step
//! counts is for [`limits`](crate::acme::limits) to say.

use std::sync::Arc;

use time::OffsetDateTime;

use super::Run;
use crate::acme::account::blocking;
use crate::acme::error::AcmeError;
use crate::acme::history::History;
use crate::clock;
use crate::store::StoreError;

impl Run {
    /// Where the CA keeps the order that goes on from here. `accepted`: when it took it, if that was
    /// just now.
    pub(super) async fn note_place(
        &self,
        number: Option<u64>,
        url: &str,
        accepted: Option<OffsetDateTime>,
    ) -> Result<(), AcmeError> {
        let Some(number) = number else {
            return Ok(());
        };
        self.number.get_or_init(|| number);
        let url = url.to_owned();
        self.note(move |history, number| match accepted {
            Some(now) => history.accepted(number, &url, now),
            None => history.placed(number, &url),
        })
        .await
    }

    /// The CA has issued, and counts that, whatever we make of it.
    pub(super) async fn note_certificate(&self) -> Result<(), AcmeError> {
        self.note(|history, number| history.issued(number, clock::now()))
            .await
    }

    /// Before the CA is told to issue: only its own word says from here on that it did not.
    pub(super) async fn note_finalization(&self) -> Result<(), AcmeError> {
        self.note(|history, number| history.finalized(number)).await
    }

    /// Of the order that goes on: without the note it does not.
    async fn note(
        &self,
        note: impl FnOnce(&History, u64) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), AcmeError> {
        let Some(number) = self.number.get().copied() else {
            return Ok(());
        };
        let history = Arc::clone(&self.job.history);
        let noted = blocking(move || note(&history, number)).await;
        noted.map_err(|error| AcmeError::store(&self.what, &error))
    }

    /// The CA says that the order leaves no certificate. `name`: the one that it did not validate,
    /// which it may count.
    pub(super) async fn note_failure(&self, number: Option<u64>, name: Option<String>) {
        self.note_end(number, |history, number| history.failed(number, name))
            .await;
    }

    /// Nobody goes on with the order, whatever the CA makes of it.
    pub(super) async fn note_dropped(&self, number: Option<u64>) {
        let now = clock::now();
        self.note_end(number, move |history, number| history.dropped(number, now))
            .await;
    }

    /// Of an order that is over anyhow. `number`: in the history, which may know nothing of it.
    pub(super) async fn note_end(
        &self,
        number: Option<u64>,
        note: impl FnOnce(&History, u64) -> Result<(), StoreError> + Send + 'static,
    ) {
        let Some(number) = number else {
            return;
        };
        let history = Arc::clone(&self.job.history);
        if let Err(error) = blocking(move || note(&history, number)).await {
            tracing::warn!(%error, "cannot record how an order ended");
        }
    }
}
