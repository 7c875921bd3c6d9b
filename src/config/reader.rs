//! Typed reading of a TOML tree: every value is asked for by key and type, and what does not fit
//! is reported with its place. This module knows which keys exist and never what they mean.

use toml::de::{DeTable, DeValue};

use super::diagnostic::{Located, Problem, Report};
use super::keys::{SECTIONS, Section};

/// What a value should have been, for the message when it is not.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    pub(super) what: &'static str,
    /// As it would stand after the `=`.
    pub(super) example: &'static str,
}

/// One table of the file, its unknown keys already reported.
pub(super) struct Table<'a> {
    report: &'a Report<'a>,
    section: &'static Section,
    /// Keys beside those of the section.
    more: Vec<&'static str>,
    table: &'a DeTable<'a>,
    /// Where the table begins: its header, or the brace of an inline one.
    pub(super) at: usize,
}

impl<'a> Table<'a> {
    pub(super) fn open(
        report: &'a Report<'a>,
        section: &'static Section,
        table: &'a DeTable<'a>,
        at: usize,
    ) -> Table<'a> {
        Table::open_with(report, section, Vec::new(), table, at)
    }

    /// A table that has `more` keys than its section.
    fn open_with(
        report: &'a Report<'a>,
        section: &'static Section,
        more: Vec<&'static str>,
        table: &'a DeTable<'a>,
        at: usize,
    ) -> Table<'a> {
        for key in table.keys() {
            let name: &str = key.get_ref();
            if !section.has(name) && !more.contains(&name) {
                report.add(key.span().start, unknown_key(section, &more, name));
            }
        }
        Table {
            report,
            section,
            more,
            table,
            at,
        }
    }

    pub(super) fn get(&self, key: &'static str) -> Option<Value<'a>> {
        debug_assert!(
            self.section.has(key) || self.more.contains(&key),
            "{key} is no known key"
        );
        self.table.get(key).map(|value| Value {
            report: self.report,
            key,
            is_element: false,
            inner: value.get_ref(),
            at: value.span().start,
        })
    }

    /// As it is written in a file.
    pub(super) fn header(&self) -> &'static str {
        self.section.header
    }

    /// Whether it has a key that its section does not have.
    pub(super) fn has_more(&self) -> bool {
        let mut keys = self.table.keys();
        keys.any(|key| self.more.contains(&key.get_ref().as_ref()))
    }

    /// Like [`Table::get`], and reports the key if it is not there. `example` is what could stand
    /// after the `=`.
    pub(super) fn require(&self, key: &'static str, example: &str) -> Option<Value<'a>> {
        let value = self.get(key);
        if value.is_none() {
            let problem = Problem::new(format!("{} has no `{key}`", self.section.header))
                .help(format!("add for example {key} = {example}"));
            self.report.add(self.at, problem);
        }
        value
    }
}

/// One value of the file, of any type.
#[derive(Clone, Copy)]
pub(super) struct Value<'a> {
    report: &'a Report<'a>,
    key: &'static str,
    /// Whether it is an element of the array that the key holds.
    is_element: bool,
    inner: &'a DeValue<'a>,
    pub(super) at: usize,
}

impl<'a> Value<'a> {
    /// The value, where it is true or false.
    pub(super) fn as_boolean(self) -> Option<bool> {
        match self.inner {
            DeValue::Boolean(value) => Some(*value),
            _ => None,
        }
    }

    pub(super) fn boolean(self) -> Option<bool> {
        const BOOLEAN: Kind = Kind {
            what: "true or false",
            example: "true",
        };
        match self.inner {
            DeValue::Boolean(value) => Some(*value),
            _ => self.wrong_type(BOOLEAN),
        }
    }

    /// Reports what is wrong with it.
    pub(super) fn keep<T>(self, result: Result<T, Problem>) -> Option<T> {
        self.report.keep(self.at, result)
    }

    pub(super) fn integer(self, kind: Kind) -> Option<Located<i128>> {
        let DeValue::Integer(integer) = self.inner else {
            return self.wrong_type(kind);
        };
        // The TOML parser has checked the digits; what is left to fail is the size.
        let value = i128::from_str_radix(integer.as_str(), integer.radix());
        let too_large = || Problem::new(format!("`{}` is far too large", self.key));
        self.report
            .keep(self.at, value.map_err(|_| too_large()))
            .map(|value| Located { value, at: self.at })
    }

    /// A string that `parse` understands.
    pub(super) fn parse<T>(
        self,
        kind: Kind,
        parse: impl FnOnce(&str) -> Result<T, Problem>,
    ) -> Option<Located<T>> {
        let DeValue::String(text) = self.inner else {
            return self.wrong_type(kind);
        };
        self.report
            .keep(self.at, parse(text))
            .map(|value| Located { value, at: self.at })
    }

    /// An array of strings. Elements that do not parse are reported and left out.
    pub(super) fn list<T>(
        self,
        kind: Kind,
        parse: impl Fn(&str) -> Result<T, Problem>,
    ) -> Option<List<T>> {
        const STRING: Kind = Kind {
            what: "a string",
            example: "",
        };
        let elements = self.elements(kind)?;
        Some(List {
            at: self.at,
            is_empty: elements.is_empty(),
            values: elements
                .into_iter()
                .filter_map(|element| element.parse(STRING, &parse))
                .collect(),
        })
    }

    /// The elements of an array, of any type.
    pub(super) fn elements(self, kind: Kind) -> Option<Vec<Value<'a>>> {
        let DeValue::Array(array) = self.inner else {
            return self.wrong_type(kind);
        };
        let elements = array.iter().map(|element| Value {
            is_element: true,
            inner: element.get_ref(),
            at: element.span().start,
            ..self
        });
        Some(elements.collect())
    }

    pub(super) fn is_array(self) -> bool {
        matches!(self.inner, DeValue::Array(_))
    }

    pub(super) fn is_string(self) -> bool {
        matches!(self.inner, DeValue::String(_))
    }

    pub(super) fn is_table(self) -> bool {
        matches!(self.inner, DeValue::Table(_))
    }

    /// A table of strings whose keys may be anything that `name` understands. What is no such pair
    /// is reported and left out.
    pub(super) fn pairs<K, T>(
        self,
        name: impl Fn(&str) -> Result<K, Problem>,
        parse: impl Fn(&str) -> Result<T, Problem>,
    ) -> Option<Vec<(K, Located<T>)>> {
        const STRING: Kind = Kind {
            what: "a string",
            example: "",
        };
        const PAIRS: Kind = Kind {
            what: "a table of strings",
            example: "{ \"X-Name\" = \"value\" }",
        };
        let DeValue::Table(table) = self.inner else {
            return self.wrong_type(PAIRS);
        };
        let pairs = table.iter().filter_map(|(key, value)| {
            let name = self.report.keep(key.span().start, name(key.get_ref()));
            let value = Value {
                is_element: true,
                inner: value.get_ref(),
                at: value.span().start,
                ..self
            };
            let value = value.parse(STRING, &parse);
            Some((name?, value?))
        });
        Some(pairs.collect())
    }

    pub(super) fn table(self, section: &'static Section) -> Option<Table<'a>> {
        self.table_with(section, |_| Vec::new())
    }

    /// A table whose keys depend on the text of one of them, `by`.
    pub(super) fn table_by(
        self,
        section: &'static Section,
        by: &'static str,
        more: impl FnOnce(Option<&str>) -> Vec<&'static str>,
    ) -> Option<Table<'a>> {
        self.table_with(section, |table| {
            let value = table.get(by).map(|value| value.get_ref());
            match value {
                Some(DeValue::String(text)) => more(Some(text)),
                _ => more(None),
            }
        })
    }

    fn table_with(
        self,
        section: &'static Section,
        more: impl FnOnce(&DeTable<'a>) -> Vec<&'static str>,
    ) -> Option<Table<'a>> {
        match self.inner {
            DeValue::Table(table) => {
                let more = more(table);
                let table = Table::open_with(self.report, section, more, table, self.at);
                Some(table)
            }
            other => {
                let problem = Problem::new(format!(
                    "`{}` must be a table, not {}",
                    self.key,
                    type_of(other)
                ))
                .help(format!("write it as {}", section.header));
                self.report.add(self.at, problem);
                None
            }
        }
    }

    /// An array of tables. What is no table is reported and left out.
    pub(super) fn tables(self, section: &'static Section) -> Option<List<Table<'a>>> {
        self.tables_with(section, |value| value.table(section))
    }

    /// An array of tables whose keys depend on the text of one of them, `by`.
    pub(super) fn tables_by(
        self,
        section: &'static Section,
        by: &'static str,
        more: impl Fn(Option<&str>) -> Vec<&'static str>,
    ) -> Option<List<Table<'a>>> {
        self.tables_with(section, |value| value.table_by(section, by, &more))
    }

    fn tables_with(
        self,
        section: &'static Section,
        open: impl Fn(Value<'a>) -> Option<Table<'a>>,
    ) -> Option<List<Table<'a>>> {
        let DeValue::Array(array) = self.inner else {
            let problem = Problem::new(format!(
                "`{}` must be an array of tables, not {}",
                self.key,
                type_of(self.inner)
            ))
            .help(format!("write it as {}", section.header));
            self.report.add(self.at, problem);
            return None;
        };
        let tables = array.iter().filter_map(|element| {
            let value = Value {
                inner: element.get_ref(),
                at: element.span().start,
                ..self
            };
            let at = value.at;
            open(value).map(|value| Located { value, at })
        });
        Some(List {
            at: self.at,
            is_empty: array.is_empty(),
            values: tables.collect(),
        })
    }

    fn wrong_type<T>(self, kind: Kind) -> Option<T> {
        let subject = match self.is_element {
            true => format!("an element of `{}`", self.key),
            false => format!("`{}`", self.key),
        };
        let problem = Problem::new(format!(
            "{subject} must be {}, not {}",
            kind.what,
            type_of(self.inner)
        ));
        let problem = match self.is_element {
            true => problem.help("put it between double quotes"),
            false => problem.help(format!("write for example {} = {}", self.key, kind.example)),
        };
        self.report.add(self.at, problem);
        None
    }
}

/// The good elements of an array.
pub(super) struct List<T> {
    pub(super) at: usize,
    /// Whether the array was written empty, as opposed to having no good element.
    pub(super) is_empty: bool,
    pub(super) values: Vec<Located<T>>,
}

fn type_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

fn unknown_key(section: &Section, more: &[&str], key: &str) -> Problem {
    let known: Vec<&str> = [more, &section.names().collect::<Vec<_>>()].concat();
    let home = |section: &Section| match section.header {
        "" => "at the top level".to_owned(),
        header => format!("in {header}"),
    };
    let problem = Problem::new(format!("unknown key `{key}` {}", home(section)));
    if let Some(nearest) = nearest(key, &known) {
        return problem.help(format!("did you mean `{nearest}`?"));
    }
    match SECTIONS.iter().find(|other| other.has(key)) {
        Some(other) => problem.help(format!("`{key}` belongs {}", home(other))),
        None => problem.help(format!("known here: {}", known.join(", "))),
    }
}

/// The candidate that `text` was most likely meant to be, if any is near.
pub(super) fn nearest<'c>(text: &str, candidates: &[&'c str]) -> Option<&'c str> {
    let text = text.to_lowercase().replace('-', "_");
    let distance = |candidate: &str| {
        let candidate = candidate.replace('-', "_");
        // Somebody who writes `cert` or `key` means the long name that has it as a part.
        if text.len() >= 3 && candidate.contains(&text) {
            return 1;
        }
        strsim::damerau_levenshtein(&text, &candidate)
    };
    candidates
        .iter()
        .map(|candidate| (distance(candidate), candidate.len(), *candidate))
        .min()
        .filter(|(distance, _, _)| *distance <= (text.chars().count() / 3).max(1))
        .map(|(_, _, candidate)| candidate)
}
