//! JSON as the comparison reads it: borrowed from the body, bounded, with whole integers.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

use super::not_a_number;
use super::pointer::Pointers;
use super::room::{Budget, MAX_VALUES, Room};

/// Bodies larger than this, in bytes, are not parsed.
pub const MAX_PARSED: usize = 16 << 20;

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
    /// The agent's memory has no room for its values.
    #[error("no memory to read it")]
    Memory,
    /// Not JSON with tensors behind it.
    #[error("not tensors: {0}")]
    Tensors(&'static str),
}

impl<'a> Node<'a> {
    /// Parses a whole body. What that takes stays taken of `room`.
    pub fn parse(body: &'a [u8], room: &Room) -> Result<Self, Unparsed> {
        Self::parse_within(body, &Budget::new(room))
    }

    /// Parses a value of a body that may have so many more.
    pub(super) fn parse_within(body: &'a [u8], budget: &Budget<'_>) -> Result<Self, Unparsed> {
        if body.len() > MAX_PARSED {
            return Err(Unparsed::TooLarge);
        }
        // A byte order mark may be passed over (RFC 8259, section 8.1).
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        let (room, before) = (budget.room(), budget.room().taken());
        Self::read(body, budget).or_else(|unparsed| {
            if room.is_short() || !not_a_number::has_words(body) {
                return Err(unparsed);
            }
            room.back_to(before);
            // The words with their marks are four times as long at most.
            budget.take(4 * body.len())?;
            let quoted = not_a_number::quoted(body).ok_or(unparsed)?;
            // Texts are copied, each into a piece of its own.
            let quotes = quoted.iter().filter(|&&byte| byte == b'"').count();
            budget.take(quoted.len() + quotes * TEXT)?;
            Node::read(&quoted, budget).map(not_a_number::unquoted)
        })
    }

    fn read(body: &'a [u8], budget: &Budget<'_>) -> Result<Self, Unparsed> {
        if body.contains(&b'\\') {
            // The parser puts a text with escapes together before it hands it on.
            budget.take(body.len())?;
        }
        let mut parser = serde_json::Deserializer::from_slice(body);
        let node = Seed(budget)
            .deserialize(&mut parser)
            .and_then(|node| parser.end().map(|()| node));
        node.map_err(|error| match budget.is_spent() {
            _ if budget.room().is_short() => Unparsed::Memory,
            true => Unparsed::TooManyValues,
            false => Unparsed::Invalid(error.to_string()),
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
    pub fn member_mut(&mut self, name: &str) -> Option<&mut Self> {
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
    pub fn of(value: i64) -> Self {
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

/// Half of the smallest piece that holds a text.
const TEXT: usize = 16;

#[derive(Clone, Copy)]
struct Seed<'b>(&'b Budget<'b>);

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Node<'de>;

    fn deserialize<D: serde::Deserializer<'de>>(self, parser: D) -> Result<Node<'de>, D::Error> {
        self.0.spend(1).map_err(D::Error::custom)?;
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

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Node<'de>, E> {
        self.0.take(value.len()).map_err(E::custom)?;
        Ok(Node::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node<'de>, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            self.0.push(&mut array, item).map_err(A::Error::custom)?;
        }
        Ok(Node::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Node<'de>, A::Error> {
        let mut object: Vec<(Cow<'de, str>, Node<'de>)> = Vec::new();
        while let Some(key) = members.next_key_seed(Key(self.0))? {
            let member = (key, members.next_value_seed(self)?);
            self.0.push(&mut object, member).map_err(A::Error::custom)?;
        }
        let bytes = size_of_val(object.as_slice());
        let sort = || object.sort_by(|(a, _), (b, _)| a.cmp(b));
        // As much as it sorts: it puts aside what it moves.
        self.0.while_taking(bytes, sort).map_err(A::Error::custom)?;
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

struct Key<'b>(&'b Budget<'b>);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Cow<'de, str>;

    fn deserialize<D: serde::Deserializer<'de>>(self, parser: D) -> Result<Self::Value, D::Error> {
        parser.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key<'_> {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member's name")
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(value))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Self::Value, E> {
        self.0.take(value.len()).map_err(E::custom)?;
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
    use crate::memory::Memory;

    fn parse(json: &[u8]) -> Result<Node<'_>, Unparsed> {
        Node::parse(json, &Room::unlimited())
    }

    fn check(json: &str, expected: &str) {
        let node = parse(json.as_bytes()).unwrap();
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
            let node = parse(json.as_bytes()).unwrap();
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
        let node = parse(br#"{"p\u0077":"one","pw":"two","list":[{"k":1},{"k":2}]}"#);
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
        assert!(matches!(parse(deep.as_bytes()), Err(Unparsed::Invalid(_))));
        let many = format!("[{}0]", "0,".repeat(MAX_VALUES as usize));
        assert_eq!(parse(many.as_bytes()), Err(Unparsed::TooManyValues));
        let large = vec![b' '; MAX_PARSED + 1];
        assert_eq!(parse(&large), Err(Unparsed::TooLarge));
        assert!(matches!(parse(b"nan"), Err(Unparsed::Invalid(_))));
        assert!(matches!(parse(b"[NaN"), Err(Unparsed::Invalid(_))));
        assert!(matches!(parse(b"[1] 2"), Err(Unparsed::Invalid(_))));
    }

    /// What a value occupies, in bytes: lists with what they have room for, and what the allocator adds.
    fn occupied(node: &Node<'_>) -> usize {
        let piece = |bytes: usize| bytes.max(16) + 16;
        let text = |text: &Cow<'_, str>| match text {
            Cow::Owned(text) if text.capacity() > 0 => text.capacity(),
            _ => 0,
        };
        match node {
            Node::Text(value) => text(value),
            Node::Array(items) if items.capacity() > 0 => {
                let own = piece(items.capacity() * size_of::<Node<'_>>());
                own + items.iter().map(occupied).sum::<usize>()
            }
            Node::Object(members) if members.capacity() > 0 => {
                let own = piece(members.capacity() * size_of::<(Cow<'_, str>, Node<'_>)>());
                let each = members
                    .iter()
                    .map(|(name, node)| text(name) + occupied(node));
                own + each.sum::<usize>()
            }
            _ => 0,
        }
    }

    /// What values of such text take is leased; it is so many times the text at most.
    #[track_caller]
    fn check_room(json: &str, most: usize) {
        let memory = Memory::new(1 << 30);
        let room = Room::in_memory(&memory);
        let node = Node::parse(json.as_bytes(), &room).unwrap();
        let (occupied, taken) = (occupied(&node), room.taken());
        assert!(occupied <= taken, "{occupied} of {taken}");
        let times = taken as f64 / json.len() as f64;
        assert!(times <= most as f64, "{times}");
        assert_eq!(memory.used(), taken);
        drop((node, room));
        assert_eq!(memory.used(), 0);

        let room = Room::in_memory(&Memory::new(taken / 2));
        assert_eq!(Node::parse(json.as_bytes(), &room), Err(Unparsed::Memory));
        assert!(room.is_short());
    }

    #[test]
    fn what_values_take_is_leased_before() {
        let many = |piece: &str| format!("[{}0]", piece.repeat(10_000));
        // Numbers as an embedding has them, short ones, and lists of lists: the longest and the shortest text.
        check_room(&many("0.0123456789,"), 5);
        check_room(&many("0,"), 32);
        check_room(&many("[0],"), 64);
        let deep = format!("{}0{},", "[".repeat(99), "]".repeat(99));
        check_room(&many(&deep), 80);
        check_room(&many(r#"{"":0},"#), 64);
        check_room(&many(r#""\u0041","#), 12);
        check_room(&format!("[NaN,{}", &many(r#""a","#)[1..]), 40);
        let members: String = (0..10_000).map(|n| format!(r#""{n}":0,"#)).collect();
        check_room(&format!(r#"{{{members}"a":0}}"#), 24);
    }
}
