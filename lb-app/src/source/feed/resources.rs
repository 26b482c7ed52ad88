//! All that a control plane has told, part by part, and the services that follow from it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use lb_config::PortConfig;
use lb_core::model::{BACKENDS_MAX, Backend, Service};

use crate::api::proto::{
    Document, Endpoint, EndpointState, Endpoints, FeedUpdate, ResourceError, ResourceVersion,
};
use crate::source::{ERRORS_MAX, document_errors, problem_error};

/// Bytes of a name or a version, at most.
const WORD_BYTES_MAX: usize = 128;
/// Documents, and lists of endpoints, at most; and the bytes and endpoints in all of them.
const RESOURCES_MAX: usize = 65_536;
const DOCUMENT_BYTES_MAX: usize = 64 << 20;
const ENDPOINTS_MAX: usize = 2_000_000;

/// Why an update is no update: the call is ended, and what was known stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoUpdate {
    #[error("its update has a name or a version of no, or more than {WORD_BYTES_MAX}, bytes")]
    Word,
    #[error("its update has parts of versions {0:?} and {1:?}")]
    OtherVersion(String, String),
    #[error("it tells of more than {RESOURCES_MAX} documents, or as many lists of endpoints")]
    Resources,
    #[error("its documents have more than {DOCUMENT_BYTES_MAX} bytes together")]
    Bytes,
    #[error("it tells of more than {ENDPOINTS_MAX} endpoints, or {BACKENDS_MAX} of one service")]
    Endpoints,
}

/// A document, and what it says.
#[derive(Clone, Debug)]
struct Told {
    version: String,
    text: String,
    read: Result<Vec<Arc<Service>>, Vec<ResourceError>>,
}

/// See above.
#[derive(Debug)]
pub(super) struct Resources {
    ports: Vec<PortConfig>,
    /// Of the last update.
    pub(super) version: String,
    documents: BTreeMap<String, Told>,
    /// By service.
    endpoints: BTreeMap<String, Endpoints>,
    /// Bytes of all documents, and endpoints in all lists.
    bytes: usize,
    endpoint_count: usize,
    /// Services with their endpoints, as made before: forgotten when either changes.
    made: HashMap<String, Result<Arc<Service>, Vec<ResourceError>>>,
}

impl Resources {
    pub(super) fn new(ports: &[PortConfig]) -> Self {
        Self {
            ports: ports.to_vec(),
            version: String::new(),
            documents: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            bytes: 0,
            endpoint_count: 0,
            made: HashMap::new(),
        }
    }

    /// Takes an update that is there as a whole. How many resources have changed.
    pub(super) fn take(&mut self, update: FeedUpdate) -> Result<usize, NoUpdate> {
        self.check(&update)?;
        let FeedUpdate { version, full, documents, endpoints, .. } = update;
        let (mut gone, mut gone_lists) = (update.documents_removed, update.endpoints_removed);
        if full {
            let told: HashSet<&String> = documents.iter().map(|it| &it.name).collect();
            gone = self.documents.keys().filter(|it| !told.contains(it)).cloned().collect();
            let told: HashSet<&String> = endpoints.iter().map(|it| &it.service).collect();
            gone_lists = self.endpoints.keys().filter(|it| !told.contains(it)).cloned().collect();
        }
        let mut changed = 0;
        for name in gone {
            changed += usize::from(self.remove_document(&name).is_some());
        }
        for service in gone_lists {
            changed += usize::from(self.remove_endpoints(&service).is_some());
        }
        for document in documents {
            changed += usize::from(self.take_document(document));
        }
        for list in endpoints {
            changed += usize::from(self.take_endpoints(list));
        }
        self.version = version;
        Ok(changed)
    }

    fn take_document(&mut self, document: Document) -> bool {
        let Document { name, version, text } = document;
        let known = self.documents.get(&name);
        if known.is_some_and(|known| known.version == version && known.text == text) {
            return false;
        }
        let read = lb_config::services(&name, &text, &self.ports)
            .map(|services| services.into_iter().map(Arc::new).collect())
            .map_err(|wrong| document_errors(&name, &wrong));
        let mut new = Told { version, text, read };
        let old = self.remove_document(&name);
        keep_unchanged(&mut new, old.as_ref());
        self.bytes += new.text.len();
        self.documents.insert(name, new);
        true
    }

    /// What was made of the services of a document is forgotten, too.
    fn remove_document(&mut self, name: &str) -> Option<Told> {
        let text = self.documents.remove(name)?;
        self.bytes -= text.text.len();
        for service in text.read.iter().flatten() {
            self.made.remove(&service.spec().name);
        }
        Some(text)
    }

    fn take_endpoints(&mut self, told: Endpoints) -> bool {
        if self.endpoints.get(&told.service) == Some(&told) {
            return false;
        }
        self.remove_endpoints(&told.service);
        self.endpoint_count += told.endpoints.len();
        self.endpoints.insert(told.service.clone(), told);
        true
    }

    fn remove_endpoints(&mut self, service: &str) -> Option<Endpoints> {
        let list = self.endpoints.remove(service)?;
        self.endpoint_count -= list.endpoints.len();
        self.made.remove(service);
        Some(list)
    }

    /// Would what is known be more than there may be?
    fn check(&self, update: &FeedUpdate) -> Result<(), NoUpdate> {
        let is_word = |word: &str| (1..=WORD_BYTES_MAX).contains(&word.len());
        let documents = || update.documents.iter();
        let endpoints = || update.endpoints.iter();
        let words = documents().flat_map(|it| [&it.name, &it.version]);
        let mut words = words.chain(endpoints().flat_map(|it| [&it.service, &it.version]));
        if !is_word(&update.version) || !words.all(|word| is_word(word)) {
            return Err(NoUpdate::Word);
        }
        if endpoints().any(|it| it.endpoints.len() > BACKENDS_MAX) {
            return Err(NoUpdate::Endpoints);
        }
        let bytes: usize = documents().map(|it| it.text.len()).sum();
        let count: usize = endpoints().map(|it| it.endpoints.len()).sum();
        let more = (update.documents.len(), update.endpoints.len());
        // As if all of it were new; that is enough, almost always.
        let had = (self.documents.len(), self.endpoints.len(), self.bytes, self.endpoint_count);
        let sums = if update.full { (0, 0, 0, 0) } else { had };
        let sums = (sums.0 + more.0, sums.1 + more.1, sums.2 + bytes, sums.3 + count);
        if is_within(sums).is_ok() {
            return Ok(());
        }
        // What is replaced or removed makes room.
        let texts = documents().map(|it| &it.name).chain(&update.documents_removed);
        let texts: BTreeSet<&String> = texts.filter(|_| !update.full).collect();
        let lists = endpoints().map(|it| &it.service).chain(&update.endpoints_removed);
        let lists: BTreeSet<&String> = lists.filter(|_| !update.full).collect();
        let texts: Vec<_> = texts.iter().filter_map(|name| self.documents.get(*name)).collect();
        let lists: Vec<_> = lists.iter().filter_map(|name| self.endpoints.get(*name)).collect();
        let bytes: usize = texts.iter().map(|it| it.text.len()).sum();
        let count: usize = lists.iter().map(|it| it.endpoints.len()).sum();
        is_within((sums.0 - texts.len(), sums.1 - lists.len(), sums.2 - bytes, sums.3 - count))
    }

    /// The services, or at most [`ERRORS_MAX`] things that are wrong. What has not changed since the last
    /// time is the same `Arc`.
    pub(super) fn services(&mut self) -> Result<Vec<Arc<Service>>, Vec<ResourceError>> {
        let (mut services, mut errors) = (Vec::new(), Vec::new());
        for text in self.documents.values() {
            let read = match &text.read {
                Ok(read) => read,
                Err(wrong) => {
                    errors.extend_from_slice(wrong);
                    continue;
                }
            };
            for service in read {
                let name = &service.spec().name;
                let Some(list) = self.endpoints.get(name) else {
                    services.push(Arc::clone(service));
                    continue;
                };
                if !self.made.contains_key(name) {
                    self.made.insert(name.clone(), with_endpoints(service, list, &self.ports));
                }
                match &self.made[name] {
                    Ok(service) => services.push(Arc::clone(service)),
                    Err(wrong) => errors.extend_from_slice(wrong),
                }
            }
        }
        errors.truncate(ERRORS_MAX);
        if errors.is_empty() { Ok(services) } else { Err(errors) }
    }

    /// The document that has a service; of several, the last.
    pub(super) fn document_of(&self, service: &str) -> Option<&str> {
        let has = |text: &Told| {
            let read = text.read.as_ref().ok()?;
            read.iter().any(|it| it.spec().name == service).then_some(())
        };
        let mut documents = self.documents.iter().rev();
        documents.find(|(_, text)| has(text).is_some()).map(|(name, _)| &**name)
    }

    /// The documents and the endpoints that are good, for the control plane.
    pub(super) fn known(&self) -> (Vec<ResourceVersion>, Vec<ResourceVersion>) {
        let known = |name: &str, version: &str| ResourceVersion {
            name: name.into(),
            version: version.into(),
        };
        let documents = self.documents.iter().filter(|(_, it)| it.read.is_ok());
        let is_wrong = |name: &String| self.made.get(name).is_some_and(Result::is_err);
        let endpoints = self.endpoints.iter().filter(|(name, _)| !is_wrong(name));
        (
            documents.map(|(name, it)| known(name, &it.version)).collect(),
            endpoints.map(|(name, it)| known(name, &it.version)).collect(),
        )
    }

    /// All of it, as one update.
    pub(super) fn to_update(&self) -> FeedUpdate {
        let document = |(name, it): (&String, &Told)| Document {
            name: name.clone(),
            version: it.version.clone(),
            text: it.text.clone(),
        };
        FeedUpdate {
            version: self.version.clone(),
            full: true,
            documents: self.documents.iter().map(document).collect(),
            endpoints: self.endpoints.values().cloned().collect(),
            ..FeedUpdate::default()
        }
    }
}

/// Documents, lists of endpoints, bytes, endpoints.
fn is_within(
    (documents, lists, bytes, endpoints): (usize, usize, usize, usize),
) -> Result<(), NoUpdate> {
    if documents.max(lists) > RESOURCES_MAX {
        return Err(NoUpdate::Resources);
    }
    if bytes > DOCUMENT_BYTES_MAX {
        return Err(NoUpdate::Bytes);
    }
    if endpoints > ENDPOINTS_MAX {
        return Err(NoUpdate::Endpoints);
    }
    Ok(())
}

/// A service that reads as before is the one from before.
fn keep_unchanged(new: &mut Told, old: Option<&Told>) {
    let (Ok(new), Some(Ok(old))) = (&mut new.read, old.map(|old| &old.read)) else { return };
    let old: HashMap<&str, &Arc<Service>> = old.iter().map(|it| (&*it.spec().name, it)).collect();
    for service in new {
        if let Some(same) = old.get(&*service.spec().name).filter(|it| **it == service) {
            *service = Arc::clone(same);
        }
    }
}

fn with_endpoints(
    service: &Arc<Service>,
    list: &Endpoints,
    ports: &[PortConfig],
) -> Result<Arc<Service>, Vec<ResourceError>> {
    let name = &service.spec().name;
    if !service.spec().backends.is_empty() {
        return Err(vec![ResourceError {
            resource: name.clone(),
            message: "the service has `backends` in its document, and endpoints".into(),
            help: "leave `backends` out of the document, or remove the endpoints".into(),
            ..ResourceError::default()
        }]);
    }
    let backends = backends(list)?;
    let made = lb_config::with_backends(service, backends, ports).map_err(|problems| {
        let error = |(place, problem): &(Option<usize>, _)| problem_error(name, *place, problem);
        problems.iter().take(ERRORS_MAX).map(error).collect::<Vec<_>>()
    });
    made.map(Arc::new)
}

/// The backends that are meant.
fn backends(told: &Endpoints) -> Result<Vec<Backend>, Vec<ResourceError>> {
    let (mut backends, mut errors) = (Vec::with_capacity(told.endpoints.len()), Vec::new());
    for (place, endpoint) in told.endpoints.iter().enumerate() {
        match backend(endpoint) {
            Ok(backend) => backends.push(backend),
            Err((message, help)) if errors.len() < ERRORS_MAX => errors.push(ResourceError {
                resource: told.service.clone(),
                line: u32::try_from(place + 1).unwrap_or(u32::MAX),
                column: 0,
                message,
                help: help.into(),
            }),
            Err(_) => {}
        }
    }
    if errors.is_empty() { Ok(backends) } else { Err(errors) }
}

/// One of them; or what is wrong with it, and what to write.
fn backend(endpoint: &Endpoint) -> Result<Backend, (String, &'static str)> {
    let bytes = &endpoint.address[..];
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let address = v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).map_err(|_| {
        (format!("an address of {} bytes", bytes.len()), "send the 4 of IPv4 or the 16 of IPv6")
    })?;
    let port = u16::try_from(endpoint.port)
        .map_err(|_| (format!("{} is not a port", endpoint.port), "send 1 to 65535, or 0"))?;
    let state = EndpointState::try_from(endpoint.state)
        .map_err(|_| (format!("{} is no state", endpoint.state), "send 0 or 1"))?;
    Ok(Backend {
        address,
        port: Some(port).filter(|port| *port != 0),
        weight: endpoint.weight.unwrap_or(1),
        drain: state == EndpointState::Drain,
        static_hop: None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILE: &str =
        "[[port]]\nname = 'lan0'\ndevice = 'net_null0'\naddresses = ['10.0.0.2/24']\n";

    fn ports() -> Vec<PortConfig> {
        crate::api::tests::config(FILE).ports
    }

    /// A document of two services that may be wrong, or a list that may be; of version `n`.
    fn update(what: u8, place: u8, n: u8) -> FeedUpdate {
        let (mut update, name) = (FeedUpdate::default(), format!("r{}", place % 3));
        let word = if n.is_multiple_of(5) { "nonsense" } else { "l2dsr" };
        let service = |i: u8| {
            let port = 1 + u16::from(place % 3) * 2 + u16::from(i);
            let grace = 1 + n % 2 * i; // the first one often stays as it is
            format!(
                "[[service]]\nname = '{name}-{i}'\naddress = '10.0.0.100'\nport = {port}\n\
                 protocol = 'tcp'\nforward = '{word}'\ngrace = '{grace}h'\n"
            )
        };
        let service_name = format!("{name}-{}", n % 2);
        match what % 4 {
            0 => update.documents.push(Document {
                text: service(0) + &service(1),
                name,
                version: n.to_string(),
            }),
            1 => update.documents_removed.push(name),
            2 => update.endpoints.push(Endpoints {
                service: service_name,
                version: n.to_string(),
                endpoints: vec![Endpoint {
                    address: vec![10, 0, 0, 11 + n][usize::from(n.is_multiple_of(7))..].to_vec(),
                    ..Endpoint::default()
                }],
            }),
            _ => update.endpoints_removed.push(service_name),
        }
        update.version = "v".into();
        update
    }

    proptest! {
        /// What was told in parts is what is told at once, in what is good and in what is wrong; asking in
        /// between makes no difference; and the sums are true.
        #[test]
        fn parts_make_the_whole(told in prop::collection::vec(any::<(u8, u8, u8, bool)>(), 0..40)) {
            let ports = ports();
            let mut parts = Resources::new(&ports);
            for (what, place, n, ask) in told {
                parts.take(update(what, place, n % 100)).unwrap();
                if ask {
                    let _ = parts.services();
                }
            }
            let mut whole = Resources::new(&ports);
            let all = FeedUpdate { version: "v".into(), ..parts.to_update() };
            whole.take(all).unwrap();
            prop_assert_eq!(parts.services(), whole.services());
            prop_assert_eq!(parts.known(), whole.known());
            prop_assert_eq!(
                (parts.bytes, parts.endpoint_count),
                (whole.bytes, whole.endpoint_count)
            );
        }
    }

    #[test]
    fn more_than_there_may_be_is_refused_and_what_is_replaced_makes_room() {
        let mut resources = Resources::new(&ports());
        let document = |name: &str, bytes: usize| Document {
            name: name.into(),
            version: bytes.to_string(),
            text: "#".repeat(bytes),
        };
        let update = |documents: Vec<Document>| FeedUpdate {
            version: "v".into(),
            documents,
            ..FeedUpdate::default()
        };
        let most = DOCUMENT_BYTES_MAX;
        assert_eq!(resources.take(update(vec![document("a", most)])), Ok(1));
        assert_eq!(resources.take(update(vec![document("b", 1)])), Err(NoUpdate::Bytes));
        let less = update(vec![document("a", most - 1), document("b", 1)]);
        assert_eq!(resources.take(less), Ok(2));
        let full = FeedUpdate { full: true, ..update(vec![document("c", most)]) };
        assert_eq!(resources.take(full), Ok(3), "two are gone, one is new");
        assert_eq!(resources.services(), Ok(Vec::new()));
    }
}
