//! Who asks, and what they may: by the kernel's word on the unix socket, by tokens over TCP.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hyper::Uri;
use hyper::header::{self, HeaderMap};
use serde::{Deserialize, Serialize};

use crate::http::Peer;
use crate::key::to_hex;
use crate::problem::{Kind, Problem};

/// How often the file of tokens is looked at, at most.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Tokens that one file holds at most.
const MAX_TOKENS: usize = 10_000;

/// What somebody may do; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Look.
    Read,
    /// Register services, and change those that the same registrant registered.
    Register,
    /// Everything.
    Operate,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Read => "read",
            Role::Register => "register",
            Role::Operate => "operate",
        })
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Who {
    /// `uid:1000`, `token:web`, or `anonymous`.
    pub(crate) name: String,
    pub(crate) role: Role,
    /// What the types that are registered begin with; none where any may be.
    pub(crate) prefixes: Option<Vec<String>>,
    /// The process on the unix socket.
    #[serde(skip)]
    pub(crate) pid: Option<i32>,
}

impl Who {
    pub(crate) fn need(&self, role: Role) -> Result<(), Problem> {
        if self.role >= role {
            return Ok(());
        }
        let kind = if self.name == ANONYMOUS {
            Kind::NoToken
        } else {
            Kind::Forbidden
        };
        Err(Problem::new(
            kind,
            format!(
                "{} may {}, and this needs the role {role}",
                self.name, self.role
            ),
        ))
    }

    /// Whether they may change what `registrant` has registered.
    pub(crate) fn need_own(&self, registrant: &str) -> Result<(), Problem> {
        if self.role == Role::Operate || (self.role == Role::Register && self.name == registrant) {
            return Ok(());
        }
        Err(Problem::new(
            Kind::Forbidden,
            format!(
                "it was registered by {registrant}, and {} may change only what is its own",
                self.name
            ),
        ))
    }

    pub(crate) fn need_type(&self, service_type: &str) -> Result<(), Problem> {
        match &self.prefixes {
            Some(prefixes)
                if !prefixes
                    .iter()
                    .any(|prefix| service_type.starts_with(prefix.as_str())) =>
            {
                Err(Problem::new(
                    Kind::Forbidden,
                    format!(
                        "{} may register types that begin with {}",
                        self.name,
                        prefixes.join(" or ")
                    ),
                ))
            }
            _ => Ok(()),
        }
    }
}

const ANONYMOUS: &str = "anonymous";

/// A line of the file of tokens: `NAME ROLE[:PREFIX,…] SHA256`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Token {
    name: String,
    role: Role,
    prefixes: Option<Vec<String>>,
    hash: String,
}

/// Reads the file of tokens; the error names the line.
fn parse_tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens: Vec<Token> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut words = line.split_whitespace();
        let (Some(name), Some(role), Some(hash), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(format!("line {number} is not NAME ROLE SHA256"));
        };
        let (role, prefixes) = match role.split_once(':') {
            Some((role, prefixes)) => {
                let prefixes: Vec<String> = prefixes.split(',').map(str::to_owned).collect();
                if prefixes.iter().any(String::is_empty) {
                    return Err(format!("line {number} has an empty prefix"));
                }
                (role, Some(prefixes))
            }
            None => (role, None),
        };
        let role = match role {
            "read" => Role::Read,
            "register" => Role::Register,
            "operate" => Role::Operate,
            _ => {
                return Err(format!(
                    "line {number}: a role is read, register or operate"
                ));
            }
        };
        if hash.len() != 64
            || !hash
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Err(format!(
                "line {number} has no SHA-256 of 64 hexadecimal digits"
            ));
        }
        if tokens.iter().any(|other| other.name == name) {
            return Err(format!("line {number}: the name {name} is there twice"));
        }
        if tokens.len() == MAX_TOKENS {
            return Err(format!("there are more than {MAX_TOKENS} tokens"));
        }
        tokens.push(Token {
            name: name.to_owned(),
            role,
            prefixes,
            hash: hash.to_owned(),
        });
    }
    Ok(tokens)
}

/// A new token, and the line of the file that lets whoever has it in.
pub fn make_token(name: &str, role: &str) -> Result<(String, String), String> {
    let secret: [u8; 32] = rand::random();
    let token = to_hex(&secret);
    let line = format!("{name} {role} {}", hash_of(&token));
    parse_tokens(&line)?;
    Ok((token, line))
}

fn hash_of(token: &str) -> String {
    to_hex(ring::digest::digest(&ring::digest::SHA256, token.as_bytes()).as_ref())
}

struct Tokens {
    looked_at: Instant,
    /// Of the file that was read, and its length: what tells a new one.
    stamp: Option<(SystemTime, u64)>,
    tokens: Vec<Token>,
}

/// What decides who may do what.
pub(crate) struct Auth {
    own_uid: u32,
    admin_group: String,
    file: Option<PathBuf>,
    tokens: Mutex<Tokens>,
    /// Names that the listener goes by, beside the addresses of this machine.
    hosts: Vec<String>,
}

impl Auth {
    /// # Errors
    ///
    /// The file of tokens cannot be read, or a line of it is wrong.
    pub(crate) fn new(
        admin_group: String,
        file: Option<PathBuf>,
        hosts: Vec<String>,
    ) -> Result<Self, String> {
        let auth = Auth {
            own_uid: rustix::process::getuid().as_raw(),
            admin_group,
            tokens: Mutex::new(Tokens {
                looked_at: Instant::now(),
                stamp: None,
                tokens: Vec::new(),
            }),
            file,
            hosts: hosts
                .into_iter()
                .map(|host| host.to_ascii_lowercase())
                .collect(),
        };
        if let Some(file) = &auth.file {
            let text = std::fs::read_to_string(file)
                .map_err(|error| format!("{}: {error}", file.display()))?;
            let tokens =
                parse_tokens(&text).map_err(|error| format!("{}: {error}", file.display()))?;
            let mut held = auth.lock();
            held.tokens = tokens;
            held.stamp = stamp(file);
        }
        Ok(auth)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Tokens> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is on the other side.
    ///
    /// # Errors
    ///
    /// A token that nobody has.
    pub(crate) fn who(&self, peer: &Peer, headers: &HeaderMap) -> Result<Who, Problem> {
        match peer {
            Peer::Unix { uid, gid, pid } => Ok(Who {
                name: format!("uid:{uid}"),
                role: if *uid == 0
                    || *uid == self.own_uid
                    || in_group(&self.admin_group, *uid, *gid)
                {
                    Role::Operate
                } else {
                    Role::Register
                },
                prefixes: None,
                pid: *pid,
            }),
            Peer::Tcp(_) => match headers.get(header::AUTHORIZATION) {
                None => Ok(Who {
                    name: ANONYMOUS.to_owned(),
                    role: Role::Read,
                    prefixes: None,
                    pid: None,
                }),
                Some(value) => value
                    .to_str()
                    .ok()
                    .and_then(|value| value.strip_prefix("Bearer "))
                    .and_then(|token| self.bearer(token.trim()))
                    .ok_or_else(|| Problem::new(Kind::NoToken, "nobody has this token")),
            },
        }
    }

    /// Rule: tokens are long and random, and what is compared are hashes: how long that takes tells nothing of a token.
    fn bearer(&self, token: &str) -> Option<Who> {
        self.look_again();
        let hash = hash_of(token);
        let tokens = self.lock();
        let token = tokens.tokens.iter().find(|token| token.hash == hash)?;
        Some(Who {
            name: format!("token:{}", token.name),
            role: token.role,
            prefixes: token.prefixes.clone(),
            pid: None,
        })
    }

    /// Reads the file again where it has changed. What is of no use leaves what was in use.
    fn look_again(&self) {
        let Some(file) = &self.file else {
            return;
        };
        let mut held = self.lock();
        if held.looked_at.elapsed() < LOOK_AGAIN {
            return;
        }
        held.looked_at = Instant::now();
        let now = stamp(file);
        if now == held.stamp {
            return;
        }
        held.stamp = now;
        match std::fs::read_to_string(file)
            .map_err(|error| error.to_string())
            .and_then(|text| parse_tokens(&text))
        {
            Ok(tokens) => held.tokens = tokens,
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "the tokens stay as they were")
            }
        }
    }

    /// Whether a request over TCP was meant for this listener, and was not made by a page of somebody else.
    ///
    /// Rule: a browser sends what pages of strangers tell it to, to loopback, too. By its name (`Host`) a request that came
    /// by way of a name of theirs (DNS rebinding) is known, by `Origin` and `Sec-Fetch-Site` one that a page made.
    pub(crate) fn check_browser(&self, headers: &HeaderMap, uri: &Uri) -> Result<(), Problem> {
        let host = headers
            .get(header::HOST)
            .map(|host| host.to_str().unwrap_or("?"))
            .or_else(|| uri.authority().map(|authority| authority.as_str()));
        let Some(host) = host else {
            return Err(Problem::bad("the header Host is missing"));
        };
        if headers.get_all(header::HOST).iter().count() > 1 {
            return Err(Problem::bad("there are several headers Host"));
        }
        if !self.is_ours(host) {
            return Err(Problem::new(
                Kind::Misdirected,
                "the header Host names another host than this listener",
            ));
        }
        if let Some(origin) = headers.get(header::ORIGIN) {
            let same = origin
                .to_str()
                .ok()
                .and_then(|origin| {
                    origin
                        .strip_prefix("http://")
                        .or(origin.strip_prefix("https://"))
                })
                .is_some_and(|origin| origin.eq_ignore_ascii_case(host));
            if !same {
                return Err(Problem::new(
                    Kind::Forbidden,
                    "a page of another origin made the request",
                ));
            }
        }
        match headers.get("sec-fetch-site").map(|site| site.as_bytes()) {
            None | Some(b"same-origin" | b"none") => Ok(()),
            Some(_) => Err(Problem::new(
                Kind::Forbidden,
                "a page of another site made the request",
            )),
        }
    }

    fn is_ours(&self, host: &str) -> bool {
        let name = match host.rsplit_once(':') {
            Some((name, port))
                if port.parse::<u16>().is_ok() && (!name.contains(':') || name.ends_with(']')) =>
            {
                name
            }
            _ => host,
        };
        let name = name.to_ascii_lowercase();
        if name == "localhost" || self.hosts.contains(&name) {
            return true;
        }
        let bare = name
            .strip_prefix('[')
            .and_then(|name| name.strip_suffix(']'))
            .unwrap_or(&name);
        // An address is not a name that somebody else could point here.
        bare.parse::<IpAddr>().is_ok()
    }
}

/// What tells one content of a file from another.
fn stamp(file: &std::path::Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// Whether somebody is in a group: as their own one, or by name.
fn in_group(group: &str, uid: u32, gid: u32) -> bool {
    let Ok(groups) = std::fs::read_to_string("/etc/group") else {
        return false;
    };
    let Ok(users) = std::fs::read_to_string("/etc/passwd") else {
        return false;
    };
    is_member(&groups, &users, group, uid, gid)
}

fn is_member(groups: &str, users: &str, group: &str, uid: u32, gid: u32) -> bool {
    let Some(line) = groups
        .lines()
        .find(|line| line.split(':').next() == Some(group))
    else {
        return false;
    };
    let mut fields = line.split(':').skip(2);
    if fields.next().and_then(|id| id.parse().ok()) == Some(gid) {
        return true;
    }
    let members: Vec<&str> = fields.next().unwrap_or_default().split(',').collect();
    users.lines().any(|line| {
        let mut fields = line.split(':');
        let name = fields.next().unwrap_or_default();
        let id = fields.nth(1).and_then(|id| id.parse().ok());
        id == Some(uid) && !name.is_empty() && members.contains(&name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(tokens: &str) -> (Auth, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("tokens");
        std::fs::write(&file, tokens).unwrap();
        let auth = Auth::new(
            "dispatch-admin".into(),
            Some(file),
            vec!["Agent.Example".into()],
        )
        .unwrap();
        (auth, directory)
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_token_has_its_role_and_its_prefixes_and_no_other_is_let_in() {
        let (web, web_line) = make_token("web", "register:web-,www").unwrap();
        let (root, root_line) = make_token("root", "operate").unwrap();
        let (auth, directory) = auth(&format!("# who\n\n{web_line}\n{root_line}\n"));
        let peer = Peer::Tcp("127.0.0.1:1".parse().unwrap());
        let who = |token: &str| {
            auth.who(
                &peer,
                &headers(&[("authorization", &format!("Bearer {token}"))]),
            )
        };
        let of_web = who(&web).unwrap();
        assert_eq!(
            (of_web.name.as_str(), of_web.role),
            ("token:web", Role::Register)
        );
        assert!(of_web.need_type("web-1").is_ok() && of_web.need_type("chat").is_err());
        assert!(of_web.need_own("token:web").is_ok() && of_web.need_own("token:root").is_err());
        assert!(of_web.need(Role::Operate).is_err());
        assert_eq!(who(&root).unwrap().role, Role::Operate);
        assert!(who(&root).unwrap().need_own("token:web").is_ok());
        for wrong in ["", "x", &hash_of(&web), &web[1..]] {
            assert_eq!(who(wrong).unwrap_err().kind, Kind::NoToken, "{wrong}");
        }
        let nobody = auth.who(&peer, &HeaderMap::new()).unwrap();
        assert_eq!(nobody.need(Role::Register).unwrap_err().kind, Kind::NoToken);
        assert!(nobody.need(Role::Read).is_ok());
        assert!(nobody.need_own(ANONYMOUS).is_err());

        // A file that changed is read again; one that is wrong changes nothing.
        let file = directory.path().join("tokens");
        let long_ago = || auth.lock().looked_at = Instant::now() - LOOK_AGAIN * 2;
        std::fs::write(&file, "nonsense\n").unwrap();
        long_ago();
        assert!(who(&web).is_ok());
        std::fs::write(&file, format!("{root_line}\n")).unwrap();
        long_ago();
        assert!(who(&web).is_err() && who(&root).is_ok());
    }

    #[test]
    fn a_wrong_line_of_the_tokens_is_named() {
        let hash = "0".repeat(64);
        for (line, part) in [
            ("web register", "line 1"),
            ("web boss 00", "a role is"),
            (&format!("web read {}", &hash[1..]), "SHA-256"),
            (&format!("web read: {hash}"), "empty prefix"),
            (&format!("web read {hash}\nweb read {hash}"), "line 2"),
        ] {
            let error = parse_tokens(line).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn on_the_socket_the_kernel_says_who_it_is() {
        let (auth, _directory) = auth("");
        let who = |uid| {
            let peer = Peer::Unix {
                uid,
                gid: uid,
                pid: None,
            };
            auth.who(&peer, &headers(&[("authorization", "Bearer x")]))
                .unwrap()
        };
        assert_eq!(who(0).role, Role::Operate);
        assert_eq!(who(auth.own_uid).role, Role::Operate);
        let other = who(4_000_000_000);
        assert_eq!(
            (other.name.as_str(), other.role),
            ("uid:4000000000", Role::Register)
        );
        assert!(other.need_own("uid:4000000000").is_ok() && other.need_own("uid:0").is_err());
    }

    #[test]
    fn members_of_the_group_are_found_by_their_group_and_by_name() {
        let groups = "root:x:0:\ndispatch-admin:x:900:ann,bob\n";
        let users =
            "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/:/bin/sh\ncid:x:1001:900::/:/bin/sh\n";
        let member = |uid, gid| is_member(groups, users, "dispatch-admin", uid, gid);
        assert!(member(1000, 1000) && member(1001, 900));
        assert!(!member(1002, 1002) && !member(0, 0));
        assert!(!is_member(groups, users, "other", 1000, 900));
    }

    #[test]
    fn a_name_that_somebody_pointed_here_and_a_page_of_somebody_else_are_refused() {
        let (auth, _directory) = auth("");
        let check = |pairs: &[(&'static str, &str)]| {
            auth.check_browser(&headers(pairs), &Uri::from_static("/v1/types"))
        };
        for host in [
            "127.0.0.1:7401",
            "localhost",
            "LOCALHOST:1",
            "[::1]:7401",
            "10.0.0.1",
            "agent.example:7401",
        ] {
            assert!(check(&[("host", host)]).is_ok(), "{host}");
        }
        for host in [
            "evil.example",
            "127.0.0.1.evil.example:7401",
            "localhost.evil",
            "agent.example.evil",
            "x:y",
            "",
        ] {
            assert_eq!(
                check(&[("host", host)]).unwrap_err().kind,
                Kind::Misdirected,
                "{host}"
            );
        }
        assert_eq!(check(&[]).unwrap_err().kind, Kind::BadRequest);
        assert!(check(&[("host", "localhost"), ("host", "localhost")]).is_err());
        let here = ("host", "localhost:7401");
        assert!(check(&[here, ("origin", "http://localhost:7401")]).is_ok());
        for origin in [
            "http://evil.example",
            "null",
            "http://localhost:1",
            "localhost:7401",
        ] {
            assert_eq!(
                check(&[here, ("origin", origin)]).unwrap_err().kind,
                Kind::Forbidden,
                "{origin}"
            );
        }
        for (site, fine) in [
            ("same-origin", true),
            ("none", true),
            ("cross-site", false),
            ("same-site", false),
        ] {
            assert_eq!(
                check(&[here, ("sec-fetch-site", site)]).is_ok(),
                fine,
                "{site}"
            );
        }
    }
}
