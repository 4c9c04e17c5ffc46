//! What rules come to for a new TCP connection to this host. Pure. A rule that asks for what is not known
//! here (the client, a mark, chance) leads nobody on for certain.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::{Link, parts};

/// Families of tables that see IP packets: NFPROTO_INET, IPV4, IPV6.
const FAMILIES: [u8; 3] = [1, 2, 10];
/// NF_INET_PRE_ROUTING.
const PRE_ROUTING: u32 = 0;
/// More jumps than any rules need.
const DEEPEST: usize = 16;
/// More than any host's rules, or they go round in circles.
const MOST_STEPS: usize = 200_000;

/// Attributes one after another: type and value.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk::<2>()?;
        let (kind, _) = rest.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        // Without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
        Some((u16::from_ne_bytes(*kind) & 0x3fff, value))
    })
}

fn nested<'a>(of: &HashMap<u16, &'a [u8]>, kind: u16) -> HashMap<u16, &'a [u8]> {
    attributes(of.get(&kind).copied().unwrap_or_default()).collect()
}

fn text(of: &HashMap<u16, &[u8]>, kind: u16) -> Option<String> {
    let bytes = of.get(&kind)?;
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    Some(String::from_utf8_lossy(bytes).into_owned())
}

fn number(of: &HashMap<u16, &[u8]>, kind: u16) -> Option<u32> {
    let bytes = of.get(&kind)?.first_chunk()?;
    Some(u32::from_be_bytes(*bytes))
}

/// A chain's or set's full name.
type Name = (u8, String, String);

/// A chain.
#[derive(Debug)]
pub(super) struct Chain {
    name: Name,
    hook: Option<u32>,
}

impl Chain {
    pub(super) fn of(message: &[u8]) -> Option<Self> {
        let (family, all) = parts(message)?;
        let hook = number(&nested(&all, 4), 1);
        let name = (family, text(&all, 1)?, text(&all, 3)?);
        Some(Self { name, hook })
    }

    pub(super) fn sees_what_comes_in(&self) -> bool {
        self.hook == Some(PRE_ROUTING) && FAMILIES.contains(&self.name.0)
    }
}

/// Keys of a set, and whether each ends a range that the one before it begins.
#[derive(Debug, Default)]
pub(super) struct Elements(Vec<(Vec<u8>, bool)>);

impl Elements {
    pub(super) fn of<'a>(messages: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut keys = Vec::new();
        for message in messages {
            let Some((_, all)) = parts(message) else {
                continue;
            };
            for (_, element) in attributes(all.get(&3).copied().unwrap_or_default()) {
                let element: HashMap<u16, &[u8]> = attributes(element).collect();
                let key = nested(&element, 1).get(&1).map(|key| key.to_vec());
                let is_end = number(&element, 3).is_some_and(|flags| flags & 1 != 0);
                keys.extend(key.map(|key| (key, is_end)));
            }
        }
        keys.sort();
        Self(keys)
    }

    /// As ports.
    fn ports(&self) -> Ports {
        let port = |key: &[u8]| {
            key.first_chunk()
                .map_or(0, |port| u16::from_be_bytes(*port))
        };
        let has_ranges = self.0.iter().any(|(_, is_end)| *is_end);
        let begins = self.0.iter().enumerate().filter(|(_, (_, is_end))| !is_end);
        begins
            .map(|(at, (key, _))| {
                let next = self.0.get(at + 1).filter(|_| has_ranges);
                let last = match next {
                    Some((key, _)) => port(key).saturating_sub(1),
                    None if has_ranges => u16::MAX,
                    None => port(key),
                };
                port(key)..=last
            })
            .collect()
    }
}

type Ports = Vec<RangeInclusive<u16>>;

fn both(one: &Ports, other: &Ports) -> Ports {
    let pairs = one
        .iter()
        .flat_map(|a| other.iter().map(move |b| (a.clone(), b.clone())));
    pairs
        .map(|(a, b)| *a.start().max(b.start())..=*a.end().min(b.end()))
        .filter(|range| !range.is_empty())
        .collect()
}

fn without(one: &Ports, taken: &Ports) -> Ports {
    let mut left = one.clone();
    for range in taken {
        let before = range.start().checked_sub(1).map(|end| 0..=end);
        let after = range.end().checked_add(1).map(|start| start..=u16::MAX);
        left = both(&left, &before.into_iter().chain(after).collect());
    }
    left
}

/// What a rule asks for of a packet, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Asks {
    ports: Ports,
    ip: Option<IpAddr>,
    interface: Option<Interface>,
    /// It may ask for more.
    is_vague: bool,
    /// No TCP packet is meant.
    is_foreign: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Interface {
    Name(String),
    Index(u32),
}

impl Asks {
    fn nothing() -> Self {
        Self {
            ports: std::iter::once(0..=u16::MAX).collect(),
            ip: None,
            interface: None,
            is_vague: false,
            is_foreign: false,
        }
    }

    fn and(&self, other: &Self) -> Self {
        let clash = |a: bool, b: bool, differ: bool| a && b && differ;
        let (ips, links) = ((&self.ip, &other.ip), (&self.interface, &other.interface));
        Self {
            ports: both(&self.ports, &other.ports),
            ip: self.ip.or(other.ip),
            interface: other.interface.clone().or_else(|| self.interface.clone()),
            is_vague: self.is_vague || other.is_vague,
            is_foreign: self.is_foreign
                || other.is_foreign
                || clash(ips.0.is_some(), ips.1.is_some(), ips.0 != ips.1)
                || clash(links.0.is_some(), links.1.is_some(), links.0 != links.1),
        }
    }

    fn is_met_by_all(&self) -> bool {
        *self == Self::nothing()
    }
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Does {
    Nothing,
    LeadsOn(&'static str),
    Jumps(String),
    /// Goes on elsewhere, or ends.
    Leaves,
}

/// One rule.
#[derive(Debug)]
pub(super) struct Rule {
    chain: Name,
    asks: Asks,
    /// Sets that the destination port must be in.
    sets: Vec<String>,
    does: Does,
}

/// What is in a register.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loaded {
    Port,
    Protocol,
    Address,
    Index,
    Name,
    Family,
    /// `fib daddr type`: local, for a service of this host.
    Local,
    Other,
}

impl Rule {
    pub(super) fn of(message: &[u8]) -> Option<Self> {
        let (family, all) = parts(message)?;
        let chain = (family, text(&all, 1)?, text(&all, 2)?);
        let mut rule = Self {
            chain,
            asks: Asks::nothing(),
            sets: Vec::new(),
            does: Does::Nothing,
        };
        let mut registers = HashMap::new();
        for (_, expression) in attributes(all.get(&4).copied().unwrap_or_default()) {
            let expression: HashMap<u16, &[u8]> = attributes(expression).collect();
            let name = text(&expression, 1)?;
            rule.take(&name, &nested(&expression, 2), &mut registers);
        }
        Some(rule)
    }

    /// The full names of sets that must be known.
    pub(super) fn sets(&self) -> impl Iterator<Item = Name> {
        let (family, table, _) = &self.chain;
        self.sets
            .iter()
            .map(|set| (*family, table.clone(), set.clone()))
    }

    fn take(&mut self, name: &str, of: &HashMap<u16, &[u8]>, registers: &mut HashMap<u32, Loaded>) {
        let register = |kind| number(of, kind).unwrap_or_default();
        match name {
            "meta" if of.contains_key(&1) => {
                let loaded = match register(2) {
                    4 => Loaded::Index,
                    6 => Loaded::Name,
                    15 => Loaded::Family,
                    16 => Loaded::Protocol,
                    _ => Loaded::Other,
                };
                registers.insert(register(1), loaded);
            }
            "payload" => {
                let loaded = match (register(2), register(3), register(4)) {
                    (2, 2, 2) => Loaded::Port,
                    (1, 9, 1) => Loaded::Protocol,
                    (1, 16, 4) | (1, 24, 16) => Loaded::Address,
                    _ => Loaded::Other,
                };
                registers.insert(register(1), loaded);
            }
            "fib" => {
                // NFT_FIB_RESULT_ADDRTYPE of NFTA_FIB_F_DADDR.
                let is_local = register(2) == 3 && register(3) & 2 != 0;
                let loaded = if is_local {
                    Loaded::Local
                } else {
                    Loaded::Other
                };
                registers.insert(register(1), loaded);
            }
            "bitwise" | "byteorder" | "ct" | "hash" | "numgen" | "socket" | "rt" => {
                let kind = if name == "ct" { 1 } else { 2 };
                registers.insert(register(kind), Loaded::Other);
                registers.insert(register(1), Loaded::Other);
            }
            "cmp" => {
                let value = nested(of, 3).get(&1).copied().unwrap_or_default();
                self.compare(registers.get(&register(1)), register(2), value);
            }
            "range" if registers.get(&register(1)) == Some(&Loaded::Port) && register(2) == 0 => {
                let end = |kind| {
                    let value = nested(of, kind).get(&1).copied().unwrap_or_default();
                    value
                        .first_chunk()
                        .map_or(0, |port| u16::from_be_bytes(*port))
                };
                let range = std::iter::once(end(3)..=end(4)).collect();
                self.asks.ports = both(&self.asks.ports, &range);
            }
            "lookup" => {
                let is_plain = !of.contains_key(&3) && register(5) == 0;
                match (registers.get(&register(2)), text(of, 1)) {
                    (Some(Loaded::Port), Some(set)) if is_plain => self.sets.push(set),
                    _ => self.asks.is_vague = true,
                }
            }
            "match" => self.ask_old(&text(of, 1).unwrap_or_default(), of.get(&3)),
            "target" => match text(of, 1).as_deref() {
                Some("DNAT") => self.does = Does::LeadsOn("DNAT"),
                Some("REDIRECT") => self.does = Does::LeadsOn("REDIRECT"),
                Some("TPROXY") => self.does = Does::LeadsOn("TPROXY"),
                _ => {}
            },
            "nat" if register(1) == 1 => self.does = Does::LeadsOn("dnat"),
            "redir" => self.does = Does::LeadsOn("redirect"),
            "tproxy" => self.does = Does::LeadsOn("tproxy"),
            "immediate" => self.decide(&nested(&nested(of, 2), 2)),
            "limit" | "quota" | "connlimit" | "range" => self.asks.is_vague = true,
            _ => {}
        }
    }

    fn decide(&mut self, verdict: &HashMap<u16, &[u8]>) {
        let Some(code) = number(verdict, 1) else {
            return;
        };
        // NFT_JUMP and NFT_GOTO; NFT_CONTINUE is -1.
        self.does = match (code.cast_signed(), text(verdict, 2)) {
            (-3 | -4, Some(chain)) => Does::Jumps(chain),
            (-1, _) => Does::Nothing,
            _ => Does::Leaves,
        };
    }

    fn compare(&mut self, loaded: Option<&Loaded>, how: u32, value: &[u8]) {
        let asks = &mut self.asks;
        let is_equal = how == 0;
        match loaded {
            Some(Loaded::Port) => {
                let port = value
                    .first_chunk()
                    .map_or(0, |port| u16::from_be_bytes(*port));
                let one: Ports = std::iter::once(port..=port).collect();
                asks.ports = match how {
                    0 => both(&asks.ports, &one),
                    1 => without(&asks.ports, &one),
                    2 | 3 => {
                        let end = if how == 2 {
                            port.saturating_sub(1)
                        } else {
                            port
                        };
                        both(&asks.ports, &std::iter::once(0..=end).collect())
                    }
                    _ => {
                        let start = if how == 4 {
                            port.saturating_add(1)
                        } else {
                            port
                        };
                        both(&asks.ports, &std::iter::once(start..=u16::MAX).collect())
                    }
                };
            }
            Some(Loaded::Protocol) => asks.is_foreign |= (value.first() == Some(&6)) != is_equal,
            Some(Loaded::Address) => match ip(value) {
                Some(ip) if is_equal => asks.ip = Some(ip),
                _ => asks.is_vague = true,
            },
            Some(Loaded::Index) if is_equal => {
                let index = value
                    .first_chunk()
                    .map_or(0, |index| u32::from_ne_bytes(*index));
                asks.interface = Some(Interface::Index(index));
            }
            Some(Loaded::Name) if is_equal && value.contains(&0) => {
                let name = value.split(|byte| *byte == 0).next().unwrap_or_default();
                let name = String::from_utf8_lossy(name).into_owned();
                asks.interface = Some(Interface::Name(name));
            }
            // Of one family or the other there are clients.
            Some(Loaded::Family) => {}
            // Another interface than one that is not tapped.
            Some(Loaded::Index | Loaded::Name) if how == 1 => {}
            Some(Loaded::Local) if is_equal && value.first() == Some(&2) => {}
            _ => asks.is_vague = true,
        }
    }

    /// What iptables asks for by an extension of its own.
    fn ask_old(&mut self, name: &str, info: Option<&&[u8]>) {
        match (name, info) {
            // `struct xt_tcp`: the destination ports come after the source ports; inversions at its end.
            ("tcp", Some(info)) if info.len() >= 12 => {
                let port = |at: usize| u16::from_ne_bytes([info[at], info[at + 1]]);
                let range: Ports = std::iter::once(port(4)..=port(6)).collect();
                self.asks.ports = match info[11] {
                    0 => both(&self.asks.ports, &range),
                    2 => without(&self.asks.ports, &range),
                    _ => Vec::new(),
                };
            }
            ("udp", _) => self.asks.is_foreign = true,
            ("comment", _) => {}
            // As Docker and Kubernetes ask for LOCAL.
            ("addrtype", _) => {}
            _ => self.asks.is_vague = true,
        }
    }
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(value).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(value).ok()?)),
        _ => None,
    }
}

/// Where connections are led on to somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Redirection {
    /// The table and the chain, and what is done there.
    pub(crate) rule: String,
    asks: Asks,
}

impl Redirection {
    /// Whether it takes a connection to this address of this host; nothing = any.
    pub(super) fn takes(&self, ip: Option<IpAddr>, port: u16) -> bool {
        let is_its = |own| ip.is_none_or(|ip| ip == own);
        self.asks.ports.iter().any(|ports| ports.contains(&port)) && self.asks.ip.is_none_or(is_its)
    }

    /// Whether it takes what comes in by this link.
    pub(super) fn is_of(&self, link: &Link) -> bool {
        match &self.asks.interface {
            None => true,
            Some(Interface::Name(name)) => *name == link.name,
            Some(Interface::Index(index)) => *index == link.index,
        }
    }
}

/// Walks through what comes in.
pub(super) fn redirections(
    chains: &[Chain],
    rules: &[Rule],
    sets: &HashMap<Name, Elements>,
) -> Vec<Redirection> {
    let mut by_chain: HashMap<&Name, Vec<&Rule>> = HashMap::new();
    for rule in rules {
        by_chain.entry(&rule.chain).or_default().push(rule);
    }
    let mut walk = Walk {
        by_chain,
        sets,
        found: Vec::new(),
        steps: 0,
    };
    for chain in chains.iter().filter(|chain| chain.sees_what_comes_in()) {
        walk.through(&chain.name, Asks::nothing(), 0);
    }
    walk.found
}

struct Walk<'a> {
    by_chain: HashMap<&'a Name, Vec<&'a Rule>>,
    sets: &'a HashMap<Name, Elements>,
    found: Vec<Redirection>,
    steps: usize,
}

impl Walk<'_> {
    /// `asked` is what a packet is that comes here.
    fn through(&mut self, chain: &Name, mut asked: Asks, depth: usize) {
        let rules = self.by_chain.get(chain).cloned().unwrap_or_default();
        for rule in rules {
            self.steps += 1;
            if depth > DEEPEST || self.steps > MOST_STEPS || asked.ports.is_empty() {
                return;
            }
            let mut asks = asked.and(&rule.asks);
            for set in rule.sets() {
                let ports = self.sets.get(&set).map(Elements::ports);
                asks.ports = both(&asks.ports, &ports.unwrap_or_default());
            }
            if asks.is_foreign || asks.ports.is_empty() {
                continue;
            }
            match &rule.does {
                Does::Nothing => {}
                Does::LeadsOn(verb) => {
                    if !asks.is_vague {
                        let (_, table, name) = chain;
                        let rule = format!("{table} {name}: {verb}");
                        self.found.push(Redirection { rule, asks });
                    }
                }
                Does::Jumps(to) => {
                    let (family, table, _) = chain;
                    let to = (*family, table.clone(), to.clone());
                    self.through(&to, asks, depth + 1);
                }
                Does::Leaves if rule.asks.is_met_by_all() && rule.sets.is_empty() => return,
                Does::Leaves if asks.ip.is_none() && asks.interface.is_none() && !asks.is_vague => {
                    asked.ports = without(&asked.ports, &asks.ports);
                }
                Does::Leaves => asked.is_vague = true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(chain: &str, ports: &[RangeInclusive<u16>], does: Does) -> Rule {
        let mut asks = Asks::nothing();
        if !ports.is_empty() {
            asks.ports = ports.to_vec();
        }
        Rule {
            chain: (2, "nat".to_owned(), chain.to_owned()),
            asks,
            sets: Vec::new(),
            does,
        }
    }

    /// Rules, and the ports of which connections are led on for certain.
    #[track_caller]
    fn check(rules: &[Rule], taken: &[u16], left: &[u16]) {
        let chains = [Chain {
            name: (2, "nat".to_owned(), "in".to_owned()),
            hook: Some(PRE_ROUTING),
        }];
        let found = redirections(&chains, rules, &HashMap::new());
        let takes = |port: &u16| found.iter().any(|rule| rule.takes(None, *port));
        assert!(taken.iter().all(takes), "{found:?}");
        assert!(!left.iter().any(takes), "{found:?}");
    }

    #[test]
    fn conditions_add_up_along_the_way() {
        let jump = |to: &str| Does::Jumps(to.to_owned());
        let dnat = || Does::LeadsOn("dnat");
        let on_the_way = [
            rule("in", &[80..=90], jump("svc")),
            rule("svc", &[85..=100], dnat()),
            rule("elsewhere", &[], dnat()),
        ];
        check(&on_the_way, &[85, 90], &[80, 95]);
        let exempt = [
            rule("in", &[15_008..=15_008], Does::Leaves),
            rule("in", &[], dnat()),
        ];
        check(&exempt, &[1, 8_000], &[15_008]);
        let ended = [rule("in", &[], Does::Leaves), rule("in", &[], dnat())];
        check(&ended, &[], &[8_000]);
        let circle = [rule("in", &[], jump("in"))];
        check(&circle, &[], &[8_000]);
        let mut vague = rule("in", &[80..=80], dnat());
        vague.asks.is_vague = true;
        check(&[vague], &[], &[80]);
    }
}
