//! The arguments of `perennial proxy` -> a [`Draft`]. They mean exactly what the same text means
//! in a file.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use super::diagnostic::{Diagnostics, Located, Problem, Report, Source};
use super::draft::{
    ActionDraft, AuthorityDraft, Draft, Listen, RouteDraft, ServerDraft, SiteDraft,
};
use super::environment::Environment;
use super::listen::listen;
use super::upstream::upstream;
use super::value::{admin_listen, directory_url, email, file_path, host, path_pattern};
use super::{Config, Files, PathPattern, TlsMode, Upstream};
use crate::certificate::name::Name;

/// What `perennial proxy` was given, not yet looked at.
#[derive(Clone, Debug, Default)]
pub struct CommandLine {
    /// `HOST=UPSTREAM` or `HOST/PATH=UPSTREAM`. One that is repeated adds an upstream. A path in
    /// place of an upstream is a folder to serve: it begins with `/`, `./` or `../`.
    pub sites: Vec<String>,
    pub http_listen: Vec<String>,
    pub https_listen: Vec<String>,
    pub admin_listen: Option<String>,
    pub state_dir: Option<PathBuf>,
    pub acme_directory: Option<String>,
    pub acme_ca_certificate: Option<PathBuf>,
    pub email: Option<String>,
    /// Certificates of the internal CA for every site.
    pub internal: bool,
}

impl Config {
    /// Makes a configuration of command-line arguments. Relative paths are relative to the
    /// working directory.
    pub fn from_command_line(arguments: CommandLine) -> Result<Config, Diagnostics> {
        Config::from_arguments(arguments, &Environment::of_process(None))
    }

    pub(super) fn from_arguments(
        arguments: CommandLine,
        environment: &Environment<'_>,
    ) -> Result<Config, Diagnostics> {
        let report = Report::new(Source::Arguments(RefCell::default()));
        let draft = Reader { report: &report }.draft(&arguments);
        Config::from_draft(draft, environment, report)
    }
}

struct Reader<'a> {
    report: &'a Report<'a>,
}

/// One `HOST[/PATH]=UPSTREAM`.
struct SiteArgument {
    host: Name,
    path: PathPattern,
    target: Target,
}

/// What may stand behind the `=`.
enum Target {
    Upstream(Upstream),
    Folder(PathBuf),
}

impl Reader<'_> {
    fn draft(&self, arguments: &CommandLine) -> Draft {
        let admin_listen = self.option("--admin-listen", arguments.admin_listen.as_ref(), |text| {
            admin_listen(text, Path::new(""))
        });
        let state_dir = self.path("--state-dir", arguments.state_dir.as_ref());
        let email = self.option("--email", arguments.email.as_ref(), email);
        Draft {
            server: ServerDraft {
                http_listen: self.listen("--http-listen", &arguments.http_listen),
                https_listen: self.listen("--https-listen", &arguments.https_listen),
                admin_listen,
                state_dir: state_dir.map(|path| path.value),
                ..ServerDraft::default()
            },
            acme: AuthorityDraft {
                directory: self.option(
                    "--acme-directory",
                    arguments.acme_directory.as_ref(),
                    directory_url,
                ),
                email: email.map(|email| email.value),
                ca_certificate: self.path(
                    "--acme-ca-certificate",
                    arguments.acme_ca_certificate.as_ref(),
                ),
                ..AuthorityDraft::default()
            },
            sites: self.sites(arguments),
            ..Draft::default()
        }
    }

    /// Parses one argument, which is shown as `name text` where something is wrong with it.
    fn option<T>(
        &self,
        name: &str,
        text: Option<&String>,
        parse: impl Fn(&str) -> Result<T, Problem>,
    ) -> Option<Located<T>> {
        let text = text?;
        let at = self.report.source.add_argument(&format!("{name} {text}"));
        let value = self.report.keep(at, parse(text))?;
        Some(Located { value, at })
    }

    fn listen(&self, name: &str, texts: &[String]) -> Listen {
        let parse = |text| self.option(name, Some(text), |text| listen(text, Path::new("")));
        match texts {
            [] => Listen::Default,
            texts => Listen::On(texts.iter().filter_map(parse).collect()),
        }
    }

    /// Unlike in a file, a path here need not be UTF-8, and the shell has expanded its `~`.
    fn path(&self, name: &str, path: Option<&PathBuf>) -> Option<Located<PathBuf>> {
        let path = path?;
        let argument = format!("{name} {}", path.display());
        let at = self.report.source.add_argument(&argument);
        if path.as_os_str().is_empty() {
            let problem = Problem::new("the path is empty").help("leave the option out instead");
            self.report.add(at, problem);
        }
        let value = path.clone();
        Some(Located { value, at })
    }

    /// One site for each host, in the order in which they were first named.
    fn sites(&self, arguments: &CommandLine) -> Vec<SiteDraft> {
        let mode = match arguments.internal {
            true => TlsMode::Internal,
            false => TlsMode::Auto,
        };
        if arguments.sites.is_empty() {
            let at = self.report.source.add_argument("SITE=UPSTREAM");
            let problem = Problem::new("there is no site, so there is nothing to serve");
            self.report
                .add(at, problem.help("write it as example.com=127.0.0.1:3000"));
        }
        let mut sites: Vec<SiteDraft> = Vec::new();
        for text in &arguments.sites {
            let at = self.report.source.add_argument(text);
            if let Some(argument) = self.report.keep(at, site_argument(text)) {
                add_site(&mut sites, argument, mode, at);
            }
        }
        sites
    }
}

fn site_argument(text: &str) -> Result<SiteArgument, Problem> {
    let Some((place, target)) = text.split_once('=') else {
        return Err(Problem::new("this has no `=`")
            .help("write SITE=UPSTREAM, such as example.com=127.0.0.1:3000"));
    };
    let (host_text, path_text) = match place.find('/') {
        Some(slash) if !place.contains("://") => place.split_at(slash),
        _ => (place, "/*"),
    };
    Ok(SiteArgument {
        host: host(host_text)?,
        path: path_pattern(path_text)?,
        target: match is_folder(target) {
            true => Target::Folder(file_path(target, Path::new(""))?),
            false => Target::Upstream(upstream_argument(target)?),
        },
    })
}

/// A word may be meant as a folder, which is written otherwise.
fn upstream_argument(target: &str) -> Result<Upstream, Problem> {
    upstream(target, Path::new("")).map_err(|problem| match host(target) {
        Ok(_) => problem.help(format!(
            "write {target}:3000, or https://{target}; for a folder ./{target}"
        )),
        Err(_) => problem,
    })
}

fn is_folder(target: &str) -> bool {
    let begins = ["/", "./", "../"];
    begins.iter().any(|begin| target.starts_with(begin)) || matches!(target, "." | "..")
}

fn add_site(sites: &mut Vec<SiteDraft>, argument: SiteArgument, mode: TlsMode, at: usize) {
    let has_host = |site: &SiteDraft| site.hosts.iter().any(|h| h.value == argument.host);
    let index = sites.iter().position(has_host).unwrap_or(sites.len());
    if index == sites.len() {
        let host = Located {
            value: argument.host,
            at,
        };
        let tls = Located { value: mode, at };
        sites.push(SiteDraft::new(vec![host], Some(tls)));
    }
    let routes = &mut sites[index].routes;
    let known = routes.iter_mut().find(|r| r.path.value == argument.path);
    let known = known.and_then(|route| route.action.as_mut());
    let action = match (argument.target, known) {
        (Target::Upstream(upstream), Some(ActionDraft::Forward(upstreams))) => {
            return upstreams.push(upstream.into());
        }
        (Target::Upstream(upstream), _) => ActionDraft::Forward(vec![upstream.into()]),
        (Target::Folder(root), _) => {
            let files = Files::below(root);
            ActionDraft::Files { files, at }
        }
    };
    let path = Located {
        value: argument.path,
        at,
    };
    routes.push(RouteDraft::new(path, action));
}
