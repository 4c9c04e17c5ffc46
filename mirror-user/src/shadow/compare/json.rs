//! JSON as the comparison reads it: borrowed from the body, bounded, with whole integers.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

use super::not_a_number;
use super::pointer::Pointers;

/// Bodies larger than this, in bytes, are not parsed.
pub const MAX_PARSED: usize = 16 << 20;

/// Values in one body. A parsed value takes up to sixteen times its text, so that the text's length
/// alone does not bound the memory.
const MAX_VALUES: u32 = 2 << 20;

/// A JSON value (RFC 8259).
#[derive(Clone, Debug, PartialEq)]
pub enum Node<'a> {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number.
    Number(Number),
    /// A string.
    Text(Cow<'a, str>),
    /// An array.
    Array(Vec<Node<'a>>),
    /// An object, sorted by name; of members that have the same name the last one counts.
    Object(Vec<(Cow<'a, str>, Node<'a>)>),
}

/// A JSON number. Integers of up to 64 bits are kept whole; all else is a double.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// An integer from 0 to 2^64 - 1.
    Natural(u64),
    /// An integer from -2^63 to -1.
    Negative(i64),
    /// A number with a fraction or an exponent, or an integer beyond 64 bits.
    Float(f64),
}

/// Why a body is not a [`Node`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unparsed {
    /// More than [`MAX_PARSED`] bytes.
    #[error("larger than {} MiB", MAX_PARSED >> 20)]
    TooLarge,
    /// More values than are read.
    #[error("more than {MAX_VALUES} values")]
    TooManyValues,
    /// Not JSON, or nested deeper than 127 levels.
    #[error("not valid JSON ({0})")]
    Invalid(String),
    /// Not JSON with tensors behind it.
    #[error("not tensors: {0}")]
    Tensors(&'static str),
}

impl<'a> Node<'a> {
    /// Parses a whole body.
    pub fn parse(body: &'a [u8]) -> Result<Self, Unparsed> {
        Self::parse_within(body, &Self::budget())
    }

    /// How many values one body may have.
    pub(super) fn budget() -> Cell<u32> {
        Cell::new(MAX_VALUES)
    }

    /// Parses a value of a body that may have so many more.
    pub(super) fn parse_within(body: &'a [u8], left: &Cell<u32>) -> Result<Self, Unparsed> {
        if body.len() > MAX_PARSED {
            return Err(Unparsed::TooLarge);
        }
        // A byte order mark may be passed over (RFC 8259, section 8.1).
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        Self::read(body, left).or_else(|unparsed| {
            let quoted = not_a_number::quoted(body).ok_or(unparsed)?;
            Node::read(&quoted, left).map(not_a_number::unquoted)
        })
    }

    fn read(body: &'a [u8], left: &Cell<u32>) -> Result<Self, Unparsed> {
        let mut parser = serde_json::Deserializer::from_slice(body);
        let node = Seed(left)
            .deserialize(&mut parser)
            .and_then(|node| parser.end().map(|()| node));
        node.map_err(|error| match left.get() {
            0 => Unparsed::TooManyValues,
            _ => Unparsed::Invalid(error.to_string()),
        })
    }

    /// The number, where it is one.
    pub fn number(&self) -> Option<Number> {
        match self {
            Self::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// The member of this name, where it is an object that has one.
    pub(super) fn member_mut(&mut self, name: &str) -> Option<&mut Self> {
        match self {
            Self::Object(members) => members
                .iter_mut()
                .find_map(|(other, node)| (other == name).then_some(node)),
            _ => None,
        }
    }

    /// How many leaves there are: scalars and empty containers.
    pub fn leaves(&self) -> u64 {
        match self {
            Self::Array(items) => items.iter().map(Self::leaves).sum::<u64>().max(1),
            Self::Object(members) => members.iter().map(|(_, n)| n.leaves()).sum::<u64>().max(1),
            _ => 1,
        }
    }
}

impl Number {
    /// A whole number.
    pub(super) fn of(value: i64) -> Self {
        u64::try_from(value).map_or(Self::Negative(value), Self::Natural)
    }

    /// A number as people write it; neither an infinity nor what is no number.
    pub fn parse(text: &str) -> Option<Self> {
        let natural = text.parse().map(Self::Natural);
        let negative = || text.parse().map(Self::of);
        let float = || text.parse().ok().filter(|number: &f64| number.is_finite());
        let whole = natural.or_else(|_| negative()).ok();
        whole.or_else(|| float().map(Self::Float))
    }

    /// The nearest double.
    pub fn as_f64(self) -> f64 {
        match self {
            Self::Natural(n) => n as f64,
            Self::Negative(n) => n as f64,
            Self::Float(n) => n,
        }
    }

    /// Whether it was written as an integer of up to 64 bits.
    pub fn is_integer(self) -> bool {
        !matches!(self, Self::Float(_))
    }

    /// How far apart two numbers are; between whole numbers nothing is rounded before they are
    /// subtracted.
    pub fn distance(self, other: Self) -> f64 {
        if let (Self::Float(a), Self::Float(b)) = (self, other) {
            return (a - b).abs();
        }
        match (self.whole(), other.whole()) {
            (Some(a), Some(b)) => a.abs_diff(b) as f64,
            _ => (self.as_f64() - other.as_f64()).abs(),
        }
    }

    fn whole(self) -> Option<i128> {
        match self {
            Self::Natural(n) => Some(n.into()),
            Self::Negative(n) => Some(n.into()),
            Self::Float(n) => (n.trunc() == n && n.abs() < 1e30).then_some(n as i128),
        }
    }
}

#[derive(Clone, Copy)]
struct Seed<'b>(&'b Cell<u32>);

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Node<'de>;

    fn deserialize<D: serde::Deserializer<'de>>(self, parser: D) -> Result<Node<'de>, D::Error> {
        let left = self.0.get().saturating_sub(1);
        self.0.set(left);
        if left == 0 {
            return Err(D::Error::custom("too many values"));
        }
        parser.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Node<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Node<'de>, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node<'de>, E> {
        Ok(Node::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node<'de>, E> {
        Ok(Node::Number(Number::Natural(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node<'de>, E> {
        Ok(Node::Number(Number::of(value)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node<'de>, E> {
        Ok(Node::Number(Number::Float(value)))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Node<'de>, E> {
        Ok(Node::Text(Cow::Borrowed(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node<'de>, E> {
        Ok(Node::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node<'de>, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            array.push(item);
        }
        Ok(Node::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Node<'de>, A::Error> {
        let mut object: Vec<(Cow<'de, str>, Node<'de>)> = Vec::new();
        while let Some(key) = members.next_key_seed(Key)? {
            object.push((key, members.next_value_seed(self)?));
        }
        object.sort_by(|(a, _), (b, _)| a.cmp(b));
        // The sort is stable: of equal names the last one written stands last, and stays.
        object.dedup_by(|later, earlier| {
            let same = later.0 == earlier.0;
            if same {
                std::mem::swap(later, earlier);
            }
            same
        });
        Ok(Node::Object(object))
    }
}

struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;

    fn deserialize<D: serde::Deserializer<'de>>(self, parser: D) -> Result<Self::Value, D::Error> {
        parser.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member's name")
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(value.to_owned()))
    }
}

/// What stands where a value was redacted.
pub const REDACTED: &str = "[redacted]";

/// A value without what `redact` names in it.
#[derive(Clone, Copy, Debug)]
pub struct Redacted<'n, 'a> {
    /// The value.
    pub node: &'n Node<'a>,
    /// What is named from here on.
    pub redact: Option<&'n Pointers>,
}

impl Serialize for Redacted<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.redact.is_some_and(Pointers::is_named) {
            return serializer.serialize_str(REDACTED);
        }
        match self.node {
            Node::Null => serializer.serialize_unit(),
            Node::Bool(value) => serializer.serialize_bool(*value),
            Node::Number(Number::Natural(value)) => serializer.serialize_u64(*value),
            Node::Number(Number::Negative(value)) => serializer.serialize_i64(*value),
            Node::Number(Number::Float(value)) => serializer.serialize_f64(*value),
            Node::Text(value) => serializer.serialize_str(value),
            Node::Array(items) => {
                let mut array = serializer.serialize_seq(Some(items.len()))?;
                for (index, node) in items.iter().enumerate() {
                    let redact = self.redact.and_then(|redact| redact.index(index));
                    array.serialize_element(&Redacted { node, redact })?;
                }
                array.end()
            }
            Node::Object(members) => {
                let mut object = serializer.serialize_map(Some(members.len()))?;
                for (key, node) in members {
                    let redact = self.redact.and_then(|redact| redact.key(key));
                    object.serialize_entry(key, &Redacted { node, redact })?;
                }
                object.end()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, expected: &str) {
        let node = Node::parse(json.as_bytes()).unwrap();
        let redact = None;
        let written = serde_json::to_string(&Redacted {
            node: &node,
            redact,
        });
        assert_eq!(written.unwrap(), expected, "{json}");
    }

    #[test]
    fn values_survive() {
        check(
            r#" [1, -2, 0.5, "a\n", null, true, {}] "#,
            r#"[1,-2,0.5,"a\n",null,true,{}]"#,
        );
        check(
            "[18446744073709551615, -9223372036854775808]",
            "[18446744073709551615,-9223372036854775808]",
        );
    }

    #[test]
    fn a_byte_order_mark_is_passed_over() {
        check("\u{feff}[1]", "[1]");
    }

    #[test]
    fn members_are_sorted_and_the_last_of_a_name_counts() {
        check(r#"{"b":1,"a":2,"b":3,"b":4}"#, r#"{"a":2,"b":4}"#);
    }

    #[test]
    fn what_json_has_no_words_for_is_read() {
        let check = |json: &str, expected: &str| {
            let node = Node::parse(json.as_bytes()).unwrap();
            assert_eq!(format!("{node:?}"), expected, "{json}");
        };
        check("NaN", "Number(Float(NaN))");
        check(
            r#"["NaN, \\\"Infinity", -Infinity, Infinity]"#,
            r#"Array([Text("NaN, \\\"Infinity"), Number(Float(-inf)), Number(Float(inf))])"#,
        );
        check(r#"{"NaN":NaN}"#, r#"Object([("NaN", Number(Float(NaN)))])"#);
    }

    #[test]
    fn redaction_sees_through_escapes_and_repeated_names() {
        let node = Node::parse(br#"{"p\u0077":"one","pw":"two","list":[{"k":1},{"k":2}]}"#);
        let written = serde_json::to_string(&Redacted {
            node: &node.unwrap(),
            redact: Some(&Pointers::new(&["/pw", "/list/*/k"])),
        });
        let expected = r#"{"list":[{"k":"[redacted]"},{"k":"[redacted]"}],"pw":"[redacted]"}"#;
        assert_eq!(written.unwrap(), expected);
    }

    #[test]
    fn depth_and_number_of_values_are_bounded() {
        let deep = "[".repeat(1000);
        assert!(matches!(
            Node::parse(deep.as_bytes()),
            Err(Unparsed::Invalid(_))
        ));
        let many = format!("[{}0]", "0,".repeat(MAX_VALUES as usize));
        assert_eq!(Node::parse(many.as_bytes()), Err(Unparsed::TooManyValues));
        let large = vec![b' '; MAX_PARSED + 1];
        assert_eq!(Node::parse(&large), Err(Unparsed::TooLarge));
        assert!(matches!(Node::parse(b"nan"), Err(Unparsed::Invalid(_))));
        assert!(matches!(Node::parse(b"[NaN"), Err(Unparsed::Invalid(_))));
        assert!(matches!(Node::parse(b"[1] 2"), Err(Unparsed::Invalid(_))));
    }
}
