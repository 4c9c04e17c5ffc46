//! The binary tensor data extension of the Open Inference Protocol (KServe V2): a body of JSON, as
//! long as `Inference-Header-Content-Length` says, and behind it the bytes of those tensors whose
//! `parameters` have a `binary_data_size`, in their order. Pure.
//!
//! It becomes what the answer would be without the extension: `data` holds the numbers.

use std::borrow::Cow;

use sha2::{Digest as _, Sha256};

use super::json::{Node, Number, Unparsed};
use super::room::{Budget, Room};

/// Members of an object.
type Members<'a> = Vec<(Cow<'a, str>, Node<'a>)>;

/// Parses a body whose first `json` bytes are JSON.
pub(super) fn parse<'a>(body: &'a [u8], json: usize, room: &Room) -> Result<Node<'a>, Unparsed> {
    let (header, mut rest) = body
        .split_at_checked(json)
        .ok_or(Unparsed::Tensors("the JSON is longer than the body"))?;
    let left = Budget::new(room);
    let mut node = Node::parse_within(header, &left)?;
    if let Some(Node::Array(outputs)) = node.member_mut("outputs") {
        for output in outputs {
            fill(output, &mut rest, &left)?;
        }
    }
    if !rest.is_empty() {
        return Err(Unparsed::Tensors("more bytes than the tensors have"));
    }
    Ok(node)
}

/// Takes a tensor's data off the front of `rest`, if it is there.
fn fill<'a>(tensor: &mut Node<'a>, rest: &mut &'a [u8], left: &Budget<'_>) -> Result<(), Unparsed> {
    let Some(size) = take_size(tensor) else {
        return Ok(());
    };
    let (data, behind) = usize::try_from(size)
        .ok()
        .and_then(|size| rest.split_at_checked(size))
        .ok_or(Unparsed::Tensors("fewer bytes than the tensors have"))?;
    *rest = behind;
    let elements = match tensor.member_mut("datatype") {
        Some(Node::Text(datatype)) => elements(datatype, data, left)?,
        _ => return Err(Unparsed::Tensors("a tensor without datatype")),
    };
    if let Node::Object(members) = tensor {
        insert(members, "data", Node::Array(elements));
    }
    Ok(())
}

/// Takes `binary_data_size` out of a tensor, and `parameters` where they have nothing else.
fn take_size(tensor: &mut Node<'_>) -> Option<u64> {
    let Some(Node::Object(parameters)) = tensor.member_mut("parameters") else {
        return None;
    };
    let at = parameters
        .iter()
        .position(|(name, _)| name == "binary_data_size")?;
    let Node::Number(Number::Natural(size)) = parameters[at].1 else {
        return None;
    };
    parameters.remove(at);
    if parameters.is_empty()
        && let Node::Object(members) = tensor
    {
        members.retain(|(name, _)| name != "parameters");
    }
    Some(size)
}

/// Members stay sorted by name.
fn insert<'a>(members: &mut Members<'a>, name: &'static str, node: Node<'a>) {
    match members.binary_search_by(|(other, _)| other.as_ref().cmp(name)) {
        Ok(at) => members[at].1 = node,
        Err(at) => members.insert(at, (name.into(), node)),
    }
}

/// The elements of a tensor, which are in little-endian order.
fn elements<'a>(
    datatype: &str,
    data: &'a [u8],
    left: &Budget<'_>,
) -> Result<Vec<Node<'a>>, Unparsed> {
    match datatype {
        "BOOL" => fixed(data, left, |[byte]| Node::Bool(byte != 0)),
        "UINT8" => fixed(data, left, |bytes| natural(u8::from_le_bytes(bytes))),
        "UINT16" => fixed(data, left, |bytes| natural(u16::from_le_bytes(bytes))),
        "UINT32" => fixed(data, left, |bytes| natural(u32::from_le_bytes(bytes))),
        "UINT64" => fixed(data, left, |bytes| natural(u64::from_le_bytes(bytes))),
        "INT8" => fixed(data, left, |bytes| integer(i8::from_le_bytes(bytes))),
        "INT16" => fixed(data, left, |bytes| integer(i16::from_le_bytes(bytes))),
        "INT32" => fixed(data, left, |bytes| integer(i32::from_le_bytes(bytes))),
        "INT64" => fixed(data, left, |bytes| integer(i64::from_le_bytes(bytes))),
        "FP16" => fixed(data, left, |bytes| float(half(u16::from_le_bytes(bytes)))),
        "BF16" => fixed(data, left, |[low, high]| {
            float(f32::from_le_bytes([0, 0, low, high]))
        }),
        "FP32" => fixed(data, left, |bytes| float(f32::from_le_bytes(bytes))),
        "FP64" => fixed(data, left, |bytes| float(f64::from_le_bytes(bytes))),
        "BYTES" => strings(data, left),
        _ => Err(Unparsed::Tensors("a datatype that is not known")),
    }
}

fn fixed<'a, const WIDTH: usize>(
    data: &[u8],
    left: &Budget<'_>,
    element: impl Fn([u8; WIDTH]) -> Node<'a>,
) -> Result<Vec<Node<'a>>, Unparsed> {
    let (elements, rest) = data.as_chunks::<WIDTH>();
    if !rest.is_empty() {
        return Err(Unparsed::Tensors("a tensor that ends within an element"));
    }
    left.spend(elements.len())?;
    left.take(size_of::<Node<'_>>() * elements.len())?;
    Ok(elements.iter().map(|&bytes| element(bytes)).collect())
}

/// Each with its length in four bytes before it.
fn strings<'a>(mut data: &'a [u8], left: &Budget<'_>) -> Result<Vec<Node<'a>>, Unparsed> {
    let mut elements = Vec::new();
    while let Some((length, rest)) = data.split_first_chunk::<4>() {
        let (element, rest) = rest
            .split_at_checked(u32::from_le_bytes(*length) as usize)
            .ok_or(Unparsed::Tensors("a tensor that ends within an element"))?;
        left.spend(1)?;
        let text = string(element);
        if let Cow::Owned(_) = text {
            left.take(DIGEST)?;
        }
        left.push(&mut elements, Node::Text(text))?;
        data = rest;
    }
    if !data.is_empty() {
        return Err(Unparsed::Tensors("a tensor that ends within an element"));
    }
    Ok(elements)
}

/// Room for the words that stand for what is not text.
const DIGEST: usize = 96;

/// What is not text, an image for one, is told apart by its digest.
fn string(element: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(element) {
        Ok(text) => text.into(),
        Err(_) => {
            let digest = Sha256::digest(element);
            format!("{} bytes, sha256 {digest:x}", element.len()).into()
        }
    }
}

fn natural<'a>(value: impl Into<u64>) -> Node<'a> {
    Node::Number(Number::Natural(value.into()))
}

fn integer<'a>(value: impl Into<i64>) -> Node<'a> {
    Node::Number(Number::of(value.into()))
}

fn float<'a>(value: impl Into<f64>) -> Node<'a> {
    Node::Number(Number::Float(value.into()))
}

/// A number of IEEE 754's binary16.
fn half(bits: u16) -> f64 {
    let fraction = f64::from(bits & 0x3ff);
    let magnitude = match i32::from(bits >> 10 & 0x1f) {
        0 => fraction * 2_f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        exponent => (1024.0 + fraction) * 2_f64.powi(exponent - 25),
    };
    if bits & 0x8000 == 0 {
        magnitude
    } else {
        -magnitude
    }
}

#[cfg(test)]
mod tests {
    use super::super::json::Redacted;
    use super::*;

    /// `expected` is the answer as JSON.
    #[track_caller]
    fn check(outputs: &str, data: &[u8], expected: Result<&str, &str>) {
        let json = format!(r#"{{"outputs":[{outputs}]}}"#);
        let body = [json.as_bytes(), data].concat();
        let room = Room::unlimited();
        let parsed = parse(&body, json.len(), &room);
        let written = parsed.map(|node| {
            let redact = None;
            serde_json::to_string(&Redacted {
                node: &node,
                redact,
            })
            .unwrap()
        });
        let expected = expected.map(|outputs| format!(r#"{{"outputs":[{outputs}]}}"#));
        let written = written.map_err(|unparsed| unparsed.to_string());
        assert_eq!(written, expected.map_err(str::to_owned));
    }

    #[track_caller]
    fn check_data(datatype: &str, data: &[u8], expected: &str) {
        let size = data.len();
        check(
            &format!(r#"{{"datatype":"{datatype}","parameters":{{"binary_data_size":{size}}}}}"#),
            data,
            Ok(&format!(r#"{{"data":{expected},"datatype":"{datatype}"}}"#)),
        );
    }

    #[test]
    fn every_datatype_is_read() {
        check_data("BOOL", &[0, 1], "[false,true]");
        check_data("UINT8", &[0, 255], "[0,255]");
        check_data("UINT16", &[1, 2], "[513]");
        check_data("UINT32", &[255; 4], "[4294967295]");
        check_data("UINT64", &[255; 8], "[18446744073709551615]");
        check_data("INT8", &[255], "[-1]");
        check_data("INT16", &[0, 128], "[-32768]");
        check_data("INT32", &[254, 255, 255, 255], "[-2]");
        check_data("INT64", &[255; 8], "[-1]");
        check_data(
            "FP16",
            &[0, 0x3c, 0, 0xc0, 1, 0],
            "[1.0,-2.0,5.960464477539063e-8]",
        );
        check_data("FP16", &[0, 0x7c, 1, 0x7c], "[null,null]");
        check_data("BF16", &[0x80, 0x3f, 0, 0xc0], "[1.0,-2.0]");
        check_data("FP32", &0.5_f32.to_le_bytes(), "[0.5]");
        check_data("FP64", &0.1_f64.to_le_bytes(), "[0.1]");
        check_data("BYTES", b"\x03\0\0\0cat\0\0\0\0", r#"["cat",""]"#);
        check_data("FP32", b"", "[]");
    }

    #[test]
    fn bytes_that_are_no_text_are_told_by_their_digest() {
        check_data(
            "BYTES",
            b"\x01\0\0\0\xff",
            r#"["1 bytes, sha256 a8100ae6aa1940d0b663bb31cd466142ebbdbd5187131b92d93818987832eb89"]"#,
        );
    }

    #[test]
    fn tensors_follow_each_other_and_may_be_json_as_well() {
        check(
            concat!(
                r#"{"name":"a","datatype":"UINT8","parameters":{"binary_data_size":2,"k":1}},"#,
                r#"{"name":"b","datatype":"UINT8","data":[3]},"#,
                r#"{"name":"c","datatype":"UINT8","parameters":{"binary_data_size":1}}"#
            ),
            &[1, 2, 4],
            Ok(concat!(
                r#"{"data":[1,2],"datatype":"UINT8","name":"a","parameters":{"k":1}},"#,
                r#"{"data":[3],"datatype":"UINT8","name":"b"},"#,
                r#"{"data":[4],"datatype":"UINT8","name":"c"}"#
            )),
        );
    }

    #[test]
    fn what_does_not_fit_says_why() {
        let tensor = |datatype: &str, size: usize| {
            format!(r#"{{"datatype":"{datatype}","parameters":{{"binary_data_size":{size}}}}}"#)
        };
        let check = |datatype: &str, size: usize, data: &[u8], expected: &str| {
            let expected = format!("not tensors: {expected}");
            check(&tensor(datatype, size), data, Err(&expected));
        };
        check("UINT8", 2, &[1], "fewer bytes than the tensors have");
        check("UINT8", 1, &[1, 2], "more bytes than the tensors have");
        check(
            "FP32",
            3,
            &[1, 2, 3],
            "a tensor that ends within an element",
        );
        check(
            "BYTES",
            5,
            &[2, 0, 0, 0, 1],
            "a tensor that ends within an element",
        );
        check("BYTES", 2, &[2, 0], "a tensor that ends within an element");
        check("FP8", 1, &[1], "a datatype that is not known");
        assert!(parse(b"{}", 3, &Room::unlimited()).is_err());
    }
}
