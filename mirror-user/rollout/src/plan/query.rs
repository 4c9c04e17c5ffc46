//! A gate's query, and what is filled in.

/// What `$arm`, `$version` and `$service` stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked<'a> {
    /// `stable` or `canary`.
    pub arm: &'a str,
    /// The version's name.
    pub version: &'a str,
    /// The service's name.
    pub service: &'a str,
}

/// The query for one version: values are escaped as within quotes
/// ([PromQL, string literals](https://prometheus.io/docs/prometheus/latest/querying/basics/#string-literals)).
pub fn fill(query: &str, asked: &Asked<'_>) -> String {
    let value = |name| match name {
        "arm" => Some(asked.arm),
        "version" => Some(asked.version),
        "service" => Some(asked.service),
        _ => None,
    };
    let piece = |piece| match piece {
        Piece::Text(text) => text.to_owned(),
        Piece::Variable { name, typed } => value(name).map_or_else(|| typed.to_owned(), escaped),
    };
    pieces(query).into_iter().map(piece).collect()
}

/// Whether a query asks for one version.
pub(super) fn by_version(query: &str) -> bool {
    variables(query).any(|name| matches!(name, "arm" | "version"))
}

/// A variable that is not one of ours.
pub(super) fn foreign(query: &str) -> Option<String> {
    let mut names = variables(query);
    let foreign = names.find(|name| !matches!(*name, "arm" | "version" | "service"));
    foreign.map(str::to_owned)
}

fn variables(query: &str) -> impl Iterator<Item = &str> {
    pieces(query).into_iter().filter_map(|piece| match piece {
        Piece::Variable { name, .. } => Some(name),
        Piece::Text(_) => None,
    })
}

#[derive(Debug, PartialEq)]
enum Piece<'q> {
    Text(&'q str),
    /// `$name` or `${name}`, and how it was typed.
    Variable {
        name: &'q str,
        typed: &'q str,
    },
}

/// Takes a query apart. A `$` before anything but a name is text: it ends a regular expression.
fn pieces(query: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = query;
    while let Some(at) = rest.find('$') {
        let (before, from) = rest.split_at(at);
        pieces.push(Piece::Text(before));
        let end = match variable(&from[1..]) {
            Some((name, length)) => {
                let typed = &from[..=length];
                pieces.push(Piece::Variable { name, typed });
                length + 1
            }
            None => {
                pieces.push(Piece::Text(&from[..1]));
                1
            }
        };
        rest = &from[end..];
    }
    pieces.push(Piece::Text(rest));
    pieces
}

/// The name at the beginning of what follows a `$`, and how many bytes it takes there.
fn variable(after: &str) -> Option<(&str, usize)> {
    let word = |text: &str| {
        let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        begins.then(|| text.find(|c| !part(c)).unwrap_or(text.len()))
    };
    match after.strip_prefix('{') {
        Some(inside) => {
            let end = word(inside)?;
            inside[end..]
                .starts_with('}')
                .then(|| (&inside[..end], end + 2))
        }
        None => word(after).map(|end| (&after[..end], end)),
    }
}

fn escaped(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for character in value.chars() {
        match character {
            '\\' | '"' | '\'' => escaped.extend(['\\', character]),
            '\n' => escaped.push_str("\\n"),
            '`' => escaped.push_str("\\x60"),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(query: &str, expected: &str) {
        let asked = Asked {
            arm: "canary",
            version: "v1\"3",
            service: "sentiment",
        };
        assert_eq!(fill(query, &asked), expected);
    }

    #[test]
    fn variables_are_filled_in_as_within_quotes() {
        check("up", "up");
        check("", "");
        check("a{arm=\"$arm\"}", "a{arm=\"canary\"}");
        check("a{v=\"$version\"}", "a{v=\"v1\\\"3\"}");
        check("$arm$service", "canarysentiment");
        check("${arm}x", "canaryx");
        check("a{b=~\"x$\"}", "a{b=~\"x$\"}");
        check("a{b=~\"x$|y${2}\"}$", "a{b=~\"x$|y${2}\"}$");
        check("$armed ${arm", "$armed ${arm");
    }

    #[test]
    fn nothing_in_a_value_ends_the_string() {
        assert_eq!(escaped("a\\\"'\n`b"), "a\\\\\\\"\\'\\n\\x60b");
    }

    #[test]
    fn other_variables_are_found() {
        let check = |query, expected: Option<&str>| assert_eq!(foreign(query).as_deref(), expected);
        check("rate(a[$__rate_interval])", Some("__rate_interval"));
        check("a{b=\"${tenant}\"}", Some("tenant"));
        check("a{b=~\"c$\", d=\"$arm\"} / $service", None);
        assert!(by_version("a{v=\"$version\"}") && by_version("${arm}"));
        assert!(!by_version("a{s=\"$service\"}"));
    }
}
