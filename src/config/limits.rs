//! `[acme.limits]`: how much a CA lets one ask for. Those of Let's Encrypt are known.

use std::fmt;
use std::time::Duration;

use super::diagnostic::Problem;
use super::keys::LIMITS;
use super::reader::{Kind, Value};
use super::value::duration;

pub(super) const LIMIT: Kind = Kind {
    what: "a limit in quotes",
    example: "\"50/7d\"",
};

/// So many within so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    pub count: u32,
    pub per: Duration,
}

/// As `5 in 7d`.
impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.per.as_secs();
        let (number, unit) = match seconds {
            s if s % 86_400 == 0 => (s / 86_400, "d"),
            s if s % 3_600 == 0 => (s / 3_600, "h"),
            s if s % 60 == 0 => (s / 60, "m"),
            s => (s, "s"),
        };
        write!(f, "{} in {number}{unit}", self.count)
    }
}

/// The limits of one CA; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of the account.
    pub new_orders: Option<Limit>,
    pub certificates_per_domain: Option<Limit>,
    /// For exactly the same names.
    pub duplicate_certificates: Option<Limit>,
    /// Of one name.
    pub failed_validations: Option<Limit>,
    /// From one address.
    pub new_accounts: Option<Limit>,
}

impl Limits {
    /// As of 2026 (letsencrypt.org/docs/rate-limits).
    pub fn lets_encrypt() -> Limits {
        const HOUR: u64 = 3_600;
        let limit = |count, hours| {
            Some(Limit {
                count,
                per: Duration::from_secs(hours * HOUR),
            })
        };
        Limits {
            new_orders: limit(300, 3),
            certificates_per_domain: limit(50, 7 * 24),
            duplicate_certificates: limit(5, 7 * 24),
            failed_validations: limit(5, 1),
            new_accounts: limit(10, 3),
        }
    }

    /// What is known about the CA with this directory.
    pub fn known(directory: &str) -> Limits {
        match directory.starts_with("https://acme-v02.api.letsencrypt.org/") {
            true => Limits::lets_encrypt(),
            false => Limits::default(),
        }
    }
}

/// What is written; the outer `None`: nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LimitsDraft {
    new_orders: Option<Option<Limit>>,
    certificates_per_domain: Option<Option<Limit>>,
    duplicate_certificates: Option<Option<Limit>>,
    failed_validations: Option<Option<Limit>>,
    new_accounts: Option<Option<Limit>>,
}

impl LimitsDraft {
    pub(super) fn read(value: Value<'_>) -> Option<LimitsDraft> {
        let table = value.table(&LIMITS)?;
        let limit = |key| {
            let parsed = table.get(key)?.parse(LIMIT, limit)?;
            Some(parsed.value)
        };
        Some(LimitsDraft {
            new_orders: limit("new_orders"),
            certificates_per_domain: limit("certificates_per_domain"),
            duplicate_certificates: limit("duplicate_certificates"),
            failed_validations: limit("failed_validations"),
            new_accounts: limit("new_accounts"),
        })
    }

    /// Over what is known.
    pub(super) fn over(self, known: Limits) -> Limits {
        Limits {
            new_orders: self.new_orders.unwrap_or(known.new_orders),
            certificates_per_domain: self
                .certificates_per_domain
                .unwrap_or(known.certificates_per_domain),
            duplicate_certificates: self
                .duplicate_certificates
                .unwrap_or(known.duplicate_certificates),
            failed_validations: self.failed_validations.unwrap_or(known.failed_validations),
            new_accounts: self.new_accounts.unwrap_or(known.new_accounts),
        }
    }
}

/// `"50/7d"` or `"off"`.
pub(super) fn limit(text: &str) -> Result<Option<Limit>, Problem> {
    if text == "off" {
        return Ok(None);
    }
    let wrong = || {
        Problem::new(format!("{text:?} is not a limit"))
            .help("write a number and a duration, such as \"50/7d\", or \"off\"")
    };
    let (count, per) = text.split_once('/').ok_or_else(wrong)?;
    let count: u32 = count.trim().parse().map_err(|_| wrong())?;
    let per = duration(per.trim()).map_err(|_| wrong())?;
    if count == 0 || per < Duration::from_secs(1) {
        return Err(wrong());
    }
    Ok(Some(Limit { count, per }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_and_shown() {
        for (text, shown) in [
            ("50/7d", "50 in 7d"),
            ("5/1h", "5 in 1h"),
            ("1 / 90m", "1 in 90m"),
            ("2/30s", "2 in 30s"),
        ] {
            assert_eq!(limit(text).unwrap().unwrap().to_string(), shown);
        }
        assert_eq!(limit("off").unwrap(), None);
        for wrong in ["", "5", "5/", "0/1h", "x/1h", "5/7", "5/0s"] {
            assert!(limit(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_written_goes_over_what_is_known() {
        let known = Limits::known("https://acme-v02.api.letsencrypt.org/directory");
        assert_eq!(known, Limits::lets_encrypt());
        let draft = LimitsDraft {
            new_orders: Some(None),
            ..LimitsDraft::default()
        };
        let both = draft.over(known);
        assert_eq!(both.new_orders, None);
        assert_eq!(both.new_accounts, known.new_accounts);
        assert_eq!(Limits::known("https://ca.test/dir"), Limits::default());
    }
}
