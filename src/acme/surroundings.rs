//! What the worker is told and whom it tells. It writes files; the live table it sees only through
//! the question what covers a name, and the reloader only through the hint that there is something
//! to look at.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use time::OffsetDateTime;

use crate::certificate::name::Name;
use crate::certificate::reloader::Reloader;
use crate::certificate::table::{SourceKind, TableReader};

/// What the live table knows about one name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Whether the first load of all certificates is done: before, nothing is decided.
    pub loaded: bool,
    /// Until when a valid certificate from files covers the name.
    pub file_valid_until: Option<OffsetDateTime>,
    /// When the last of those is due for renewal.
    pub file_due_at: Option<OffsetDateTime>,
    /// Whether certificate files have the name at all, be they valid or not.
    pub file_known: bool,
}

impl Coverage {
    fn of(table: &TableReader, name: &Name) -> Coverage {
        let live = table.load();
        let choices = || live.covering(name);
        Coverage {
            loaded: table.is_loaded(),
            file_valid_until: choices().filter_map(|it| it.file_valid_until).max(),
            file_due_at: choices().filter_map(|it| it.file_due_at).max(),
            file_known: choices().any(|it| it.file_known),
        }
    }
}

/// When a client asked last for a certificate that is had on demand. `None`: no such certificate is
/// in memory.
fn asked(table: &TableReader, name: &Name) -> Option<OffsetDateTime> {
    let live = table.load();
    let best = &live.get(name)?.best;
    let on_demand = best.source == SourceKind::OnDemand;
    on_demand.then(|| best.asked.at()).flatten()
}

/// Says when a client asked for a name last.
pub type Asked = dyn Fn(&Name) -> Option<OffsetDateTime> + Send + Sync;

/// Whether a certificate that clients ask for may be renewed, and if not, why.
pub type MayRenew = dyn Fn(Name) -> BoxFuture<'static, Result<(), String>> + Send + Sync;

/// Told how an order ended.
pub type Ordered = dyn Fn(Option<&str>, bool) + Send + Sync;

/// See the module.
#[derive(Clone)]
pub struct Surroundings {
    /// Answered from the live table; cheap.
    pub coverage: Arc<dyn Fn(&Name) -> Coverage + Send + Sync>,
    /// When a client asked last for a certificate that is had on demand; `None`: it is not in
    /// memory.
    pub asked: Arc<Asked>,
    /// A generation was written in this directory: the reloader may look there now instead of at
    /// its next poll.
    pub reload_hint: Arc<dyn Fn(PathBuf) + Send + Sync>,
    /// An order ended, well or not; the CA's directory URL, `None` for the internal CA.
    pub ordered: Arc<Ordered>,
    /// Asked before a certificate that clients ask for is renewed.
    pub may_renew: Arc<MayRenew>,
}

impl Surroundings {
    /// Beside this reloader; `ordered` as in [`Surroundings::ordered`].
    pub fn of(
        reloader: &Reloader,
        ordered: impl Fn(Option<&str>, bool) + Send + Sync + 'static,
    ) -> Surroundings {
        let (table, hint) = (reloader.table().clone(), reloader.clone());
        let demanded = table.clone();
        Surroundings {
            asked: Arc::new(move |name: &Name| asked(&demanded, name)),
            coverage: Arc::new(move |name: &Name| Coverage::of(&table, name)),
            reload_hint: Arc::new(move |directory| hint.hint(directory)),
            ordered: Arc::new(ordered),
            may_renew: Arc::new(|_| Box::pin(std::future::ready(Ok(())))),
        }
    }

    /// The same, where somebody has a say in what is renewed.
    pub fn with_permission(self, may_renew: Arc<MayRenew>) -> Surroundings {
        Surroundings { may_renew, ..self }
    }
}
