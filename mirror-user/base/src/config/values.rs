//! One parser for each kind of value: what is typed comes in, what will run goes out.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use globset::{Glob, GlobBuilder};
use ipnet::IpNet;
use mirror_api::{AgentAddress, NoAddress};
use mirror_rollout::Share;
use toml::de::DeValue;

use super::errors::Fault;
use super::table::nearest;
use super::{PortRange, ServiceAddress};
use crate::transport::keys::{NotAKey, PublicKey};

/// As a value was typed, for messages.
fn typed(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a section".to_owned(),
    }
}

/// What is typed in quotes.
///
/// # Errors
/// When it is something else, with this cure.
pub fn text<'v>(value: &'v DeValue<'_>, cure: &str) -> Result<&'v str, Fault> {
    value
        .as_str()
        .ok_or_else(|| Fault::new(format!("{} is not a string", typed(value)), cure))
}

/// A name that is fit for a path and for a metric's label.
pub fn name(value: &DeValue<'_>) -> Result<String, Fault> {
    let cure = "write 1 to 63 letters, digits, `.`, `_` or `-`, beginning with a letter or digit";
    let name = text(value, cure)?;
    if is_name(name) {
        return Ok(name.to_owned());
    }
    let what = format!("{name:?} is not fit for a path or a label");
    Err(Fault::new(what, cure))
}

/// Whether a text is fit for a path and a label: 1 to 63 letters, digits, `.`, `_` or `-`, beginning
/// with a letter or digit.
pub fn is_name(text: &str) -> bool {
    let fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    begins && text.len() <= 63 && text.chars().all(fit)
}

/// A service's name: `none` is the label of packets that belong to no service.
pub fn service_name(value: &DeValue<'_>) -> Result<String, Fault> {
    let name = name(value)?;
    if name == "none" {
        return Err(Fault::new(
            "\"none\" is how metrics label packets that belong to no service",
            "choose another name",
        ));
    }
    Ok(name)
}

/// A network interface's name: at most 15 bytes (IFNAMSIZ with its final zero).
pub fn interface(value: &DeValue<'_>) -> Result<String, Fault> {
    let cure = "write a name as `ip link` shows it, such as \"eth0\"";
    let name = text(value, cure)?;
    let odd = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    let what = match name {
        "" => "an empty string is not an interface's name".to_owned(),
        name if name.len() > 15 => {
            format!("{name:?} is longer than the 15 bytes that Linux allows")
        }
        name if matches!(name, "." | "..") || name.contains(odd) => {
            format!("{name:?} is not an interface's name")
        }
        name => return Ok(name.to_owned()),
    };
    Err(Fault::new(what, cure))
}

/// A whole path.
pub fn path(value: &DeValue<'_>) -> Result<PathBuf, Fault> {
    let cure = "write the whole path, beginning with /";
    let path = Path::new(text(value, cure)?);
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    let what = format!("{path:?} depends on the working directory");
    Err(Fault::new(what, cure))
}

/// A Unix socket's path: at most 107 bytes (unix(7)).
pub fn socket_path(value: &DeValue<'_>) -> Result<PathBuf, Fault> {
    let path = path(value)?;
    if path.as_os_str().len() <= 107 {
        return Ok(path);
    }
    let what = format!("{path:?} is longer than the 107 bytes that a Unix socket may have");
    Err(Fault::new(what, "choose a shorter path"))
}

fn socket_address(value: &DeValue<'_>, example: &str) -> Result<SocketAddr, Fault> {
    let cure = format!(
        "write an IP address and a port, such as \"{example}\" or \"[2001:db8::5]:{}\"; names are not resolved",
        example.rsplit(':').next().unwrap_or_default()
    );
    let typed = text(value, &cure)?;
    let address: SocketAddr = typed
        .parse()
        .map_err(|_| Fault::new(format!("{typed:?} is not an address with a port"), cure))?;
    if address.port() == 0 {
        return Err(Fault::new(
            "nothing can be reached at port 0",
            "write a port from 1 to 65535",
        ));
    }
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// Where something of ours listens; any address of the host will do.
pub fn listen(value: &DeValue<'_>) -> Result<SocketAddr, Fault> {
    let address = socket_address(value, "127.0.0.1:9469")?;
    refuse_multicast(address.ip())?;
    Ok(address)
}

/// Something that is dialled: one host.
pub fn remote(value: &DeValue<'_>) -> Result<SocketAddr, Fault> {
    let address = socket_address(value, "10.0.0.9:6181")?;
    refuse_multicast(address.ip())?;
    if address.ip().is_unspecified() {
        let what = format!("{} is no host's address", address.ip());
        return Err(Fault::new(
            what,
            "write the address of the host that is meant",
        ));
    }
    Ok(address)
}

fn refuse_multicast(ip: IpAddr) -> Result<(), Fault> {
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    if ip.is_multicast() || broadcast {
        let what = format!("{ip} is not one host's address, but a group's");
        return Err(Fault::new(what, "write the address of one host"));
    }
    Ok(())
}

/// What clients dial: `ADDRESS:PORT`, or `*:PORT` for any address of this host.
pub fn service_address(value: &DeValue<'_>) -> Result<ServiceAddress, Fault> {
    let any_port = value.as_str().and_then(|typed| typed.strip_prefix("*:"));
    if let Some(port) = any_port {
        let cure = "write a port from 1 to 65535, such as \"*:8000\"";
        return match port.parse() {
            Ok(0) | Err(_) => Err(Fault::new(format!("{port:?} is not a port"), cure)),
            Ok(port) => Ok(ServiceAddress { ip: None, port }),
        };
    }
    let address = socket_address(value, "10.0.0.5:8000")?;
    refuse_multicast(address.ip())?;
    if address.ip().is_unspecified() {
        let what = format!("clients cannot dial {}", address.ip());
        let cure = format!(
            "write \"*:{}\" for any address of this host",
            address.port()
        );
        return Err(Fault::new(what, cure));
    }
    Ok(ServiceAddress {
        ip: Some(address.ip()),
        port: address.port(),
    })
}

/// A range of ports: "61000-65535".
pub fn port_range(value: &DeValue<'_>) -> Result<PortRange, Fault> {
    let cure = "write the first and the last port, such as \"61000-65535\"";
    let typed = text(value, cure)?;
    let ports = typed.split_once('-').and_then(|(first, last)| {
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (1_024 <= first && first <= last).then_some(PortRange { first, last })
    });
    ports.ok_or_else(|| {
        Fault::new(
            format!("{typed:?} is no range of ports from 1024 to 65535"),
            cure,
        )
    })
}

/// An address of this host.
pub fn own_address(value: &DeValue<'_>) -> Result<IpAddr, Fault> {
    let cure = "write an address of this host, such as \"10.0.0.5\"";
    let typed = text(value, cure)?;
    let address = typed.parse::<IpAddr>().ok();
    let own = address.filter(|ip| !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast());
    own.ok_or_else(|| Fault::new(format!("{typed:?} is no address of one host"), cure))
}

/// A network, or one address.
pub fn network(value: &DeValue<'_>) -> Result<IpNet, Fault> {
    let cure = "write an address or a network, such as \"10.0.0.5/32\" or \"2001:db8::/64\"";
    let typed = text(value, cure)?;
    let network = typed.parse::<IpNet>().ok();
    network
        .or_else(|| typed.parse::<IpAddr>().ok().map(IpNet::from))
        .ok_or_else(|| Fault::new(format!("{typed:?} is not a network"), cure))
}

/// Where an agent listens: a name or an address, and a port.
pub fn agent(value: &DeValue<'_>) -> Result<AgentAddress, Fault> {
    let cure = "write a name or an address and a port, such as \"shadow.internal:6181\", \"10.0.0.9:6181\" or \"[2001:db8::9]:6181\"";
    let typed = text(value, cure)?;
    typed
        .parse()
        .map_err(|error: NoAddress| Fault::new(error.to_string(), cure))
}

/// What another host is known by.
pub fn public_key(value: &DeValue<'_>) -> Result<PublicKey, Fault> {
    let cure = "write what `modelmirror keys show` prints on that host, 44 characters";
    let typed = text(value, cure)?;
    let key: PublicKey = typed.parse().map_err(|error| match error {
        NotAKey::Private => Fault::new(
            error.to_string(),
            "make another with `modelmirror keys new --replace` there, and write what it prints",
        ),
        NotAKey::NoKey => Fault::new(format!("{typed:?} is no public key: {error}"), cure),
    })?;
    // As `config default` prints it, or as one fills in what one does not know yet.
    if typed.starts_with("PutHere") || key.0.iter().all(|byte| *byte == key.0[0]) {
        let what = format!("{typed:?} stands where a key belongs, and is nobody's");
        return Err(Fault::new(what, cure));
    }
    Ok(key)
}

/// A tap's name: those without a key are called by their address.
pub fn tap_name(value: &DeValue<'_>) -> Result<String, Fault> {
    let name = name(value)?;
    if name.parse::<IpAddr>().is_ok() {
        return Err(Fault::new(
            format!("{name:?} is an address, as taps without a key are called"),
            "write the node's name, such as \"node-1\"",
        ));
    }
    Ok(name)
}

/// What all rings may hold: from what one CPU needs to what one can afford.
pub fn ring(value: &DeValue<'_>) -> Result<u64, Fault> {
    let bytes = size(value)?;
    if (512 << 10..=64 << 30).contains(&bytes) {
        return Ok(bytes);
    }
    let what = format!("{bytes} bytes are not from 512 KiB to 64 GiB");
    Err(Fault::new(
        what,
        "write \"256MiB\", or as much as should be kept while the agent is away",
    ))
}

/// A number of CPUs, and parts of one.
pub fn cpus(value: &DeValue<'_>) -> Result<f64, Fault> {
    let cure = "write a number from 0.01 to 64, such as 0.5 for half a CPU";
    let cpus = number(value, cure)?;
    if (0.01..=64.0).contains(&cpus) {
        return Ok(cpus);
    }
    let what = format!("{} is no number of CPUs from 0.01 to 64", typed(value));
    Err(Fault::new(what, cure))
}

/// How long copies come together before they are sent: none at all wakes for each.
pub fn interval(value: &DeValue<'_>) -> Result<Duration, Fault> {
    let cure = "write 100 us to 1 s with its unit, in quotes: \"1ms\", \"500us\"";
    let typed = text(value, cure)?;
    let fit = Duration::from_micros(100)..=Duration::from_secs(1);
    humantime::parse_duration(typed)
        .ok()
        .filter(|duration| fit.contains(duration))
        .ok_or_else(|| Fault::new(format!("{typed:?} is not a span of 100 us to 1 s"), cure))
}

fn number(value: &DeValue<'_>, cure: &str) -> Result<f64, Fault> {
    let number = match value {
        DeValue::Float(float) => float.as_str().parse().ok(),
        DeValue::Integer(integer) if integer.radix() == 10 => integer.as_str().parse().ok(),
        _ => None,
    };
    number.ok_or_else(|| Fault::new(format!("{} is not a number", typed(value)), cure))
}

/// Any number that there is.
pub fn finite(value: &DeValue<'_>) -> Result<f64, Fault> {
    let cure = "write a number, without quotes";
    let found = number(value, cure)?;
    if found.is_finite() {
        return Ok(found);
    }
    Err(Fault::new(format!("{} is no limit", typed(value)), cure))
}

/// Yes or no.
pub fn flag(value: &DeValue<'_>) -> Result<bool, Fault> {
    match value {
        DeValue::Boolean(flag) => Ok(*flag),
        _ => {
            let what = format!("{} is neither true nor false", typed(value));
            Err(Fault::new(what, "write true or false, without quotes"))
        }
    }
}

/// Text that is handed on as it is.
pub fn words(value: &DeValue<'_>) -> Result<String, Fault> {
    let words = text(value, "write it in quotes")?;
    if words.trim().is_empty() {
        return Err(Fault::new("it is empty", "write what is meant"));
    }
    Ok(words.to_owned())
}

/// Something that is called over HTTP.
pub fn url(value: &DeValue<'_>) -> Result<String, Fault> {
    let cure = "write it as \"http://127.0.0.1:9000/path\", or with https://";
    let typed = text(value, cure)?;
    let uri = typed.parse::<hyper::Uri>().ok();
    let fit = uri.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()
    });
    if fit {
        return Ok(typed.to_owned());
    }
    // It may hold a key, and what is refused is logged.
    Err(Fault::new(
        "this is not an http:// or https:// address",
        cure,
    ))
}

/// A share, 0 to 1.
pub fn share(value: &DeValue<'_>) -> Result<f64, Fault> {
    let cure = "write a number from 0 to 1, such as 0.25 for a quarter";
    let share = number(value, cure)?;
    if (0.0..=1.0).contains(&share) {
        return Ok(share);
    }
    let percent = (1.0..=100.0).contains(&share);
    let what = format!("{} is not a share", typed(value));
    let meant = format!(
        "shares go from 0 to 1: for {} % write {}",
        typed(value),
        share / 100.0
    );
    Err(Fault::new(
        what,
        if percent { meant } else { cure.to_owned() },
    ))
}

/// A share in the steps that steering knows.
pub fn fine_share(value: &DeValue<'_>) -> Result<Share, Fault> {
    Share::try_from(share(value)?)
        .map_err(|cure| Fault::new(format!("{} is too fine", typed(value)), cure))
}

/// How far two numbers may differ: 0 or more.
pub fn tolerance(value: &DeValue<'_>) -> Result<f64, Fault> {
    let cure = "write a number of 0 or more, such as 1e-6";
    let tolerance = number(value, cure)?;
    if tolerance.is_finite() && tolerance >= 0.0 {
        return Ok(tolerance);
    }
    Err(Fault::new(
        format!("{} is not a tolerance", typed(value)),
        cure,
    ))
}

/// An integer within bounds.
pub fn integer(least: u64, most: u64) -> impl Fn(&DeValue<'_>) -> Result<u64, Fault> {
    move |value| {
        let parsed = match value {
            DeValue::Integer(integer) => {
                u64::from_str_radix(integer.as_str(), integer.radix()).ok()
            }
            _ => None,
        };
        parsed
            .filter(|number| (least..=most).contains(number))
            .ok_or_else(|| {
                let what = format!(
                    "{} is not a whole number from {least} to {most}",
                    typed(value)
                );
                Fault::new(
                    what,
                    format!("write one from {least} to {most}, without quotes"),
                )
            })
    }
}

/// A service's id: 24 bits, since it is the tunnel's VNI (RFC 8926), and not 0.
pub fn id(value: &DeValue<'_>) -> Result<u32, Fault> {
    let id = integer(1, 0xff_ffff)(value)?;
    Ok(id as u32)
}

/// A number of bytes: an integer, or a string with its unit.
pub fn size(value: &DeValue<'_>) -> Result<u64, Fault> {
    let bytes = match value {
        DeValue::String(typed) => typed.parse::<ByteSize>().ok().map(|size| size.as_u64()),
        DeValue::Integer(_) => integer(1, u64::MAX)(value).ok(),
        _ => None,
    };
    bytes.filter(|&bytes| bytes > 0).ok_or_else(|| {
        Fault::new(
            format!("{} is not a size", typed(value)),
            "write bytes as a number, or with a unit in quotes: 64MiB is 67108864, 64MB is 64000000",
        )
    })
}

/// A span of time above zero, as humantime reads it.
pub fn duration(value: &DeValue<'_>) -> Result<Duration, Fault> {
    let cure = "write a number with its unit, in quotes: \"5s\", \"250ms\", \"2m 30s\"";
    let typed = text(value, cure)?;
    humantime::parse_duration(typed)
        .ok()
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| Fault::new(format!("{typed:?} is not a span of time"), cure))
}

/// A span of time, or none.
pub fn span(value: &DeValue<'_>) -> Result<Duration, Fault> {
    let cure = "write a number with its unit, in quotes: \"5m\", \"72h\", \"0s\"";
    let typed = text(value, cure)?;
    humantime::parse_duration(typed)
        .map_err(|_| Fault::new(format!("{typed:?} is not a span of time"), cure))
}

/// The longest [`moment`]: what comes meanwhile has to find room in the receive buffer.
const MOMENT: Duration = Duration::from_millis(10);

/// A short span of time, or none.
pub fn moment(value: &DeValue<'_>) -> Result<Duration, Fault> {
    let cure = "write up to 10 ms with its unit, in quotes: \"500us\", \"0s\"";
    let typed = text(value, cure)?;
    humantime::parse_duration(typed)
        .ok()
        .filter(|&duration| duration <= MOMENT)
        .ok_or_else(|| Fault::new(format!("{typed:?} is not a span of up to 10 ms"), cure))
}

/// One word of a few.
pub fn choice<T: Copy + fmt::Debug>(
    choices: &'static [(&'static str, T)],
) -> impl Fn(&DeValue<'_>) -> Result<T, Fault> {
    move |value| {
        let words: Vec<&str> = choices.iter().map(|&(word, _)| word).collect();
        let one_of = format!("write one of \"{}\"", words.join("\", \""));
        let typed = text(value, &one_of)?;
        if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == typed) {
            return Ok(*choice);
        }
        let near = nearest(typed, &words).map(|near| format!("did you mean \"{near}\"? "));
        let cure = format!("{}{one_of}", near.unwrap_or_default());
        Err(Fault::new(format!("{typed:?} is not known"), cure))
    }
}

/// The name of a column, or of a member of JSON objects.
pub fn field(value: &DeValue<'_>) -> Result<String, Fault> {
    let cure = "write the name as it stands in the file";
    let typed = text(value, cure)?;
    if typed.is_empty() {
        return Err(Fault::new("a field has a name", cure));
    }
    Ok(typed.to_owned())
}

/// A JSON pointer (RFC 6901); `*` stands for every member of one level.
pub fn pointer(value: &DeValue<'_>) -> Result<String, Fault> {
    let cure = "write a JSON pointer (RFC 6901) such as \"/outputs/0/data\", `~1` for a slash and `~0` for a tilde in a name, \"\" for the whole document";
    let typed = text(value, cure)?;
    let begins = typed.is_empty() || typed.starts_with('/');
    let escaped = typed
        .split('~')
        .skip(1)
        .all(|rest| rest.starts_with(['0', '1']));
    if begins && escaped {
        return Ok(typed.to_owned());
    }
    Err(Fault::new(format!("{typed:?} is not a JSON pointer"), cure))
}

/// A request's method (RFC 9110, 9.1); names are told apart by case.
pub fn method(value: &DeValue<'_>) -> Result<String, Fault> {
    let cure = "write the method as clients send it, such as \"POST\"";
    let typed = text(value, cure)?;
    hyper::Method::from_bytes(typed.as_bytes())
        .map(|method| method.as_str().to_owned())
        .map_err(|_| Fault::new(format!("{typed:?} is not a method"), cure))
}

/// A pattern of paths.
pub fn path_pattern(value: &DeValue<'_>) -> Result<Glob, Fault> {
    let cure = "write a pattern of paths such as \"/v2/models/*/infer\": `*` within a segment, `**` for any number of them";
    let typed = text(value, cure)?;
    if !typed.starts_with(['/', '{', '*']) {
        let what = format!("{typed:?} does not begin as a path does, with a slash");
        return Err(Fault::new(what, cure));
    }
    if typed.contains('?') && typed.contains('=') {
        let what = format!("{typed:?} has a query, and paths are judged without");
        return Err(Fault::new(what, cure));
    }
    glob(typed).map_err(|error| {
        let what = format!("{typed:?} is not a pattern: {}", error.kind());
        Fault::new(what, cure)
    })
}

/// A pattern of paths: `*` and `?` within a segment, `**` for any number of them, `{a,b}` for either.
///
/// # Errors
/// What is wrong with it.
pub fn glob(text: &str) -> Result<Glob, globset::Error> {
    let mut builder = GlobBuilder::new(text);
    builder.literal_separator(true).empty_alternates(true);
    builder.build()
}

/// What a request asks for: a path, perhaps with a query (RFC 9112, 3.2.1).
pub fn request_path(value: &DeValue<'_>) -> Result<String, Fault> {
    let cure = "write the path that is asked for, such as \"/v2\"";
    let typed = text(value, cure)?;
    let is_path = typed.starts_with('/') && typed.parse::<hyper::http::uri::PathAndQuery>().is_ok();
    is_path
        .then(|| typed.to_owned())
        .ok_or_else(|| Fault::new(format!("{typed:?} is not a request's path"), cure))
}

/// A header's name (RFC 9110, 5.1), in lower case.
pub fn header(value: &DeValue<'_>) -> Result<String, Fault> {
    let cure = "write the header's name alone, such as \"authorization\"";
    let typed = text(value, cure)?;
    hyper::header::HeaderName::from_bytes(typed.as_bytes())
        .map(|name| name.as_str().to_owned())
        .map_err(|_| Fault::new(format!("{typed:?} is not a header's name"), cure))
}
