//! Whether the CA takes the account still: somebody may have given it up elsewhere (RFC 8555 section
//! 7.3.6), or the CA itself has. Nobody makes another one unasked, as that was done on purpose.

use serde::Deserialize;

use super::{AccountFile, Authority, Opened, job_http};
use crate::acme::error::{AcmeError, Class};
use crate::acme::http::JobHttp;
use crate::acme::jws::{self, AccountKey, Signer};
use crate::acme::ledger::{Kind, Outcome};

const UNAUTHORIZED: &str = "unauthorized";

pub(super) const VALID: &str = "valid";

/// What the CA calls the account with this URL. One that does not say is dealt with all the same.
pub(super) async fn account_status(
    http: &JobHttp,
    what: &str,
    key: &AccountKey,
    url: &str,
) -> Result<String, AcmeError> {
    let answer = jws::post(http, what, key, Signer::Account(url), url, None).await?;
    let account = serde_json::from_slice::<AccountObject>(answer.body());
    Ok(account.map_or_else(|_| VALID.to_owned(), |account| account.status))
}

/// What counts of an account object (RFC 8555 section 7.1.2).
#[derive(Deserialize)]
struct AccountObject {
    status: String,
}

impl Authority {
    /// An order was refused, perhaps on account of the account: the CA is asked about that, and if so
    /// nobody else finds it out with an order.
    pub async fn about_the_account(&self, error: AcmeError) -> AcmeError {
        let refused = {
            let opened = self.opened.lock().await;
            self.ask_about_account(&opened).await
        };
        let Some(refused) = refused else {
            return error;
        };
        self.lost(&refused).await;
        AcmeError {
            what: error.what,
            ..refused
        }
    }

    async fn ask_about_account(&self, opened: &Opened) -> Option<AcmeError> {
        let (directory, _) = opened.directory.as_ref()?;
        let http = job_http(opened.transport.as_ref()?, self.url(), directory);
        self.refused(opened.account.as_ref()?, &http).await
    }

    /// Why the CA takes the account no more, if it says so.
    pub(super) async fn refused(&self, account: &AccountFile, http: &JobHttp) -> Option<AcmeError> {
        let (id, key) = (account.id.as_deref()?, account.signing_key().ok()?);
        let words = match account_status(http, &self.what(), &key, id).await {
            Ok(status) => (status != VALID).then(|| format!("it is {status}"))?,
            // Whoever may not even see his own account has none that is valid.
            Err(error) if error.is(UNAUTHORIZED) => error.detail,
            Err(_) => return None,
        };
        Some(self.account_refused(id, &words))
    }

    fn account_refused(&self, id: &str, words: &str) -> AcmeError {
        let (words, url) = (words.trim_end_matches('.'), self.url());
        let file = self.account_path();
        AcmeError {
            problem: Some(UNAUTHORIZED.to_owned()),
            advice: Some(format!(
                "`perennial account deactivate --yes --ca {url}` puts {} away, and the next order makes a \
                 new account",
                file.display()
            )),
            ..self.error(
                Class::Operator,
                format!("the CA does not take the account {id} any more: {words}"),
            )
        }
    }

    /// Looks again at an account that was refused, before anybody orders with it.
    pub(super) async fn check_account(
        &self,
        account: &AccountFile,
        http: &JobHttp,
    ) -> Result<(), AcmeError> {
        if !self.was_refused() {
            return Ok(());
        }
        match self.refused(account, http).await {
            Some(refused) => Err(refused),
            None => Ok(()),
        }
    }

    /// A CA refuses bindings to external accounts so as well: then the account is a new one.
    fn was_refused(&self) -> bool {
        let outcome = self.ledger.last(Kind::Session).and_then(|it| it.outcome);
        matches!(outcome, Some(Outcome::Failed { report: Some(report), .. })
            if report.problem.as_deref() == Some(UNAUTHORIZED))
    }
}
