//! Finds the TLS libraries of the pods for which requests inside TLS are wanted: which files their processes run, and
//! where the functions lie by which plain text passes. It looks again and again, on a thread of its own, for a file
//! system can keep it waiting; it neither attaches nor counts anything.

mod elf;
mod follow;
mod go;
mod processes;

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

pub use follow::{Allowed, Follower};
pub use processes::FileId;

use super::cgroup;
use elf::Elf;

/// How often new processes are looked for.
const LOOK: Duration = Duration::from_secs(1);
/// How soon a process is looked at again, for libraries that it loads late; each time twice as late, to this at most.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_AT_LAST: Duration = Duration::from_secs(60);
/// Files whose symbols are remembered; with more, they are read again.
const MAX_FILES: usize = 8192;
/// What a look can find before it is taken in.
const UNDER_WAY: usize = 4;

const NO_HOST_PID: &str = "the pods' processes can not be seen: hostPID is needed (config/tls)";
const NO_PTRACE: &str =
    "the pods' processes can not be looked at: CAP_SYS_PTRACE is needed (config/tls)";

/// A function through which plain text passes, or that begins or ends a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// `int SSL_read(SSL *, void *, int)`
    Read,
    /// `int SSL_read_ex(SSL *, void *, size_t, size_t *)`
    ReadEx,
    /// `int SSL_write(SSL *, const void *, int)`
    Write,
    /// `int SSL_write_ex(SSL *, const void *, size_t, size_t *)`
    WriteEx,
    /// `void SSL_set_accept_state(SSL *)`, which every server's session goes through
    Accept,
    /// `void SSL_free(SSL *)`
    Free,
    /// `func (*tls.Conn) Read([]byte) (int, error)`
    GoRead,
    /// Where that returns
    GoReadReturn,
    /// `func (*tls.Conn) Write([]byte) (int, error)`
    GoWrite,
    /// `func (*tls.Conn) serverHandshake(context.Context) error`
    GoAccept,
    /// `func (*tls.Conn) Close() error`, and where a client's session begins
    GoFree,
}

/// Their names in OpenSSL, BoringSSL and LibreSSL.
const FUNCTIONS: [(Function, &[u8]); 6] = [
    (Function::Read, b"SSL_read"),
    (Function::ReadEx, b"SSL_read_ex"),
    (Function::Write, b"SSL_write"),
    (Function::WriteEx, b"SSL_write_ex"),
    (Function::Accept, b"SSL_set_accept_state"),
    (Function::Free, b"SSL_free"),
];

/// A file with functions to probe.
#[derive(Clone, Debug)]
pub struct Library {
    /// Which file it is.
    pub id: FileId,
    /// The file itself.
    pub file: Arc<File>,
    /// Its path as a process sees it, for people.
    pub path: String,
    /// Its functions, and where in the file they lie.
    pub functions: Vec<(Function, u64)>,
}

/// Whose TLS libraries are to be found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Pods {
    /// Nobody's.
    #[default]
    None,
    /// Those of the pods with these UIDs.
    These(BTreeSet<String>),
    /// Everybody's.
    All,
}

impl Pods {
    fn contain(&self, path: &str) -> bool {
        match self {
            Pods::None => false,
            Pods::All => true,
            Pods::These(uids) => cgroup::parse(path).is_some_and(|of| uids.contains(&of.uid)),
        }
    }
}

/// What a look found.
#[derive(Debug, Default)]
pub struct Found {
    /// Libraries that were not known before.
    pub new: Vec<Library>,
    /// Libraries that no process of these pods runs any more.
    pub gone: Vec<FileId>,
    /// Files that are a TLS library by their name, in which no functions were found.
    pub without_symbols: u64,
    /// Why processes can not be looked at, if so.
    pub trouble: Option<&'static str>,
}

/// The agent's end of the finder.
#[derive(Debug)]
pub struct Finder {
    want: Sender<Pods>,
    /// What was found.
    pub found: mpsc::Receiver<Found>,
}

impl Finder {
    /// Starts looking below that kubepods directory, for nobody yet. It ends when this is dropped.
    pub fn start(kubepods: PathBuf) -> io::Result<Finder> {
        let (want, wanted) = channel();
        let (tell, found) = mpsc::channel(UNDER_WAY);
        let search = Search::new(kubepods);
        std::thread::Builder::new()
            .name("tls".into())
            .spawn(move || search.run(&wanted, &tell))?;
        Ok(Finder { want, found })
    }

    /// From now on these pods' libraries are looked for.
    pub fn want(&self, pods: Pods) {
        let _ = self.want.send(pods);
    }
}

/// The TLS libraries that a process runs now.
pub fn libraries_of(process: u32) -> io::Result<Vec<Library>> {
    let mut search = Search::new(PathBuf::new());
    let mut found = Found::default();
    let root = processes::root(process)?;
    let paths = processes::code(process)?.into_iter();
    let looked_into = paths.map(|path| search.look_into(&root, path, &mut found));
    Ok(looked_into.filter_map(Result::ok).flatten().collect())
}

struct Process {
    started: u64,
    next: Instant,
    wait: Duration,
    files: BTreeSet<FileId>,
    /// It may not be looked at.
    forbidden: bool,
}

struct Search {
    kubepods: PathBuf,
    processes: HashMap<u32, Process>,
    /// The functions of files that were looked into, none in most.
    files: HashMap<FileId, Arc<[(Function, u64)]>>,
    told: BTreeSet<FileId>,
    /// Told for former wishes.
    before: BTreeSet<FileId>,
}

impl Search {
    fn new(kubepods: PathBuf) -> Search {
        Search {
            kubepods,
            processes: HashMap::new(),
            files: HashMap::new(),
            told: BTreeSet::new(),
            before: BTreeSet::new(),
        }
    }

    fn run(mut self, wanted: &Receiver<Pods>, tell: &mpsc::Sender<Found>) {
        let mut pods = Pods::None;
        loop {
            match wanted.recv_timeout(LOOK) {
                Ok(now) => {
                    pods = now;
                    // What somebody wants again is told again.
                    self.before.append(&mut self.told);
                    self.processes.clear();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if pods != Pods::None
                && tell
                    .blocking_send(self.look(&pods, Instant::now()))
                    .is_err()
            {
                return;
            }
        }
    }

    fn look(&mut self, pods: &Pods, now: Instant) -> Found {
        let mut found = Found::default();
        let mut running = processes::below(&self.kubepods, |path| pods.contain(path));
        if running.remove(&0) {
            found.trouble = Some(NO_HOST_PID);
        }
        self.processes
            .retain(|process, _| running.contains(process));
        for process in running {
            self.look_at(process, now, &mut found);
        }
        let used: BTreeSet<FileId> = self
            .processes
            .values()
            .flat_map(|p| p.files.iter().copied())
            .collect();
        let mut told = std::mem::take(&mut self.before);
        told.extend(&self.told);
        found.gone = told.difference(&used).copied().collect();
        self.told.retain(|file| used.contains(file));
        if found.trouble.is_none() && self.processes.values().any(|p| p.forbidden) {
            found.trouble = Some(NO_PTRACE);
        }
        found
    }

    fn look_at(&mut self, process: u32, now: Instant, found: &mut Found) {
        let Some(started) = processes::started(process) else {
            return;
        };
        let known = self.processes.entry(process).or_insert(Process {
            started,
            next: now,
            wait: AGAIN,
            files: BTreeSet::new(),
            forbidden: false,
        });
        if known.started != started {
            (known.started, known.next, known.wait) = (started, now, AGAIN);
        }
        if known.next > now {
            return;
        }
        known.next = now + known.wait;
        known.wait = (known.wait * 2).min(AGAIN_AT_LAST);
        let looked =
            processes::root(process).and_then(|root| Ok((root, processes::code(process)?)));
        let (root, paths) = match looked {
            Ok(looked) => looked,
            Err(error) => {
                // Any other error is a process that has just ended.
                known.forbidden = error.kind() == io::ErrorKind::PermissionDenied;
                return;
            }
        };
        let mut files = BTreeSet::new();
        for path in paths {
            if let Ok(Some(library)) = self.look_into(&root, path, found) {
                files.insert(library.id);
                if self.told.insert(library.id) {
                    found.new.push(library);
                }
            }
        }
        if let Some(known) = self.processes.get_mut(&process) {
            known.files = files;
            known.forbidden = false;
        }
    }

    /// The library that a file is, if it is one.
    fn look_into(
        &mut self,
        root: &File,
        path: String,
        found: &mut Found,
    ) -> io::Result<Option<Library>> {
        let file = processes::open(root, &path)?;
        let Some(id) = FileId::of(&file)? else {
            return Ok(None);
        };
        if self.files.len() > MAX_FILES {
            self.files.clear();
        }
        let functions = match self.files.get(&id) {
            Some(functions) => functions.clone(),
            None => {
                let functions = functions(&file);
                if functions.is_empty() && speaks_tls(&path) {
                    found.without_symbols += 1;
                }
                let functions: Arc<[_]> = functions.into();
                self.files.insert(id, functions.clone());
                functions
            }
        };
        Ok((!functions.is_empty()).then(|| Library {
            id,
            file: Arc::new(file),
            path,
            functions: functions.to_vec(),
        }))
    }
}

/// The functions of a file, or none if plain text does not pass both ways through any of them.
fn functions(file: &File) -> Vec<(Function, u64)> {
    let Ok(elf) = Elf::read(file) else {
        return Vec::new();
    };
    let mut functions = go::functions(file, &elf);
    let codes = elf.functions(&FUNCTIONS.map(|(_, name)| name));
    let codes = codes.unwrap_or_default();
    let has = |index: usize| matches!(codes.get(index), Some(Some(_)));
    if (has(0) || has(1)) && (has(2) || has(3)) {
        let found = FUNCTIONS.iter().zip(codes);
        functions.extend(found.filter_map(|((of, _), code)| Some((*of, code?.offset))));
    }
    functions
}

/// Whether a file is a TLS library by its name.
fn speaks_tls(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    name.starts_with("libssl.") || name.starts_with("libssl-") || name.starts_with("libboringssl")
}
