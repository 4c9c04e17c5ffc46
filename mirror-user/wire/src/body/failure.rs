//! Whether a response says in its body that it is a failure, though its status does not.

use super::content::{Body, Content};
use super::json::Node;
use super::pointer::Pointers;
use super::room::Room;
use crate::message::Response;

/// Whether something stands at one of these places in the response's JSON, or in one of its events or
/// lines where it is a stream: anything but `null` and `false`.
pub fn says(response: &Response, places: &Pointers) -> bool {
    // The node reads a sample, and has no memory figure of its own.
    let room = Room::unlimited();
    let body = Body::of(&response.headers, &response.body, &room);
    let Content::Json(node) = body.content() else {
        return false;
    };
    let in_pieces = match (&node, body.is_stream()) {
        (Node::Array(pieces), true) => pieces
            .iter()
            .any(|piece| holds(piece, Some(places)) || holds(payload(piece), Some(places))),
        _ => false,
    };
    in_pieces || holds(&node, Some(places))
}

/// What an event carries.
fn payload<'n, 'a>(piece: &'n Node<'a>) -> &'n Node<'a> {
    let Node::Object(members) = piece else {
        return piece;
    };
    let data = members.iter().find(|(name, _)| name == "data");
    data.map_or(piece, |(_, data)| data)
}

fn holds(node: &Node<'_>, places: Option<&Pointers>) -> bool {
    let Some(places) = places else { return false };
    if places.is_named() {
        return !matches!(node, Node::Null | Node::Bool(false));
    }
    match node {
        Node::Array(items) => {
            let mut items = items.iter().enumerate();
            items.any(|(index, item)| holds(item, places.index(index)))
        }
        Node::Object(members) => {
            let mut members = members.iter();
            members.any(|(key, member)| holds(member, places.key(key)))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::response;

    #[test]
    fn a_place_that_holds_something_says_so() {
        let check = |kind: &str, place: &str, body: &str, expected| {
            let response = response(200, &[("content-type", kind)], body.as_bytes());
            let said = says(&response, &Pointers::new(&[place]));
            assert_eq!(said, expected, "{kind} {place} {body}");
        };
        let json = "application/json";
        check(json, "/error", r#"{"error": "CUDA out of memory"}"#, true);
        check(json, "/error", r#"{"error": {"code": 7}}"#, true);
        check(json, "/error", r#"{"error": null, "id": 7}"#, false);
        check(json, "/failed", r#"{"failed": false}"#, false);
        check(json, "/failed", r#"{"failed": true}"#, true);
        check(json, "/error", r#"{"outputs": ["error"]}"#, false);
        check(
            json,
            "/results/*/error",
            r#"{"results": [{}, {"error": 1}]}"#,
            true,
        );
        check(json, "/error", "not JSON", false);
        check("image/png", "/error", r#"{"error": 1}"#, false);
        let events = "data: {\"token\": 1}\n\ndata: {\"error\": \"oom\"}\n\n";
        check("text/event-stream", "/error", events, true);
        check("text/event-stream", "/fault", events, false);
        check(
            "application/x-ndjson",
            "/error",
            "{\"a\":1}\n{\"error\":2}\n",
            true,
        );
    }
}
