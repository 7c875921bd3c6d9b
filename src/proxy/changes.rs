//! What a route changes of a request on its way, and of what comes back.

use std::borrow::Cow;
use std::sync::Arc;

use super::context::Context;
use super::decision::{origin_form, path_of};
use super::forward_auth::Granted;
use super::origin::Origin;
use super::path;
use super::routing::Site;
use crate::config::{self, FieldRules, Part, Placeholder, Template};
use crate::listener::TlsInfo;
use crate::message::{Fields, RequestHead, ResponseHead, write_field};

/// What templates speak of.
pub struct Subject<'s> {
    pub request: &'s RequestHead,
    /// Path and query, as they are asked for behind `strip_prefix`.
    pub target: &'s [u8],
    pub origin: &'s Origin<'s>,
    pub request_id: Option<&'s str>,
    pub user: Option<&'s str>,
    pub granted: Option<&'s Granted>,
    pub tls: Option<&'s TlsInfo>,
}

/// The target of a request without the prefix that the route strips, in origin form.
pub fn stripped<'r>(request: &'r RequestHead, prefix: Option<&str>) -> Cow<'r, [u8]> {
    let target = origin_form(request.target());
    let Some(prefix) = prefix else {
        return Cow::Borrowed(target);
    };
    let raw = path_of(target);
    let normal = path::normal(raw);
    let Some(rest) = normal.strip_prefix(prefix.as_bytes()) else {
        return Cow::Borrowed(target);
    };
    let mut out = Vec::with_capacity(target.len());
    if rest.first() != Some(&b'/') {
        out.push(b'/');
    }
    out.extend_from_slice(rest);
    out.extend_from_slice(&target[raw.len()..]);
    Cow::Owned(out)
}

/// The target that is asked for instead; the query stays.
pub fn rewritten(template: &Template, subject: &Subject<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(subject.target.len());
    expand(&mut out, template, subject);
    out.extend_from_slice(&subject.target[path_of(subject.target).len()..]);
    out
}

/// A place to redirect to. It leads to no other host by accident: a path that begins with two
/// slashes would be one.
pub fn location(template: &Template, subject: &Subject<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    expand(&mut out, template, subject);
    let slashes = out.iter().take_while(|byte| matches!(byte, b'/' | b'\\'));
    let slashes = slashes.count();
    if slashes > 1 {
        out.drain(..slashes - 1);
        out[0] = b'/';
    }
    out
}

/// Adds the text. What is no visible character, space or tab is left out: it would end a field.
pub fn expand(out: &mut Vec<u8>, template: &Template, subject: &Subject<'_>) {
    let mut add = |text: &[u8]| {
        out.extend(
            text.iter()
                .filter(|byte| **byte >= b' ' && **byte != 0x7f || **byte == b'\t'),
        );
    };
    for part in template.parts() {
        match part {
            Part::Text(text) => add(text.as_bytes()),
            Part::Value(value) => subject.say(value, &mut add),
        }
    }
}

impl Subject<'_> {
    fn say(&self, value: &Placeholder, add: &mut impl FnMut(&[u8])) {
        let path = path_of(self.target);
        match value {
            Placeholder::ClientIp => add(self.origin.client.as_bytes()),
            Placeholder::Scheme => add(self.origin.scheme().as_bytes()),
            Placeholder::Host => add(self.origin.host),
            Placeholder::Method => add(self.request.method.as_str().as_bytes()),
            Placeholder::Path => add(path),
            Placeholder::Query => add(self.target[path.len()..].get(1..).unwrap_or_default()),
            Placeholder::Uri => add(self.target),
            Placeholder::RequestId => add(self.request_id.unwrap_or_default().as_bytes()),
            Placeholder::ServerName => {
                let name = self.tls.and_then(|tls| tls.server_name.as_deref());
                add(name.unwrap_or_default().as_bytes());
            }
            Placeholder::TlsVersion => add(self.tls.map_or("", |tls| tls.version).as_bytes()),
            Placeholder::ClientSubject => {
                let subject = self.tls.and_then(|tls| tls.client_subject.as_deref());
                add(subject.unwrap_or_default().as_bytes());
            }
            Placeholder::User => add(self.user.unwrap_or_default().as_bytes()),
            Placeholder::Field(name) => {
                // What was granted is true, whatever the client says.
                let granted = self.granted.filter(|it| it.replaces(name.as_bytes()));
                let fields = granted.map_or(&self.request.fields, |it| &it.fields);
                add(fields.named(name).next().unwrap_or_default());
            }
        }
    }
}

/// Whether rules leave a field of this name as it is.
pub fn keeps(rules: &FieldRules, name: &[u8]) -> bool {
    let is = |other: &str| other.as_bytes().eq_ignore_ascii_case(name);
    !rules.remove.iter().any(|other| is(other)) && !rules.set.iter().any(|(other, _)| is(other))
}

/// Adds what rules add to a head whose other fields, those that they keep, are `present`.
pub fn write_added(out: &mut Vec<u8>, rules: &FieldRules, subject: &Subject<'_>, present: &Fields) {
    let mut value = Vec::new();
    for (name, template) in added(rules, present) {
        value.clear();
        expand(&mut value, template, subject);
        write_field(out, name.as_bytes(), &value);
    }
}

fn added<'r, 'f>(
    rules: &'r FieldRules,
    present: &'f Fields,
) -> impl Iterator<Item = &'r (Box<str>, Template)> + use<'r, 'f> {
    let default = rules.default.iter().filter(move |(name, _)| {
        let there = present.named(name).next().is_some() && keeps(rules, name.as_bytes());
        let mut others = rules.set.iter().chain(&rules.add);
        !there && !others.any(|(other, _)| other.eq_ignore_ascii_case(name))
    });
    rules.set.iter().chain(&rules.add).chain(default)
}

/// Applies rules to the fields of a response.
pub fn apply(fields: &mut Fields, rules: &FieldRules, subject: &Subject<'_>) {
    let mut values = Vec::new();
    for (name, template) in added(rules, fields) {
        let mut value = Vec::new();
        expand(&mut value, template, subject);
        values.push((name, value));
    }
    fields.retain(|field| keeps(rules, field.name));
    for (name, value) in values {
        fields.push(name.as_bytes(), &value);
    }
}

/// What a route changes, if anything.
#[derive(Default)]
pub struct Changes {
    pub strip_prefix: Option<Box<str>>,
    pub rewrite: Option<Template>,
    pub request: FieldRules,
    pub response: FieldRules,
}

impl Changes {
    pub fn of(route: &config::Route) -> Option<Box<Changes>> {
        let changes = Changes {
            strip_prefix: route.strip_prefix.clone(),
            rewrite: route.rewrite.clone(),
            request: route.request_fields.clone(),
            response: route.response_fields.clone(),
        };
        let any = changes.strip_prefix.is_some()
            || changes.rewrite.is_some()
            || !changes.request.is_empty()
            || !changes.response.is_empty();
        any.then(|| Box::new(changes))
    }
}

/// What is changed of the head of a response.
pub struct Adjustment<'a> {
    site: Arc<Site>,
    route: Option<usize>,
    request_id: Option<Box<str>>,
    user: Option<Box<str>>,
    /// A cookie that keeps the client at its upstream.
    cookie: Option<String>,
    granted: Option<Arc<Granted>>,
    request: &'a RequestHead,
    tls: Option<&'a TlsInfo>,
    origin: &'a Origin<'a>,
}

impl<'a> Adjustment<'a> {
    /// `None`: nothing is.
    pub fn of(
        context: &Context,
        request: &'a RequestHead,
        tls: Option<&'a TlsInfo>,
        origin: &'a Origin<'a>,
    ) -> Option<Adjustment<'a>> {
        let site = context.site.as_ref()?;
        let forwarding = context.forwarding.as_ref();
        let cookie = forwarding.and_then(|it| it.cookie(origin.secure));
        let any = site.hsts(tls).is_some()
            || cookie.is_some()
            || context.request_id.is_some()
            || context.response_rules().is_some();
        any.then(|| Adjustment {
            site: site.clone(),
            route: context.route,
            request_id: context.request_id.clone(),
            user: context.user.clone(),
            cookie,
            granted: context.granted.clone(),
            request,
            tls,
            origin,
        })
    }

    pub fn apply(&self, head: &mut ResponseHead) {
        let fields = &mut head.fields;
        if let Some(hsts) = self.site.hsts(self.tls) {
            fields.set(b"Strict-Transport-Security", hsts.as_bytes());
        }
        if let (Some(name), Some(id)) = (&self.site.settings.request_id, &self.request_id) {
            fields.set(name.as_bytes(), id.as_bytes());
        }
        if let Some(cookie) = &self.cookie {
            fields.push(b"Set-Cookie", cookie.as_bytes());
        }
        let route = self.route.and_then(|route| self.site.routes.get(route));
        let Some(changes) = route.and_then(|route| route.changes.as_deref()) else {
            return;
        };
        let subject = Subject {
            request: self.request,
            target: &stripped(self.request, changes.strip_prefix.as_deref()),
            origin: self.origin,
            request_id: self.request_id.as_deref(),
            user: self.user.as_deref(),
            granted: self.granted.as_deref(),
            tls: self.tls,
        };
        apply(fields, &changes.response, &subject);
    }
}
