//! What netfilter's rules do to connections as they come in, read through nf_tables' netlink, which also
//! shows what iptables-nft has written.

mod rules;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

pub(crate) use self::rules::Redirection;
use self::rules::{Chain, Elements, Rule, attributes};
use super::Link;

/// `NFNL_SUBSYS_NFTABLES`, in a message's type.
const SUBSYSTEM: u16 = 10 << 8;
const GET_CHAIN: u16 = 4;
const GET_RULE: u16 = 7;
const GET_ELEMENTS: u16 = 13;
const GET_GENERATION: u16 = 16;

/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const ASK: u16 = 0x5;
/// `NLMSG_ERROR`.
const ERROR: u16 = 2;
/// `NLMSG_DONE`.
const DONE: u16 = 3;

/// `struct nlmsghdr`, in bytes.
const HEADER: usize = 16;
/// `struct nfgenmsg`, in bytes.
const GENERIC: usize = 4;
/// The kernel fills no larger datagrams.
const DATAGRAM: usize = 64 << 10;

/// What netfilter does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Netfilter {
    /// Where it leads connections on to somebody else, for certain.
    pub(crate) redirections: Vec<Redirection>,
    /// Why not all of it could be seen.
    pub(crate) hidden: Option<String>,
    /// Another one each time that rules change.
    generation: Option<u32>,
}

impl Netfilter {
    /// Reads the rules, unless they are as they were `before`. What cannot be read is said, and is no
    /// obstacle.
    pub(crate) fn read(before: Self) -> Self {
        let generation = generation().ok().flatten();
        if generation.is_some() && generation == before.generation {
            return before;
        }
        let (redirections, hidden) = match dump_all() {
            Ok(redirections) => (redirections, has_legacy().then(|| LEGACY.to_owned())),
            Err(error) => {
                let why = format!("netfilter's rules cannot be read: {error}");
                (Vec::new(), Some(why))
            }
        };
        Self {
            redirections,
            hidden,
            generation,
        }
    }

    /// What leads connections on that come in by these links to this address of this host; nothing = any.
    pub(crate) fn leads_on<'a>(
        &self,
        (ip, port): (Option<IpAddr>, u16),
        links: impl Iterator<Item = &'a Link> + Clone,
    ) -> Option<&Redirection> {
        let mut all = self.redirections.iter();
        all.find(|rule| rule.takes(ip, port) && links.clone().any(|link| rule.is_of(link)))
    }
}

const LEGACY: &str = "rules of iptables-legacy are loaded, which only that tool can read (`iptables-legacy -t nat -S`)";

fn generation() -> io::Result<Option<u32>> {
    let messages = ask(GET_GENERATION, ASK, 0, &[])?;
    let number = |message: &Vec<u8>| {
        let (_, all) = parts(message)?;
        Some(u32::from_be_bytes(*all.get(&1)?.first_chunk()?))
    };
    Ok(messages.iter().find_map(number))
}

/// The old kernel interface has a table that its own tool has filled, or looked at.
fn has_legacy() -> bool {
    let tables = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names");
    tables.is_ok_and(|tables| {
        tables
            .lines()
            .any(|table| table == "nat" || table == "mangle")
    })
}

fn dump_all() -> io::Result<Vec<Redirection>> {
    let chains = dump(GET_CHAIN, 0, &[])?;
    let chains: Vec<Chain> = chains.iter().filter_map(|m| Chain::of(m)).collect();
    if !chains.iter().any(Chain::sees_what_comes_in) {
        return Ok(Vec::new());
    }
    let rules = dump(GET_RULE, 0, &[])?;
    let rules: Vec<Rule> = rules.iter().filter_map(|m| Rule::of(m)).collect();
    let mut sets = HashMap::new();
    for (family, table, name) in rules.iter().flat_map(Rule::sets) {
        let attributes = [attribute(1, &table), attribute(2, &name)].concat();
        // A set that is gone by now is unknown.
        let messages = dump(GET_ELEMENTS, family, &attributes).unwrap_or_default();
        let elements = Elements::of(messages.iter().map(Vec::as_slice));
        sets.insert((family, table, name), elements);
    }
    Ok(rules::redirections(&chains, &rules, &sets))
}

/// A name as an attribute of this type.
fn attribute(kind: u16, name: &str) -> Vec<u8> {
    let length = 4 + name.len() + 1;
    let mut bytes = Vec::from((length as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(name.as_bytes());
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

/// Asks for all there is of a kind: messages from their `struct nfgenmsg` on.
fn dump(what: u16, family: u8, attributes: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    ask(what, DUMP, family, attributes)
}

fn ask(what: u16, flags: u16, family: u8, attributes: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    setsockopt(&netlink, sockopt::ReceiveTimeout, &TimeVal::new(1, 0))?;
    let length = (HEADER + GENERIC + attributes.len()) as u32;
    let mut request = Vec::from(length.to_ne_bytes());
    request.extend((SUBSYSTEM | what).to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([family, 0, 0, 0]);
    request.extend(attributes);
    send(netlink.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut messages = Vec::new();
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut datagram = &buffer[..length];
        if datagram.is_empty() {
            return Ok(messages);
        }
        while let Some(length) = datagram.first_chunk() {
            let length = u32::from_ne_bytes(*length) as usize;
            let whole = datagram.get(..length).unwrap_or_default();
            let Some((header, message)) = whole.split_first_chunk::<HEADER>() else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            match u16::from_ne_bytes([header[4], header[5]]) {
                DONE => return Ok(messages),
                ERROR => {
                    let code = message
                        .first_chunk()
                        .map_or(0, |code| i32::from_ne_bytes(*code));
                    if code == 0 {
                        return Ok(messages);
                    }
                    return Err(io::Error::from_raw_os_error(-code));
                }
                _ => messages.push(message.to_vec()),
            }
            datagram = datagram
                .get(length.next_multiple_of(4)..)
                .unwrap_or_default();
        }
    }
}

/// The family of a message, and its attributes.
fn parts(message: &[u8]) -> Option<(u8, HashMap<u16, &[u8]>)> {
    let (generic, rest) = message.split_first_chunk::<GENERIC>()?;
    Some((generic[0], attributes(rest).collect()))
}
