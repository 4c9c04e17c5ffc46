//! `NaN`, `Infinity` and `-Infinity`, for which JSON has no words, and which Python and others write
//! all the same. They are quoted with a mark, and told by it when the rest was parsed.

use std::borrow::Cow;

use super::json::{Node, Number};

const WORDS: [(&[u8], &[u8], &str, f64); 3] = [
    (b"NaN", br#""\u0001NaN""#, "\u{1}NaN", f64::NAN),
    (
        b"Infinity",
        br#""\u0001Infinity""#,
        "\u{1}Infinity",
        f64::INFINITY,
    ),
    (
        b"-Infinity",
        br#""\u0001-Infinity""#,
        "\u{1}-Infinity",
        f64::NEG_INFINITY,
    ),
];

/// Whether such a word may be in it.
pub(super) fn has_words(body: &[u8]) -> bool {
    let mut rest = body.iter().enumerate();
    rest.any(|(at, first)| {
        matches!(first, b'N' | b'I') && WORDS.iter().any(|(word, ..)| body[at..].starts_with(word))
    })
}

/// The body with such words quoted, where it has any.
pub(super) fn quoted(body: &[u8]) -> Option<Vec<u8>> {
    let mut quoted = Vec::new();
    let (mut rest, mut in_string) = (body, false);
    while let [first, behind @ ..] = rest {
        let word = WORDS.iter().find(|(word, ..)| rest.starts_with(word));
        let taken = match (word, first) {
            (Some((word, quotes, ..)), _) if !in_string => {
                quoted.extend_from_slice(quotes);
                rest = &rest[word.len()..];
                continue;
            }
            (_, b'\\') if in_string && !behind.is_empty() => 2,
            (_, b'"') => {
                in_string = !in_string;
                1
            }
            _ => 1,
        };
        quoted.extend_from_slice(&rest[..taken]);
        rest = &rest[taken..];
    }
    (quoted.len() > body.len()).then_some(quoted)
}

/// The value with the marked words as numbers.
pub(super) fn unquoted(node: Node<'_>) -> Node<'static> {
    match node {
        Node::Null => Node::Null,
        Node::Bool(value) => Node::Bool(value),
        Node::Number(number) => Node::Number(number),
        Node::Text(text) => {
            let word = WORDS.iter().find(|(.., marked, _)| text == *marked);
            word.map_or_else(
                || Node::Text(Cow::Owned(text.into_owned())),
                |(.., number)| Node::Number(Number::Float(*number)),
            )
        }
        Node::Array(items) => Node::Array(items.into_iter().map(unquoted).collect()),
        Node::Object(members) => Node::Object(
            members
                .into_iter()
                .map(|(key, node)| (Cow::Owned(key.into_owned()), unquoted(node)))
                .collect(),
        ),
    }
}
