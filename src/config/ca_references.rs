//! Where a configuration names its CAs, and the addresses that they are to issue for: what is known
//! of a CA without asking it is told at these places.

use super::acme_options::orders_addresses;
use super::diagnostic::{Place, Report};
use super::draft::Draft;
use crate::certificate::name::Name;

/// The places.
#[derive(Clone, Debug, Default)]
pub struct CaReferences {
    /// Of the directories, in the order of the authorities; `None`: the default.
    pub directories: Vec<Option<Place>>,
    /// The addresses that an ACME CA is asked for, whatever files are there.
    pub addresses: Vec<(Name, Place)>,
}

impl CaReferences {
    pub(super) fn of(draft: &Draft, report: &Report<'_>) -> CaReferences {
        let authorities = std::iter::once(&draft.acme).chain(&draft.fallbacks);
        let directories = authorities.map(|authority| {
            let url = authority.directory.as_ref()?;
            Some(report.source.place(url.at))
        });
        let sites = draft.sites.iter();
        let sites = sites.filter(|_| !draft.certificates.has_sources);
        let addresses = sites.flat_map(orders_addresses);
        CaReferences {
            directories: directories.collect(),
            addresses: addresses
                .map(|host| (host.value.clone(), report.source.place(host.at)))
                .collect(),
        }
    }
}
