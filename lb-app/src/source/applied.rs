//! What was applied by the API: a state of its own, which outlives the process beside the drains.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use lb_config::PortConfig;
use lb_core::model::{Health, Service};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::documents::{self, Read};
use super::{Refused, Source, State, Wanted, told};
use crate::api::proto::{Document, ResourceError};

/// A state that somebody wants to be applied, valid by itself.
#[derive(Debug)]
pub(crate) struct Application {
    documents: Vec<Document>,
    services: Vec<Arc<Service>>,
    /// Whose service it is, by its name: the document's place.
    homes: HashMap<String, usize>,
    /// The one that it was made from; absent: whatever there is.
    expected: Option<u64>,
}

/// Why it is not applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error(
        "version {expected} was expected, but {applied} is applied: somebody was faster. Look at what is \
         wanted now, and apply your change to that, expecting {applied}"
    )]
    Stale { expected: u64, applied: u64 },
    #[error("{}", .0.first().map(told).unwrap_or_default())]
    Refused(Vec<ResourceError>),
}

impl Application {
    /// Reads `documents`; `ports` are the file's.
    pub(crate) fn new(
        documents: Vec<Document>,
        expected: Option<u64>,
        ports: &[PortConfig],
    ) -> Result<Self, Vec<ResourceError>> {
        let Read { services, homes } = documents::read(&documents, ports)?;
        Ok(Self { documents, services, homes, expected })
    }

    pub(crate) fn state(&self, version: u64) -> State {
        State {
            source: Source::Api,
            services: self.services.clone(),
            failed: Health::default(),
            version: version.to_string(),
            since: SystemTime::now(),
        }
    }

    /// Why it is not taken, with the documents at fault.
    pub(crate) fn errors(&self, refused: &Refused) -> Vec<ResourceError> {
        refused.errors(&Source::Api, |service| {
            Some(self.documents.get(*self.homes.get(service)?)?.name.clone())
        })
    }

    /// Is it made from what is applied?
    pub(crate) fn check(&self, applied: u64) -> Result<(), ApplyError> {
        match self.expected {
            Some(expected) if expected != applied => Err(ApplyError::Stale { expected, applied }),
            _ => Ok(()),
        }
    }
}

/// What is kept: how often something was applied, and what was last, by name and text.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Kept {
    version: u64,
    documents: Vec<(String, String)>,
}

/// Where it is kept: one JSON line.
#[derive(Debug)]
pub(crate) struct Applied {
    path: PathBuf,
    /// Counts what was applied; 0: nothing ever was.
    pub(crate) version: u64,
}

impl Applied {
    /// What the process before has left joins what is wanted. What cannot is said, and left out.
    pub(crate) fn read(state_dir: &Path, ports: &[PortConfig], wanted: &mut Wanted) -> Self {
        let path = state_dir.join("applied");
        let read = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Kept::default()),
            read => read.and_then(|bytes| Ok(serde_json::from_slice(&bytes)?)),
        };
        let Kept { version, documents } = read.unwrap_or_else(|error| {
            warn!("{}: {error}; what was applied is wanted no more", path.display());
            Kept::default()
        });
        let applied = Self { path, version };
        let document = |(name, text)| Document { name, text, ..Document::default() };
        let documents = documents.into_iter().map(document).collect();
        let joined = match Application::new(documents, None, ports) {
            Ok(it) if version > 0 => wanted.with(it.state(version)).map_err(|it| it.to_string()),
            Ok(_) => return applied,
            Err(errors) => Err(errors.first().map(told).unwrap_or_default()),
        };
        match joined {
            Ok(both) => *wanted = both,
            Err(error) => warn!("what was applied is left out, apply it again: {error}"),
        }
        applied
    }

    /// `application` is in force, as `version`.
    pub(crate) fn keep(&mut self, application: Application, version: u64) {
        self.version = version;
        let documents = application.documents.into_iter().map(|it| (it.name, it.text)).collect();
        let new = self.path.with_extension("new");
        let written = serde_json::to_vec(&Kept { version, documents })
            .map_err(io::Error::from)
            .and_then(|bytes| fs::write(&new, bytes))
            .and_then(|()| fs::rename(&new, &self.path));
        if let Err(error) = written {
            let path = self.path.display();
            warn!("{path}: {error}; the next process will not know what was applied");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::tests::config;

    const FILE: &str = "[[port]]\nname = 'lan0'\ndevice = 'net_null0'\n\
                        [[service]]\nname = 'dns'\naddress = '10.0.0.100'\nport = 53\n\
                        protocol = 'udp'\nforward = 'l2dsr'\n";
    const WEB: &str = "[[service]]\nname = 'web'\naddress = '10.0.0.100'\nport = 80\n\
                       protocol = 'tcp'\nforward = 'l2dsr'\n";

    fn document(text: &str) -> Document {
        Document { name: "web.toml".into(), text: text.into(), ..Document::default() }
    }

    #[test]
    fn what_was_applied_outlives_the_process() {
        let file = config(FILE);
        let nothing = Wanted::nothing(file.desired.hash_key());
        let base = nothing.with(State::of_file(&file)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let names = |wanted: &Wanted| {
            let services = wanted.desired().services().iter();
            services.map(|it| it.spec().name.clone()).collect::<Vec<_>>()
        };
        let again = |base: &Wanted| {
            let mut wanted = base.clone();
            let applied = Applied::read(folder.path(), &file.ports, &mut wanted);
            (applied, names(&wanted))
        };
        let (mut applied, wanted) = again(&base);
        assert_eq!((applied.version, wanted), (0, vec!["dns".to_owned()]));

        let application = Application::new(vec![document(WEB)], Some(0), &file.ports).unwrap();
        application.check(applied.version).unwrap();
        let stale = application.check(3).unwrap_err().to_string();
        assert!(stale.contains("version 0 was expected, but 3 is applied"), "{stale}");
        applied.keep(application, 1);
        let (applied, wanted) = again(&base);
        assert_eq!((applied.version, wanted), (1, vec!["dns".into(), "web".into()]));

        // The file has come to want the same: it was first, since it says what the machine is.
        let both = config(&format!("{FILE}{WEB}"));
        let (applied, wanted) = again(&nothing.with(State::of_file(&both)).unwrap());
        assert_eq!((applied.version, wanted), (1, vec!["dns".into(), "web".into()]));
        fs::write(folder.path().join("applied"), "no JSON").unwrap();
        assert_eq!(again(&base).0.version, 0);
    }

    #[test]
    fn errors_name_document_line_and_what_to_write() {
        let file = config(FILE);
        let wrong = document(&WEB.replace("'tcp'", "'tpc'"));
        let errors = Application::new(vec![wrong], None, &file.ports).unwrap_err();
        let shown: Vec<_> = errors.iter().map(told).collect();
        assert!(
            shown[0].starts_with("web.toml:5:12: \"tpc\" is not one of the words"),
            "{shown:?}"
        );
        assert!(shown[0].contains("did you mean \"tcp\""), "{shown:?}");

        let base = Wanted::nothing(file.desired.hash_key()).with(State::of_file(&file)).unwrap();
        let same = document(&WEB.replace("'web'", "\"dns\""));
        let application = Application::new(vec![same], None, &file.ports).unwrap();
        let refused = Refused::from(base.with(application.state(1)).unwrap_err());
        let shown: Vec<_> = application.errors(&refused).iter().map(told).collect();
        assert!(
            shown[0].starts_with("web.toml: service \"dns\" of the API and \"dns\" of the file:"),
            "{shown:?}"
        );
    }
}
