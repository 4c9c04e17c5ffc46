//! A file of labels, piece by piece: CSV with a header (RFC 4180), or JSON lines. Pure.

use std::borrow::Cow;
use std::str;

use csv::{ByteRecord, ReaderBuilder};
use serde_json::{Map, Value};

use super::{Id, Label};
use crate::config::Columns;

/// Names of the id, in the order in which they are looked for.
const IDS: [&str; 3] = ["request_id", "trace_id", "id"];

/// The name of the label.
const LABEL: &str = "label";

/// Bytes of a label.
const MAX_LABEL: usize = 1024;

/// What UTF-8 begins with where a spreadsheet wrote it.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// A file that no label can be read from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The header lacks a column.
    #[error(
        "line {line}: no column {wanted} among {there}: say what it is called (id_field, label_field)"
    )]
    NoColumn {
        /// Where the header is.
        line: u64,
        /// What is looked for.
        wanted: String,
        /// What there is.
        there: String,
    },
    /// One large JSON array.
    #[error("a JSON array: write one object a line, as `jq -c '.[]'` does")]
    Array,
}

/// A line that is no label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct BadLine {
    /// Its number, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub what: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Json,
    Csv {
        delimiter: u8,
        id: usize,
        label: usize,
    },
}

/// Reads one file from its beginning on.
#[derive(Clone, Debug)]
pub struct Decoder {
    columns: Columns,
    /// Nothing before the first line.
    format: Option<Format>,
    /// Lines that were read.
    lines: u64,
}

impl Decoder {
    /// For a file with these columns.
    pub fn new(columns: Columns) -> Self {
        Self {
            columns,
            format: None,
            lines: 0,
        }
    }

    /// Reads the whole lines of the next `bytes`, and the last one as well when the file is at its
    /// `end`. Returns how many bytes that were; the others are to come again, with more.
    ///
    /// # Errors
    /// When no label can be read from such a file.
    pub fn feed(
        &mut self,
        bytes: &[u8],
        end: bool,
        mut visit: impl FnMut(Result<(Id, Label), BadLine>),
    ) -> Result<usize, Unusable> {
        let format = match self.format {
            Some(format) => format,
            None => match self.begin(bytes, end)? {
                Some((begun, format)) => {
                    self.format = Some(format);
                    return Ok(begun + self.feed(&bytes[begun..], end, visit)?);
                }
                None => return Ok(0),
            },
        };
        let whole = match format {
            _ if end => bytes.len(),
            Format::Json => last_line(bytes, None),
            Format::Csv { delimiter, .. } => last_line(bytes, Some(delimiter)),
        };
        let lines = &bytes[..whole];
        match format {
            Format::Json => self.json(lines, &mut visit),
            Format::Csv {
                delimiter,
                id,
                label,
            } => {
                self.csv(lines, delimiter, [id, label], &mut visit);
            }
        }
        Ok(whole)
    }

    /// Tells the format by the first line that is not empty; of CSV that is the header, and taken.
    fn begin(&mut self, bytes: &[u8], end: bool) -> Result<Option<(usize, Format)>, Unusable> {
        let mark = if bytes.starts_with(MARK) {
            MARK.len()
        } else {
            0
        };
        let is_blank = |byte: &&u8| byte.is_ascii_whitespace();
        let blank = bytes[mark..].iter().take_while(is_blank).count();
        let start = mark + blank;
        match bytes.get(start) {
            None => return Ok(None),
            Some(b'{') => {
                self.lines += newlines(&bytes[..start]);
                return Ok(Some((start, Format::Json)));
            }
            Some(b'[') => return Err(Unusable::Array),
            Some(_) => {}
        }
        let rest = &bytes[start..];
        let length = match rest.iter().position(|&byte| byte == b'\n') {
            Some(length) => length + 1,
            None if end => rest.len(),
            None => return Ok(None),
        };
        let line = self.lines + newlines(&bytes[..start]) + 1;
        let format = self.header(line, &rest[..length])?;
        self.lines = line;
        Ok(Some((start + length, format)))
    }

    /// What the id may be called, and the label.
    fn names(&self) -> (Vec<&str>, &str) {
        let Columns { id, label } = &self.columns;
        let ids = id.as_deref().map(|id| vec![id]);
        let label = label.as_deref().unwrap_or(LABEL);
        (ids.unwrap_or_else(|| IDS.to_vec()), label)
    }

    fn header(&self, line: u64, header: &[u8]) -> Result<Format, Unusable> {
        let times = |delimiter: u8| header.iter().filter(|&&byte| byte == delimiter).count();
        let delimiter = [b';', b'\t'].into_iter().fold(b',', |best, other| {
            if times(other) > times(best) {
                other
            } else {
                best
            }
        });
        let mut names = ByteRecord::new();
        // A slice is always read; what is no name is found missing.
        let _ = reader(header, delimiter).read_byte_record(&mut names);
        let place = |wanted: &str| names.iter().position(|name| name == wanted.as_bytes());
        let missing = |wanted: &[&str]| Unusable::NoColumn {
            line,
            wanted: quoted(wanted.iter().copied(), " or "),
            there: quoted(
                names.iter().map(|name| str::from_utf8(name).unwrap_or("?")),
                ", ",
            ),
        };
        let (ids, label) = self.names();
        let id = ids.iter().find_map(|id| place(id));
        Ok(Format::Csv {
            delimiter,
            id: id.ok_or_else(|| missing(&ids))?,
            label: place(label).ok_or_else(|| missing(&[label]))?,
        })
    }

    fn json(&mut self, lines: &[u8], visit: &mut impl FnMut(Result<(Id, Label), BadLine>)) {
        for line in lines.split_inclusive(|&byte| byte == b'\n') {
            self.lines += 1;
            if line.trim_ascii().is_empty() {
                continue;
            }
            let object = serde_json::from_slice::<Map<String, Value>>(line);
            let object = object.map_err(|error| {
                // The line it speaks of is always the first.
                let said = error.to_string();
                let said = said.split(" at line ").next().unwrap_or_default();
                format!("not a JSON object: {said}")
            });
            let found = object.and_then(|object| self.member(&object));
            visit(found.map_err(|what| BadLine {
                line: self.lines,
                what,
            }));
        }
    }

    fn member(&self, object: &Map<String, Value>) -> Result<(Id, Label), String> {
        let (ids, name) = self.names();
        let id = ids
            .iter()
            .find_map(|name| object.get(*name).filter(|id| !id.is_null()));
        let id = match id.ok_or_else(|| format!("no {}", quoted(ids.iter().copied(), " or ")))? {
            Value::String(text) => text.clone(),
            number @ Value::Number(_) => number.to_string(),
            _ => return Err("the id is neither a string nor a number".to_owned()),
        };
        let value = object.get(name).ok_or_else(|| format!("no `{name}`"))?;
        let label = Label::of_json(value);
        let label = label.ok_or("the label is neither a string, a number, true nor false")?;
        pair(&id, label)
    }

    fn csv(
        &mut self,
        lines: &[u8],
        delimiter: u8,
        places: [usize; 2],
        visit: &mut impl FnMut(Result<(Id, Label), BadLine>),
    ) {
        // The reader takes off a mark wherever it begins to read, which is not where the file begins.
        let (guard, before) = match lines.starts_with(MARK) {
            true => (Cow::Owned([b"\n", lines].concat()), 1),
            false => (Cow::Borrowed(lines), 0),
        };
        let mut reader = reader(&guard, delimiter);
        let mut record = ByteRecord::new();
        // A slice is always read, and records may be of any length.
        while reader.read_byte_record(&mut record).is_ok_and(|more| more) {
            let found = fields(&record, places);
            let line =
                self.lines + record.position().map_or(1, |begun| line_of(&guard, begun)) - before;
            visit(found.map_err(|what| BadLine { line, what }));
        }
        self.lines += newlines(lines);
    }
}

fn fields(record: &ByteRecord, places: [usize; 2]) -> Result<(Id, Label), String> {
    let field = |place: usize| {
        let field = record.get(place).ok_or_else(|| {
            let (there, wanted) = (record.len(), place + 1);
            format!("{there} fields, and what is looked for is number {wanted}")
        })?;
        str::from_utf8(field).map_err(|_| "not UTF-8".to_owned())
    };
    let label = Label::new(field(places[1])?).ok_or("the label is empty")?;
    pair(field(places[0])?, label)
}

fn pair(id: &str, label: Label) -> Result<(Id, Label), String> {
    if id.trim().is_empty() {
        return Err("the id is empty".to_owned());
    }
    let length = label.as_str().len();
    if length > MAX_LABEL {
        return Err(format!(
            "the label has {length} bytes, {MAX_LABEL} at most make sense"
        ));
    }
    Ok((Id::of(id), label))
}

fn reader(bytes: &[u8], delimiter: u8) -> csv::Reader<&[u8]> {
    ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter)
        .trim(csv::Trim::All)
        .from_reader(bytes)
}

/// Where in a field of CSV a byte stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Start,
    Within,
    Quoted,
    /// After a quote that ends the field, or is doubled.
    Closed,
}

/// Where the last whole line ends. In CSV a line break within quotes ends none.
fn last_line(bytes: &[u8], delimiter: Option<u8>) -> usize {
    let (mut end, mut place) = (0, Place::Start);
    for (at, &byte) in bytes.iter().enumerate() {
        place = match (place, byte) {
            (Place::Quoted, b'"') => Place::Closed,
            (Place::Quoted, _) => Place::Quoted,
            (_, b'\n') => {
                end = at + 1;
                Place::Start
            }
            (Place::Start | Place::Closed, b'"') if delimiter.is_some() => Place::Quoted,
            (_, byte) if delimiter == Some(byte) => Place::Start,
            _ => Place::Within,
        };
    }
    end
}

/// The line of a record, from 1. Its position is before the empty lines that are passed over.
fn line_of(lines: &[u8], begun: &csv::Position) -> u64 {
    let rest = lines.get(begun.byte() as usize..).unwrap_or_default();
    let blank = rest
        .iter()
        .take_while(|byte| b"\r\n".contains(byte))
        .count();
    begun.line() + newlines(&rest[..blank])
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&byte| byte == b'\n').count() as u64
}

fn quoted<'a>(names: impl Iterator<Item = &'a str>, between: &str) -> String {
    let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    names.join(between)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Line = Result<(Id, Label), String>;

    fn decode(columns: &Columns, pieces: &[&[u8]]) -> Result<Vec<Line>, Unusable> {
        let (mut decoder, mut rest, mut found) = (Decoder::new(columns.clone()), vec![], vec![]);
        for (index, piece) in pieces.iter().enumerate() {
            rest.extend_from_slice(piece);
            let end = index + 1 == pieces.len();
            let read = decoder.feed(&rest, end, |line| {
                found.push(line.map_err(|bad| bad.to_string()));
            })?;
            rest.drain(..read);
        }
        Ok(found)
    }

    /// `a=1` is the label 1 of id a; everything else is a bad line's words.
    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        check_columns(&Columns::default(), text, expected);
    }

    #[track_caller]
    fn check_columns(columns: &Columns, text: &str, expected: &[&str]) {
        let found = decode(columns, &[text.as_bytes()]).unwrap();
        let expected: Vec<_> = expected
            .iter()
            .map(|line| match line.split_once('=') {
                Some((id, label)) => Ok((Id::of(id), Label::new(label).unwrap())),
                None => Err((*line).to_owned()),
            })
            .collect();
        assert_eq!(found, expected, "{text}");
    }

    #[track_caller]
    fn check_unusable(text: &str, expected: &str) {
        let error = decode(&Columns::default(), &[text.as_bytes()]).unwrap_err();
        assert_eq!(error.to_string(), expected, "{text}");
    }

    #[test]
    fn json_lines_are_read_one_by_one() {
        check("", &[]);
        check(
            "\u{feff}{\"id\": \"a\", \"label\": 7}\n\n{\"request_id\":\"b\",\"id\":1,\"label\":\"x\"}",
            &["a=7", "b=x"],
        );
        check(
            "{\"id\":17,\"label\":true}\n{\"id\":\"a\"}\n[1]\n{\"label\":1}\n{\"id\":\"\",\"label\":1}\n{\"id\":\"b\",\"label\":{}}\n{\"id\":\"c\",\"label\":2}\n{\"id\"",
            &[
                "17=true",
                "line 2: no `label`",
                "line 3: not a JSON object: invalid type: sequence, expected a map",
                "line 4: no `request_id` or `trace_id` or `id`",
                "line 5: the id is empty",
                "line 6: the label is neither a string, a number, true nor false",
                "c=2",
                "line 8: not a JSON object: EOF while parsing an object",
            ],
        );
        check_unusable(
            "\n[{\"id\":1}]",
            "a JSON array: write one object a line, as `jq -c '.[]'` does",
        );
    }

    #[test]
    fn csv_has_a_header() {
        check("id,label\r\na,1\r\n b , x \r\n", &["a=1", "b=x"]);
        check(
            "when;label;request_id;id\n1;cat;a;z\n2;\"do;g\";b;z",
            &["a=cat", "b=do;g"],
        );
        check("trace_id\tlabel\na\t1\n", &["a=1"]);
        check(
            "id,label,note\na,1,\"two\nlines, and \"\"quotes\"\"\"\nb\n\nc,,\n,3,\nd,4\n",
            &[
                "a=1",
                "line 4: 1 fields, and what is looked for is number 2",
                "line 6: the label is empty",
                "line 7: the id is empty",
                "d=4",
            ],
        );
        check_unusable(
            "\na,b\n1,2\n",
            "line 2: no column `request_id` or `trace_id` or `id` among `a`, `b`: say what it is called (id_field, label_field)",
        );
        let long = "x".repeat(2000);
        check(
            &format!("id,label\na,{long}\n"),
            &["line 2: the label has 2000 bytes, 1024 at most make sense"],
        );
    }

    #[test]
    fn columns_have_other_names() {
        let columns = Columns {
            id: Some("order".to_owned()),
            label: Some("fraud".to_owned()),
        };
        check_columns(&columns, "id,order,fraud\nz,a,1\n", &["a=1"]);
        check_columns(&columns, "{\"order\":\"a\",\"fraud\":false}", &["a=false"]);
    }

    proptest! {
        /// However a file grows, the same is read from it.
        #[test]
        fn pieces_make_no_difference(
            json in any::<bool>(),
            rows in prop::collection::vec(("[a-c ]{1,3}", "[a-z0-9\" ,\n;]{0,6}"), 0..8),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        ) {
            let mut text = if json { String::new() } else { "label,x,id\n".to_owned() };
            for (id, label) in &rows {
                text += &if json {
                    format!("{}\n", serde_json::json!({"id": id, "label": label}))
                } else {
                    format!("\"{}\",1,{id}\n", label.replace('"', "\"\""))
                };
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts
                .windows(2)
                .map(|ends| &text.as_bytes()[ends[0]..ends[1]])
                .collect();
            let columns = Columns::default();
            let whole = decode(&columns, &[text.as_bytes()]).unwrap();
            prop_assert_eq!(whole.len(), rows.len());
            prop_assert_eq!(decode(&columns, &pieces).unwrap(), whole);
        }
    }
}
