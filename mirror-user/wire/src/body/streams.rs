//! Answers that come piece by piece, a token at a time most often: an array of their pieces. Pure.

use super::json::{Node, Unparsed};
use super::room::{Budget, Room};

/// What ends the events of a chat completion (OpenAI's API): the one piece that is not JSON.
const DONE: &str = "[DONE]";

/// JSON lines: the values in their order.
pub(super) fn lines<'a>(body: &'a [u8], room: &Room) -> Result<Node<'a>, Unparsed> {
    let budget = Budget::new(room);
    let mut values = Vec::new();
    let lines = body.split(|&byte| byte == b'\n');
    for line in lines.filter(|line| !line.trim_ascii().is_empty()) {
        budget.push(&mut values, Node::parse_within(line, &budget)?)?;
    }
    Ok(Node::Array(values))
}

/// Server-sent events (WHATWG HTML, 9.2.6) whose data is JSON: `{"data", "event", "id"}` each, as
/// far as they are there. Comments are left out.
pub(super) fn events<'a>(body: &'a [u8], room: &Room) -> Result<Node<'a>, Unparsed> {
    let text = std::str::from_utf8(body).map_err(|error| Unparsed::Invalid(error.to_string()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let budget = Budget::new(room);
    let mut events = Vec::new();
    let mut event = Event::default();
    // The end of the body ends an event as an empty line does.
    for line in text.split('\n').chain([""]) {
        match line.strip_suffix('\r').unwrap_or(line) {
            "" => {
                let members = std::mem::take(&mut event).members(&budget)?;
                if !members.is_empty() {
                    // Events without data are values, too.
                    budget.spend(1)?;
                    budget.push(&mut events, Node::Object(members))?;
                }
            }
            line => event.take(line)?,
        }
    }
    Ok(Node::Array(events))
}

#[derive(Default)]
struct Event<'a> {
    data: Option<&'a str>,
    name: Option<&'a str>,
    id: Option<&'a str>,
}

impl<'a> Event<'a> {
    fn take(&mut self, line: &'a str) -> Result<(), Unparsed> {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "data" if self.data.is_some() => {
                return Err(Unparsed::Invalid("data of several lines".to_owned()));
            }
            "data" => self.data = Some(value),
            "event" => self.name = Some(value),
            "id" => self.id = Some(value),
            _ => {}
        }
        Ok(())
    }

    /// Sorted by name, as all members are.
    fn members(
        self,
        budget: &Budget<'_>,
    ) -> Result<Vec<(std::borrow::Cow<'a, str>, Node<'a>)>, Unparsed> {
        let data = match self.data {
            Some(DONE) => Some(Node::Text(DONE.into())),
            Some(data) => Some(Node::parse_within(data.as_bytes(), budget)?),
            None => None,
        };
        let text = |text: &'a str| Node::Text(text.into());
        let members = [
            ("data", data),
            ("event", self.name.map(text)),
            ("id", self.id.map(text)),
        ];
        let mut present = Vec::new();
        for (name, node) in members {
            if let Some(node) = node {
                budget.push(&mut present, (name.into(), node))?;
            }
        }
        Ok(present)
    }
}

#[cfg(test)]
mod tests {
    use super::super::json::Redacted;
    use super::*;

    fn lines(body: &[u8]) -> Result<Node<'_>, Unparsed> {
        super::lines(body, &Room::unlimited())
    }

    fn events(body: &[u8]) -> Result<Node<'_>, Unparsed> {
        super::events(body, &Room::unlimited())
    }

    #[track_caller]
    fn check(parsed: Result<Node<'_>, Unparsed>, expected: Option<&str>) {
        let written = parsed.ok().map(|node| {
            let redact = None;
            serde_json::to_string(&Redacted {
                node: &node,
                redact,
            })
            .unwrap()
        });
        assert_eq!(written.as_deref(), expected);
    }

    #[test]
    fn json_lines_are_an_array() {
        check(
            lines(b"{\"a\":1}\n\r\n{\"a\":2}\r\n"),
            Some(r#"[{"a":1},{"a":2}]"#),
        );
        check(lines(b""), Some("[]"));
        check(lines(b"1\nx"), None);
    }

    #[test]
    fn events_are_an_array_of_objects() {
        check(
            events(b": hello\n\ndata: {\"t\":\"a\"}\n\ndata:{\"t\":\"b\"}\r\n\r\ndata: [DONE]\n\n"),
            Some(r#"[{"data":{"t":"a"}},{"data":{"t":"b"}},{"data":"[DONE]"}]"#),
        );
        check(
            events(b"\xef\xbb\xbfretry: 5\nid: 7\nevent: stop\ndata: 1"),
            Some(r#"[{"data":1,"event":"stop","id":"7"}]"#),
        );
        check(events(b"\n\n"), Some("[]"));
    }

    #[test]
    fn events_without_data_are_bounded() {
        let many = b"id\n\n".repeat(3 << 20);
        assert_eq!(events(&many), Err(Unparsed::TooManyValues));
    }

    #[test]
    fn other_events_are_no_json() {
        check(events(b"data: hello\n\n"), None);
        check(events(b"data: [1,\ndata: 2]\n\n"), None);
        check(events(b"data: \xff\n\n"), None);
    }
}
